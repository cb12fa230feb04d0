"""What a task does to its message is the same in each pool: of processes, of threads, or solo."""

import pytest

from tests.probe.project import MakeProject
from tests.services import wait_until

PATIENCE = 60

POOLS = ["prefork", "threads", "solo"]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.slow
@pytest.mark.contract
def test_a_task_that_exits_is_dead_lettered_after_its_last_attempt(
    make_project: MakeProject, pool: str
) -> None:
    project = make_project()
    project.start("-c", "1", f"--pool={pool}")
    id_ = project.send("leave")
    wait_until(lambda: project.events(id_, "start")[2:], PATIENCE, "the last attempt")
    project.wait_for_empty_queue()
    assert len(project.events(id_, "start")) == 3
    assert project.notes()[id_]["deliveries"] == 3


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.contract
def test_a_task_whose_message_is_deleted_before_it_runs_runs_once(
    make_project: MakeProject, pool: str
) -> None:
    project = make_project()
    project.start("-c", "1", f"--pool={pool}")
    early, after = project.send("early"), project.send("work")
    wait_until(lambda: project.events(after, "end"), PATIENCE, "the next task")
    wait_until(lambda: project.queues.counts() == (0, 0, 0), PATIENCE, "an empty queue")
    assert len(project.events(early, "start")) == 1
