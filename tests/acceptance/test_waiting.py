"""Messages that wait for long tasks: others may have them, and none is lost for having waited."""

import pytest

from tests.probe.project import PATIENCE, MakeProject, ProbeProject
from tests.services import wait_until

#: Seconds of a task, in a scale at which a message may wait for 6 s.
LONG, LONGEST_WAIT, VISIBILITY = 2, 6, 9

#: Receives after which SQS dead-letters a message.
MOST_DELIVERIES = 5

#: Seconds for all of them, one after the other.
ALL = 90


def run_short_ones(project: ProbeProject) -> None:
    """Let the worker believe that tasks are short, so that it holds some ahead."""
    for _ in range(2):
        project.wait_for_end(project.send("work"))


def test_what_one_worker_cannot_run_yet_another_one_runs_at_once(
    make_project: MakeProject,
) -> None:
    project = make_project()
    for _ in range(3):
        project.send("work", PATIENCE)
    project.start("-c", "1")
    wait_until(lambda: project.events(event="start"), PATIENCE, "the first task")
    assert project.queues.counts()[1] == 1

    project.start("-c", "2")

    wait_until(lambda: len(project.events(event="start")) == 3, PATIENCE / 2, "all of them")
    assert project.events(event="end") == []


@pytest.mark.slow
@pytest.mark.parametrize("queues", [{"max_receive_count": MOST_DELIVERIES}], indirect=True)
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_what_waits_for_too_long_is_handed_back_and_runs_once_and_is_not_dead_lettered(
    make_project: MakeProject, pool: str
) -> None:
    project = make_project(
        transport={
            "visibility_timeout": VISIBILITY,
            "longest_wait": LONGEST_WAIT,
            "max_receive_count": MOST_DELIVERIES,
            "max_attempts": 2,
        }
    )
    project.start("--pool", pool, "-c", "1")
    run_short_ones(project)
    ids = [project.send("work", LONG) for _ in range(12)]
    project.wait_for_empty_queue(ALL)

    assert [len(project.events(id_, "start")) for id_ in ids] == [1] * 12
    assert [len(project.events(id_, "end")) for id_ in ids] == [1] * 12
    assert project.queues.dead_letters() == []
    log = project.worker_log()
    assert "Message released" in log
    assert "lease of a message was lost" not in log
    assert "Could not send the outcome" not in log
