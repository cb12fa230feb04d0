"""Many messages as one job of the pool, with real workers: each has its own end."""

import pytest

from tests.probe.project import MakeProject, ProbeProject

#: One more than the largest job has room for.
COUNT = 21


def send(project: ProbeProject, *kinds: str) -> list[str]:
    """Before there is a worker, so that they are received together: after one that shows the worker
    how short they are. Before that it holds nothing ahead of its processes."""
    project.send("together", "fine")
    return [project.send("together", kind) for kind in kinds]


def together(project: ProbeProject, id_: str) -> list[int]:
    """With how many each run of a message was, itself included."""
    return [line["size"] for line in project.events(id_, "together")]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.contract
def test_each_message_of_a_batch_has_its_own_outcome(make_project: MakeProject, pool: str) -> None:
    project = make_project()
    ids = send(project, "fail", "forbid", *["fine"] * (COUNT - 2))
    worker = project.start("--pool", pool, "-c", "1")
    project.wait_for_empty_queue()

    failed, forbidden, *_ = ids
    sizes = {id_: together(project, id_) for id_ in ids}
    # What found no room beside the others, if any, ran alone, and so did what failed, once more.
    alone = [id_ for id_ in ids if not sizes[id_]]
    assert len(alone) <= 1
    assert all(len(sizes[id_]) == 1 and 10 <= sizes[id_][0] <= 20 for id_ in set(ids) - set(alone))
    ends = {id_: len(project.events(id_, "end")) for id_ in ids}
    assert ends == dict.fromkeys(ids, 0) | dict.fromkeys([failed, *alone], 1)
    assert [line["retries"] for line in project.events(failed, "start")] == [1]
    notes = project.notes()
    assert notes.keys() == {forbidden}
    assert notes[forbidden]["reason"] == "this can never work"
    assert project.stop(worker) == 0


@pytest.mark.slow
@pytest.mark.contract
def test_a_message_that_takes_its_process_along_is_dead_lettered_and_no_other(
    make_project: MakeProject,
) -> None:
    project = make_project()
    deadly, *others = send(project, "die", *["fine"] * 5)
    project.start("-c", "1")
    project.wait_for_empty_queue()

    assert project.notes().keys() == {deadly}
    assert project.notes()[deadly]["error"] == "WorkerLostError"
    assert [len(project.events(id_, "end")) for id_ in others] == [1] * 5


@pytest.mark.slow
@pytest.mark.contract
def test_a_batch_past_its_hard_limit_is_killed_and_each_message_runs_again_alone(
    make_project: MakeProject,
) -> None:
    project = make_project(celery={"task_soft_time_limit": None, "task_time_limit": 1})
    hanging, *others = send(project, "hang", *["fine"] * 3)
    project.start("-c", "1")
    project.wait_for_empty_queue()

    assert project.notes().keys() == {hanging}
    assert project.notes()[hanging]["error"] == "TimeLimitExceeded"
    assert [len(project.events(id_, "end")) for id_ in others] == [1] * 3
