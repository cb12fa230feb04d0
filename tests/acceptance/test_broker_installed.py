"""The broker's wheel by itself, in another project's environment: its README's example runs there.

The environment is a new one, and has what the wheel says it depends on and nothing else: a link to
each of those distributions, found by what each says it needs, in the environment of the tests.
"""

import json
import os
import re
import subprocess
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from zipfile import Path as Zipped

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from devstack.process import Process
from devstack.sqs import LARGEST_MESSAGE
from tests.services import Queues, wait_until
from tests.wheels import ROOT, Wheels, pip

#: Seconds a worker, or a command, may take.
PATIENCE = 30

#: None of it may be there: what is this project's but not the broker's, and what it can do without.
ABSENT = (
    "app",
    "mongoengine",
    "flower",
    "pydantic",
    "pydantic_settings",
    "pymongo",
    "bson",
    "pycurl",
)

FIND = "import sys; from importlib.util import find_spec; print(*filter(find_spec, sys.argv[1:]))"

#: What a project adds to its package for a check of its own.
CHECK = """
from sqs_broker.tools.checks import Subject
def check(app):
    yield Subject("disk", "space").fault("there is none", "Buy a disk.")
install(app, checks=["app:check"])
"""

#: What a project adds to its package: a task that fails once, and one that can never succeed.
TASKS = """
from pathlib import Path
@app.task(name="shaky")
def shaky():
    if not (failed := Path("failed")).exists():
        failed.touch()
        raise OSError
    Path("done").touch()
@app.task(name="hopeless", dead_letter_on=(ValueError,))
def hopeless(): raise ValueError("no such shop")
app.conf.broker_transport_options |= {"wait_time_seconds": 1, "backoff_base": 0.01}
"""

DELAY = "from app import work; work.delay()"


class Project:
    """A Celery project whose package is named `app`, and what it is run with."""

    def __init__(self, directory: Path, python: Path, queues: Queues) -> None:
        self.directory = directory
        self.python = python
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "AWS_ENDPOINT_URL": queues.endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        self.done = directory / "done"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python with these arguments."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def worker(self) -> Process:
        """A worker, stopped (SIGTERM) at the end of the block."""
        return Process(
            "worker",
            [self.python, "-m", "celery", "-A", "app", "worker", "-l", "INFO", "-c", "1"],
            log=self.directory / "worker.log",
            grace=PATIENCE,
            environment=self.environment,
            directory=self.directory,
        )

    def configure(self, settings: str) -> None:
        """Add lines to the project's package."""
        with (self.directory / "app/__init__.py").open("a") as package:
            package.write(settings)


def needed(requirements: list[str]) -> Iterator[Distribution]:
    """What these need, and so on; each once."""
    seen: set[str] = set()
    waiting = [Requirement(each) for each in requirements]
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        yield found
        extras = asked.extras or {""}
        waiting += [
            each
            for each in map(Requirement, found.requires or ())
            if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras)
        ]


def link(found: Distribution, site: Path) -> None:
    """Make a distribution importable from a site, and known to pip there."""
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        (site / top).symlink_to(Path(str(found.locate_file(top))))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheels: Wheels) -> Path:
    """The Python of an environment that has the broker and what it names."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    (about,) = (each for each in Zipped(wheels.broker).iterdir() if each.name.endswith("-info"))
    requires = [r for r in PathDistribution(about).requires or () if "extra ==" not in r]
    for found in needed(requires):
        link(found, site)
    # It finds every requirement there, or fails.
    pip("--python", str(home / "bin/python"), "install", str(wheels.broker))
    return home / "bin/python"


@pytest.fixture
def project(tmp_path: Path, python: Path, queues: Queues) -> Project:
    """The README's example as the package `app`, on queues of a local server."""
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "sqs_broker/README.md").read_text(), re.DOTALL
    )
    made = Project(tmp_path, python, queues)
    for theirs, ours in {
        "https://sqs.eu-central-1.amazonaws.com/1234/jobs-dlq": queues.dead_letter_url,
        "https://sqs.eu-central-1.amazonaws.com/1234/jobs": queues.url,
        "eu-central-1": queues.region,
        "def work(): ...": f"def work(): open({str(made.done)!r}, 'a').write('x')",
    }.items():
        assert example.count(theirs) == 1 or theirs in queues.url, theirs
        example = example.replace(theirs, ours)
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text(example)
    return made


def test_nothing_else_of_this_project_is_there(project: Project) -> None:
    isolated = project.run("-I", "-c", FIND, "sqs_broker", "celery", *ABSENT)
    assert isolated.stdout.split() == ["sqs_broker", "celery"], isolated.stderr


def test_a_worker_runs_what_delay_sent_and_the_commands_are_there(
    project: Project, queues: Queues
) -> None:
    # A worker that stops waits for its open poll.
    project.configure("app.conf.broker_transport_options['wait_time_seconds'] = 1\n")
    sent = project.run("-c", DELAY)
    assert sent.returncode == 0, sent.stderr
    asked = project.run("-m", "celery", "-A", "app", "sqs", "queues", "--json")
    assert '"visible": 1' in asked.stdout, asked.stderr

    with project.worker() as worker:
        wait_until(project.done.exists, PATIENCE, f"the task: {worker.log}")
        wait_until(queues.is_empty, PATIENCE, f"an empty queue: {worker.log}")

    assert worker.exit_status == 0, worker.last_words()
    assert project.done.read_text() == "x"


@pytest.mark.slow
def test_a_failed_task_runs_again_and_one_that_can_never_succeed_is_a_dead_letter(
    project: Project, queues: Queues
) -> None:
    project.configure(TASKS)
    sent = project.run("-c", "from app import *; shaky.delay(); hopeless.delay()")
    assert sent.returncode == 0, sent.stderr

    with project.worker() as worker:
        wait_until(project.done.exists, PATIENCE, f"the second run: {worker.log}")
        wait_until(queues.is_empty, PATIENCE, f"an empty queue: {worker.log}")

    listed = project.run("-m", "celery", "-A", "app", "sqs", "dlq", "list", "--json")
    (letter,) = map(json.loads, listed.stdout.splitlines())
    assert (letter["task"], letter["reason"]) == ("hopeless", "no such shop")


def test_the_doctor_checks_the_queues_and_what_the_project_adds(project: Project) -> None:
    sizes = f"app.conf.broker_transport_options['max_message_bytes'] = {LARGEST_MESSAGE}\n"
    project.configure(sizes)
    celery = ("-m", "celery", "-A", "app", "sqs", "doctor", "--json")
    alone = project.run(*celery)
    project.configure(CHECK)
    added = project.run(*celery)

    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert '"sqs:ReceiveMessage"' in alone.stdout
    assert added.returncode == 1, added.stderr
    assert [json.loads(line)["fix"] for line in added.stdout.splitlines()][-1] == "Buy a disk."


def test_a_worker_with_a_control_plane_says_in_one_line_what_is_not_installed(
    project: Project,
) -> None:
    control = {"database_uri": "mongodb://127.0.0.1:1/"}
    project.configure(f"app.conf.broker_transport_options['control'] = {control}\n")

    ran = project.run("-m", "celery", "-A", "app", "worker", "--pool", "solo", "-E")

    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "pip install 'celery-sqs-broker[mongodb]'" in ran.stderr.strip().splitlines()[-1]
