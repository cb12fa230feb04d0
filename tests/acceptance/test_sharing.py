"""A worker takes no message that another worker could run sooner."""

from pathlib import Path
from time import monotonic

import pytest

from tests.probe.project import MakeProject
from tests.services import wait_until

PATIENCE = 30

#: Seconds of a long task, and how many there are.
LONG = 3
MANY = 16

#: What has ended and is not reported yet is in flight for SQS, too.
UNREPORTED = 3

pytestmark = pytest.mark.slow


def test_long_tasks_are_shared_with_a_worker_that_starts_later(make_project: MakeProject) -> None:
    project = make_project()
    first = project.start()
    ids = [project.send("work", LONG) for _ in range(MANY)]
    wait_until(lambda: len(project.events(event="start")) >= 2, PATIENCE, "tasks that run")
    second = project.start()
    # The first one ran these alone.
    alone = len(project.events(event="start"))
    in_flight = 0
    while len(project.events(event="end")) < MANY:
        in_flight = max(in_flight, project.queues.counts()[1])
    assert in_flight <= 4 + UNREPORTED
    assert {line["id"] for line in project.events(event="end")} == set(ids)
    shared = project.events(event="start")[alone:]
    of_first = sum(parent_of(line["pid"]) == first.pid for line in shared)
    # A task that the first one held when the second was ready is its own.
    assert len(shared) / 2 - 2 <= of_first <= len(shared) / 2 + 2
    assert (project.stop(first), project.stop(second)) == (0, 0)


@pytest.mark.parametrize(("multiplier", "most"), [("1", 2), ("2", 4)])
def test_the_prefetch_multiplier_is_an_upper_limit(
    make_project: MakeProject, multiplier: str, most: int
) -> None:
    project = make_project()
    project.start("--prefetch-multiplier", multiplier)
    # By measured time alone, a pool of two would hold up to two and ten more.
    for _ in range(40):
        project.send("work", 0.2)
    in_flight = 0
    deadline = monotonic() + PATIENCE
    while len(project.events(event="end")) < 40:
        assert monotonic() < deadline
        in_flight = max(in_flight, project.queues.counts()[1])
    assert in_flight <= most + UNREPORTED


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
