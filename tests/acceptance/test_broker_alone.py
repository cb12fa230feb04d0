"""The broker in another Celery project, with real workers: what becomes of each kind of task."""

import os
import signal

import pytest
from celery import chain, group

from tests.probe.project import PATIENCE, MakeProject
from tests.services import Queues, wait_until

pytestmark = pytest.mark.slow

POOLS = ("prefork", "threads", "solo")


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.contract
def test_each_way_a_task_can_end_has_its_outcome(make_project: MakeProject, pool: str) -> None:
    project = make_project()
    worker = project.start("--pool", pool)

    done = project.send("work")
    twice = project.send("fail", 2)
    always = project.send("fail", 99)
    forbidden = project.send("forbid")
    rejected = project.send("reject")
    requeued = project.send("reject", True)
    fewer = project.send("fail_at_once")
    auto = project.send("autoretry")
    later = project.send("retry_in", 1)
    unknown = project.send("no_such_task")
    project.wait_for_empty_queue()

    starts = {id_: len(project.events(id_, "start")) for id_ in (done, twice, always, forbidden)}
    assert starts == {done: 1, twice: 3, always: 3, forbidden: 1}
    assert [line["retries"] for line in project.events(twice, "start")] == [0, 1, 2]
    assert all(project.events(id_, "end") for id_ in (done, twice, auto, later))
    first, second = project.events(later, "start")
    assert second["at"] - first["at"] >= 1
    notes = project.notes()
    assert notes.keys() == {always, forbidden, rejected, requeued, fewer, unknown}
    assert (notes[forbidden]["reason"], notes[forbidden]["error"]) == (
        "this can never work",
        "Forbidden",
    )
    assert notes[rejected]["reason"] == "not for me"
    assert notes[always]["error"] == "ValueError"
    assert [notes[id_]["deliveries"] for id_ in (always, forbidden, rejected, requeued, fewer)] == [
        3, 1, 1, 3, 1,
    ]  # fmt: skip
    assert "unknown task" in notes[unknown]["reason"]
    assert "marker-in-an-exception" not in str(notes)
    assert "raised unexpected: ValueError(...)" in project.worker_log()
    # A line of the code is in it, and the text of the exception is not.
    said = project.worker_log().replace('raise ValueError("marker-in-an-exception")', "")
    assert "marker-in-an-exception" not in said
    assert project.stop(worker) == 0


@pytest.mark.contract
def test_a_task_whose_process_dies_runs_again(make_project: MakeProject) -> None:
    project = make_project()
    project.start()

    id_ = project.send("die", 2)
    project.wait_for_end(id_)

    assert len(project.events(id_, "start")) == 3
    assert project.queues.dead_letters() == []


@pytest.mark.contract
def test_a_task_whose_process_dies_each_time_is_dead_lettered(make_project: MakeProject) -> None:
    project = make_project()
    project.start()

    id_ = project.send("die", 99)
    project.wait_for_empty_queue()

    assert len(project.events(id_, "start")) == 3
    assert project.notes()[id_]["error"] == "WorkerLostError"


@pytest.mark.contract
def test_a_task_past_its_hard_limit_is_killed_and_retried(make_project: MakeProject) -> None:
    project = make_project(celery={"task_soft_time_limit": None, "task_time_limit": 1})
    project.start()

    id_ = project.send("work", 20)
    project.wait_for_empty_queue()

    assert len(project.events(id_, "start")) == 3
    assert project.events(id_, "end") == []
    assert project.notes()[id_]["error"] == "TimeLimitExceeded"


@pytest.mark.contract
def test_a_task_past_its_soft_limit_is_told_and_retried(make_project: MakeProject) -> None:
    project = make_project(celery={"task_soft_time_limit": 1, "task_time_limit": 20})
    project.start()

    id_ = project.send("work", 15)
    project.wait_for_empty_queue()

    assert len(project.events(id_, "start")) == 3
    assert project.notes()[id_]["error"] == "SoftTimeLimitExceeded"


@pytest.mark.contract
def test_a_call_may_ask_for_less_time_than_its_task_has_and_not_for_more(
    make_project: MakeProject,
) -> None:
    project = make_project(celery={"task_soft_time_limit": None, "task_time_limit": 4})
    project.start()

    less = project.send("work", 3, time_limit=1)
    more = project.send("work", 20, time_limit=60)
    none = project.send("work", 0.2, time_limit=1e-9, soft_time_limit=1e-9)
    project.wait_for_empty_queue()

    assert {id_: note["error"] for id_, note in project.notes().items()} == dict.fromkeys(
        [less, more], "TimeLimitExceeded"
    )
    # Too short a limit does not kill its process before the task has begun.
    assert [len(project.events(none, event)) for event in ("start", "end")] == [1, 1]


@pytest.mark.parametrize("queues", [{"visibility_timeout": 5}], indirect=True)
def test_a_killed_worker_loses_nothing(make_project: MakeProject) -> None:
    project = make_project(transport={"visibility_timeout": 5}, celery={"task_time_limit": 4})
    worker = project.start()
    id_ = project.send("work", 3)
    wait_until(lambda: project.events(id_, "start"), PATIENCE, "the start")

    os.killpg(worker.pid, signal.SIGKILL)
    project.start()
    project.wait_for_end(id_)

    starts = project.events(id_, "start")
    assert [line["redelivered"] for line in starts] == [False, True]


@pytest.mark.contract
def test_a_countdown_waits_in_sqs(make_project: MakeProject) -> None:
    project = make_project()
    project.start()

    id_ = project.send("work", countdown=2)

    wait_until(lambda: project.queues.counts()[2] == 1, PATIENCE, "a delayed message")
    project.wait_for_end(id_)
    assert len(project.events(id_, "start")) == 1


@pytest.mark.parametrize("queues", [{"visibility_timeout": 5}], indirect=True)
def test_a_task_longer_than_its_lease_runs_once(make_project: MakeProject) -> None:
    limits = {"task_soft_time_limit": 29, "task_time_limit": 30}
    project = make_project(transport={"visibility_timeout": 5}, celery=limits)
    project.start()

    id_ = project.send("work", 15)
    project.wait_for_end(id_)

    assert len(project.events(id_, "start")) == 1


@pytest.mark.contract
def test_chains_groups_and_links_run_to_their_end(make_project: MakeProject) -> None:
    project = make_project()
    project.start()

    chain(project.signature("work") for _ in range(3)).apply_async()
    group([project.signature("work") for _ in range(2)]).apply_async()
    project.signature("work").apply_async(link=project.signature("work"))
    wait_until(lambda: len(project.events(event="end")) == 7, PATIENCE, "seven ends")

    project.wait_for_empty_queue()
    assert len(project.events(event="start")) == 7


def test_purge_empties_the_queue(make_project: MakeProject) -> None:
    project = make_project()
    for _ in range(3):
        project.send("work")

    project.run("purge", "-f")

    wait_until(project.queues.is_empty, PATIENCE, "an empty queue")


@pytest.mark.contract
def test_call_sends_a_task(make_project: MakeProject) -> None:
    project = make_project()
    project.start()

    project.run("call", "probe.work")

    wait_until(lambda: project.events(event="end"), PATIENCE, "the end")


def test_a_worker_whose_dead_letters_come_back_says_so_and_receives_nothing(
    make_project: MakeProject, queues: Queues
) -> None:
    own = {"url": queues.url, "dead_letter_url": f"{queues.url}/"}
    project = make_project(transport={"predefined_queues": {queues.name: own}})
    project.send("work")

    ran = project.run("worker", "--pool", "solo", check=False)

    assert ran.returncode == 1
    *_, line = ran.stderr.decode().strip().splitlines()  # Celery warns root before it.
    assert "Traceback" not in ran.stderr.decode()
    assert "predefined_queues: dead letters go round in a loop" in line
    assert project.events() == []
    assert queues.counts() == (1, 0, 0)
