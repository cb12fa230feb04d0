"""Workers that are stopped again and again under load."""

import signal
from collections import Counter
from functools import partial

import pytest

from tests.acceptance.load import load
from tests.probe.project import PATIENCE, MakeProject, ProbeProject
from tests.services import wait_until

pytestmark = pytest.mark.slow

#: Seconds that every stop of a busy worker must stay below: a process of the pool that waits for
#: results to be read takes 30.
QUICK = 20

#: More seconds than a long poll of the project takes, and 2.
SOON = 5


def has_done(project: ProbeProject, count: int) -> bool:
    """Whether so many tasks have ended."""
    return len(project.events(event="end")) >= count


@pytest.mark.timeout(300)
def test_a_busy_worker_stops_without_delay_each_time(make_project: MakeProject) -> None:
    project = make_project()
    done = 0
    for _ in range(8):
        worker = project.start()
        for _ in range(150):
            project.send("work", 0.001)
        done += 20
        wait_until(partial(has_done, project, done), PATIENCE, "a busy worker")
        done = len(project.events(event="end"))

        worker.send_signal(signal.SIGTERM)

        assert worker.wait(QUICK) == 0
        # What it released is hidden until its own long poll is over, and 2 s.
        wait_until(lambda: project.queues.counts()[1] == 0, SOON, "released messages")


@pytest.mark.timeout(600)
def test_ten_rolling_restarts_of_four_workers_lose_nothing_and_run_nothing_twice(
    make_project: MakeProject,
) -> None:
    project = make_project()
    workers = [project.start() for _ in range(4)]
    with load(project) as sent:
        for _ in range(10):
            for place, worker in enumerate(workers):
                worker.send_signal(signal.SIGTERM)
                workers[place] = project.start()
                assert worker.wait(PATIENCE) == 0
    project.wait_for_empty_queue()

    starts = Counter(line["id"] for line in project.events(event="start"))
    ends = Counter(line["id"] for line in project.events(event="end"))
    assert ends == Counter(sent)
    assert starts == ends
    assert project.queues.dead_letters() == []
