"""The main process forks pool children at any time while its threads run."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest

from tests.probe.project import ProbeProject
from tests.services import Queues, wait_until

KILLS = 500

#: Seconds between two kills: a new child has to get something done.
KILL_EVERY = 0.1


def children(pid: int) -> list[int]:
    """The ids of the processes that this one forked."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.fixture
def project(tmp_path: Path, queues: Queues) -> Iterator[ProbeProject]:
    """A worker's project where a message may fail as often as its process is killed."""
    project = ProbeProject(
        tmp_path / "project",
        queues,
        transport={"max_attempts": 97, "max_receive_count": 100, "backoff_max": 1},
    )
    yield project
    project.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("queues", [{"max_receive_count": 100}], indirect=True)
def test_five_hundred_killed_children_leave_no_hung_one_and_no_warning(
    project: ProbeProject,
) -> None:
    worker = project.start("--autoscale=4,1")
    killed, last, sent = 0, monotonic(), 0

    def has_killed_enough() -> bool:
        nonlocal killed, last, sent
        # Load comes and goes, so that the pool grows and shrinks.
        if sum(project.queues.counts()) < 20 and killed % 50 < 35:
            for _ in range(20):
                project.send("work", 0.05)
            sent += 20
        if monotonic() - last >= KILL_EVERY and (pids := children(worker.pid)):
            with suppress(ProcessLookupError):
                os.kill(random.choice(pids), signal.SIGKILL)
                killed += 1
            last = monotonic()
        return killed >= KILLS

    wait_until(has_killed_enough, 200, "the kills")
    project.wait_for_empty_queue(60)

    log = project.worker_log()
    assert worker.poll() is None
    assert len({line["id"] for line in project.events(event="end")}) == sent
    assert project.queues.dead_letters() == []
    assert "multi-threaded" not in log
    assert "DeprecationWarning" not in log
    assert project.stop(worker) == 0
