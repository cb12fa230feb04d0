"""Another project's environment: the broker's wheel, what it says it needs, and nothing else.

What it needs is a link to each of those distributions, found by what each says it needs, in the
environment of the tests.
"""

import os
import re
import subprocess
import venv
from collections.abc import Collection, Iterator
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from zipfile import Path as Zipped

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from devstack.process import Process
from tests.services import Queues
from tests.wheels import ROOT, pip

#: Seconds a worker, or a command, may take.
PATIENCE = 30


class Project:
    """The example of the broker's README as the package `app`, and what it is run with."""

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
        (directory / "app").mkdir()
        self.configure(self._example(queues))

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

    def celery(self, command: str, *arguments: str) -> Process:
        """A command of Celery, stopped (SIGTERM) at the end of the block."""
        return Process(
            command,
            [self.python, "-m", "celery", "-A", "app", command, *arguments],
            log=self.directory / f"{command}.log",
            grace=PATIENCE,
            environment=self.environment,
            directory=self.directory,
        )

    def worker(self, *arguments: str) -> Process:
        """A worker of one process, stopped (SIGTERM) at the end of the block."""
        return self.celery("worker", "-l", "INFO", "-c", "1", *arguments)

    def configure(self, settings: str) -> None:
        """Add lines to the project's package."""
        with (self.directory / "app/__init__.py").open("a") as package:
            package.write(settings)

    def _example(self, queues: Queues) -> str:
        """The README's example, on queues of a local server."""
        readme = (ROOT / "sqs_broker/README.md").read_text()
        (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        for theirs, ours in {
            "https://sqs.eu-central-1.amazonaws.com/1234/jobs-dlq": queues.dead_letter_url,
            "https://sqs.eu-central-1.amazonaws.com/1234/jobs": queues.url,
            "eu-central-1": queues.region,
            "def work(): ...": f"def work(): open({str(self.done)!r}, 'a').write('x')",
        }.items():
            assert example.count(theirs) == 1 or theirs in queues.url, theirs
            example = example.replace(theirs, ours)
        return str(example)


def environment(home: Path, wheel: Path, *extras: str) -> Path:
    """Make an environment that has this wheel with these extras; its Python."""
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    (about,) = (each for each in Zipped(wheel).iterdir() if each.name.endswith("-info"))
    for found in _needed(_wanted(PathDistribution(about).requires, extras)):
        _link(found, site)
    # It finds every requirement there, or fails.
    asked = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    pip("--python", str(home / "bin/python"), "install", asked)
    return home / "bin/python"


def _needed(waiting: list[Requirement]) -> Iterator[Distribution]:
    """What these need, and so on; each once."""
    seen: set[str] = set()
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        yield found
        waiting += _wanted(found.requires, asked.extras)


def _wanted(requires: list[str] | None, extras: Collection[str]) -> list[Requirement]:
    """Those of a distribution that hold here, with these extras."""
    return [
        each
        for each in map(Requirement, requires or ())
        if each.marker is None
        or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def _link(found: Distribution, site: Path) -> None:
    """Make a distribution importable from a site, and known to pip there."""
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        (site / top).symlink_to(Path(str(found.locate_file(top))))
