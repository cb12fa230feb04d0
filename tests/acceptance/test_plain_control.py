"""What operators tell a worker while a job of plain messages runs: the job is not disturbed, or
each of its messages runs again."""

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient

from sqs_broker.options import Options
from sqs_broker.tools.pauses import pause_queue, resume_queue
from tests.acceptance.lane import NAME, PATIENCE, TEN, Lane, lanes
from tests.acceptance.worker import Place

pytestmark = pytest.mark.slow

#: Milliseconds of a job.
LONG = 1_200

Told = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def lane(
    where: Place, mongo_client: MongoClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lane]:
    home = tmp_path_factory.mktemp("lane") / "one"
    with lanes(where, mongo_client, home, "-c", "2") as made:
        yield made


def tell(lane: Lane, command: str, **arguments: Any) -> Any:
    """Give the worker a command; its answer."""
    (answer,) = lane.client.control.broadcast(
        command, arguments=arguments, reply=True, destination=[NAME], timeout=PATIENCE
    )
    return answer[NAME]


def task(**arguments: Any) -> dict[str, Any]:
    return {"task_name": "registerUser", **arguments}


#: What is told while a job runs, what is told after it, and what the first answer says.
PAIRS: dict[str, tuple[Told, Told, str]] = {
    "shrunk": (("pool_shrink", {"n": 1}), ("pool_grow", {"n": 1}), "pool will shrink"),
    "grown": (("pool_grow", {"n": 1}), ("pool_shrink", {"n": 1}), "pool will grow"),
    "silent": (("disable_events", {}), ("enable_events", {}), "disabled"),
    "limited": (
        ("time_limit", task(soft=5.0, hard=10.0)),
        ("time_limit", task(soft=25.0, hard=30.0)),
        "time limits set",
    ),
    "slowed": (
        ("rate_limit", task(rate_limit="100/s")),
        ("rate_limit", task(rate_limit="0")),
        "rate limit set",
    ),
}


def is_undisturbed(lane: Lane, mark: str, ids: list[str]) -> bool:
    """Each message is done, in its first delivery and attempt."""
    lane.assert_each_is_done_once(ids)
    done = lane.lines("message.done", ids)
    first = {(line["deliveries"], line["attempt"]) for lines in done.values() for line in lines}
    return first == {(1, 1)} and lane.deliveries(ids) == dict.fromkeys(ids, 1)


@pytest.mark.parametrize("mark", PAIRS)
def test_what_is_told_while_a_job_runs_does_not_disturb_it_nor_the_next(
    lane: Lane, mark: str
) -> None:
    (first, with_what), (then, with_that), said = PAIRS[mark]
    with lane.slow_inserts(LONG):
        ids = lane.send_together(mark)
        lane.wait_for_a_job(mark, TEN)
        answer = tell(lane, first, **with_what)
        next_ids = lane.send(f"{mark}2")
    assert said in answer["ok"]
    assert is_undisturbed(lane, mark, ids)
    assert is_undisturbed(lane, f"{mark}2", next_ids)
    assert "ok" in tell(lane, then, **with_that)
    last_ids = lane.send(f"{mark}3")
    lane.wait_for_events("task-succeeded", last_ids)
    assert is_undisturbed(lane, f"{mark}3", last_ids)


def test_a_queue_that_is_cancelled_while_a_job_runs_gets_its_outcomes(lane: Lane) -> None:
    queue = lane.service.queues.name
    with lane.slow_inserts(LONG):
        ids = lane.send_together("cancelled")
        lane.wait_for_a_job("cancelled", TEN)
        assert "ok" in tell(lane, "cancel_consumer", queue=queue)
        lane.wait_for_events("task-succeeded", ids)
    assert is_undisturbed(lane, "cancelled", ids)
    later = lane.send("consumed")
    assert "ok" in tell(lane, "add_consumer", queue=queue)
    lane.assert_each_is_done_once(later)


def test_a_queue_that_is_paused_while_a_job_runs_gets_its_outcomes(lane: Lane) -> None:
    options = Options.read(lane.client.conf.broker_transport_options)
    queue, worker = lane.service.queues.name, lane.service.worker
    # A worker reads the pauses every few seconds.
    with lane.slow_inserts(7_000):
        ids = lane.send_together("paused")
        lane.wait_for_a_job("paused", TEN)
        for _ in pause_queue(options, queue, "a test", "tests"):
            pass
        lane.wait_for(lambda: worker.log_lines("queue.paused"), "the pause")
        assert lane.running("paused") == {*ids}
    assert is_undisturbed(lane, "paused", ids)
    later = lane.send("resumed")
    for _ in resume_queue(options, queue, "a test", "tests"):
        pass
    lane.assert_each_is_done_once(later)


def test_a_revoke_of_one_that_runs_changes_nothing(lane: Lane) -> None:
    with lane.slow_inserts(LONG):
        ids = lane.send_together("revoked")
        lane.wait_for_a_job("revoked", TEN)
        tell(lane, "revoke", task_id=ids[4])
        tell(lane, "query_task", ids=ids)
    assert is_undisturbed(lane, "revoked", ids)
    lane.wait_for(lambda: all(lane.of(id_) == SUCCESS for id_ in ids), "all events")


SUCCESS = ["task-received", "task-started", "task-succeeded"]


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_of_a_job_in_which_one_is_terminated_each_other_message_runs_again(
    lane: Lane, signal: str
) -> None:
    mark = f"ended{signal}"
    with lane.slow_inserts(5_000):
        ids = lane.send_together(mark)
        lane.wait_for_a_job(mark, TEN)
        tell(lane, "revoke", task_id=ids[4], terminate=True, signal=signal)
        others = [id_ for id_ in ids if id_ != ids[4]]
        lane.wait_for_lines("message.released", others)
    lane.settle()
    lane.wait_for_lines("message.done", ids)
    assert lane.service.dead_letters(f"{mark}-") == []
    assert {*lane.registered(mark)} >= {*others}
    assert lane.lines("task.revoked", ids).keys() == {ids[4]}
    again = [*SUCCESS[:2], "task-rejected", "task-retried", *SUCCESS]
    lane.wait_for(lambda: all(lane.of(i)[-1] == "task-succeeded" for i in others), "all events")
    assert {i: lane.of(i) for i in others} == dict.fromkeys(others, again)
    assert lane.of(ids[4]) == [*SUCCESS[:2], "task-revoked"]
    # It was not their fault.
    done = lane.lines("message.done", others)
    assert {line["attempt"] for lines in done.values() for line in lines} == {1}
