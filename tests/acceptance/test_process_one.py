"""A worker in a process namespace of its own, as in a container: with the init of the image."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.worker import ROOT
from tests.probe.project import PATIENCE, MakeProject, ProbeProject
from tests.services import wait_until

NAMESPACE = ["unshare", "-Urpf", "--mount-proc", "--kill-child=SIGKILL"]
WORKER = [sys.executable, "-m", "celery", "-A", "probe", "worker", "-l", "INFO", "-c", "2"]


def may_unshare() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.skipif(not shutil.which("tini"), reason="tini is in the image, and not here"),
    pytest.mark.skipif(not may_unshare(), reason="no process namespace may be made here"),
]


def entrypoint() -> list[str]:
    """The init of the image, as the Dockerfile has it."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("ENTRYPOINT "))
    command: list[str] = json.loads(line.removeprefix("ENTRYPOINT "))
    return command


def children(pid: int) -> list[int]:
    """The children of a process, zombies included."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in file.read_text().split()] if file.exists() else []


@contextmanager
def contained(project: ProbeProject) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A worker in a namespace: the process around it, and the one that is process 1 inside."""
    log = project.directory / "worker-0.log"
    with log.open("wb") as stream:
        outer = subprocess.Popen(
            [*NAMESPACE, *entrypoint(), *WORKER],
            cwd=project.directory,
            env={"PATH": os.environ["PATH"], "HOME": str(project.directory)},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: " ready." in log.read_text(), PATIENCE, f"worker ready: {log}")
        (first,) = children(outer.pid)
        yield outer, first
    finally:
        outer.kill()
        outer.wait(PATIENCE)


@pytest.mark.slow
def test_what_tasks_leave_behind_does_not_stay_as_a_zombie(make_project: MakeProject) -> None:
    project = make_project()
    with contained(project) as (_, init):
        for _ in range(4):
            project.send("leave_a_process", 4)
        wait_until(lambda: len(children(init)) == 1 + 4, PATIENCE, "the processes left behind")

        wait_until(lambda: len(children(init)) == 1, PATIENCE, "the worker alone")


def test_a_stop_reaches_the_worker_and_its_exit_status_comes_back(
    make_project: MakeProject,
) -> None:
    project = make_project()
    with contained(project) as (outer, init):
        id_ = project.send("work", 2)
        wait_until(lambda: project.events(id_, "start"), PATIENCE, "a task that runs")

        os.kill(init, signal.SIGTERM)

        assert outer.wait(PATIENCE) == 0
    assert len(project.events(id_, "end")) == 1
    assert project.queues.counts() == (0, 0, 0)
