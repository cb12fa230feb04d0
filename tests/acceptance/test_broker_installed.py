"""The broker by itself, in another project: the example of its README runs there."""

import json
from pathlib import Path

import pytest

from devstack.sqs import LARGEST_MESSAGE
from tests.acceptance import foreign
from tests.acceptance.foreign import PATIENCE, Project
from tests.services import Queues, wait_until
from tests.wheels import Wheels

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


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheels: Wheels) -> Path:
    """The Python of an environment that has the broker and what it names."""
    return foreign.environment(tmp_path_factory.mktemp("venv"), wheels.broker)


@pytest.fixture
def project(tmp_path: Path, python: Path, queues: Queues) -> Project:
    """The README's example, on queues of a local server."""
    return Project(tmp_path, python, queues)


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
