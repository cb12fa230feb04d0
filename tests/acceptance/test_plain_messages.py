"""Jobs of several messages that need no request of Celery: whatever happens to them, each message
is seen, and ends, as a message that has one.
"""

import json
import os
import signal
from collections.abc import Iterator

import pytest
from pymongo import MongoClient

from tests.acceptance.lane import MARKER, NAME, PATIENCE, Lane, lanes
from tests.acceptance.worker import Place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lane(
    where: Place, mongo_client: MongoClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lane]:
    with lanes(where, mongo_client, tmp_path_factory.mktemp("lane") / "one") as made:
        yield made


def test_each_message_of_a_job_has_its_events_and_lines(lane: Lane) -> None:
    ids = lane.send("seen")
    lane.wait_for_events("task-succeeded", ids)
    lane.settle()
    for id_ in ids:
        assert lane.of(id_) == ["task-received", "task-started", "task-succeeded"]
    assert lane.registered("seen") == ids
    for event in ("message.received", "message.done"):
        assert {id_: len(each) for id_, each in lane.lines(event, ids).items()} == dict.fromkeys(
            ids, 1
        )
    ends = [line for lines in lane.lines("message.done", ids).values() for line in lines]
    assert all(line["run_seconds"] > 0 and line["attempt"] == 1 for line in ends)
    assert MARKER not in lane.service.worker.log_text()


def test_inspect_shows_each_message_of_a_job(lane: Lane) -> None:
    inspect = lane.client.control.inspect(destination=[NAME], timeout=PATIENCE)
    with lane.slow_inserts(3_000):
        ids = lane.send("shown")
        running = lane.wait_for_a_job("shown")
        active = inspect.active()[NAME]
        told = inspect.query_task(*ids)[NAME]
    assert {task["id"] for task in active} == running
    assert len({(task["worker_pid"], task["time_start"]) for task in active}) == 1
    assert {task["name"] for task in active} == {"registerUser"}
    assert all(task["kwargs"].startswith("{stock_id: 's1', user_id: 'shown-") for task in active)
    assert {id_ for id_, (state, _) in told.items() if state == "active"} == running
    assert {state for state, _ in told.values()} <= {"active", "reserved"}
    assert MARKER not in json.dumps([active, told])
    lane.wait_for_events("task-succeeded", ids)
    lane.settle()
    assert lane.registered("shown") == ids


def test_one_of_many_that_is_revoked_before_it_runs_does_not_run(lane: Lane) -> None:
    with lane.slow_inserts(3_000):
        # More than one job takes.
        ids = lane.send("revoked", 30)
        lane.wait_for_a_job("revoked")
        started = {id_ for type_, id_ in list(lane.events) if type_ == "task-started"}
        unwanted = next(id_ for id_ in ids if id_ not in started)
        lane.client.control.revoke(unwanted)
        lane.wait_for(lambda: "task-revoked" in lane.of(unwanted), "the event of it")
    lane.settle()
    assert lane.registered("revoked") == sorted({*ids} - {unwanted})
    assert lane.lines("task.revoked", ids).keys() == {unwanted}
    assert lane.service.dead_letters("revoked") == []


def test_a_job_whose_process_is_killed_runs_again_message_by_message(lane: Lane) -> None:
    with lane.slow_inserts(3_000):
        ids = lane.send("killed")
        running = lane.wait_for_a_job("killed")
        (pid,) = lane.service.worker.pool_pids()
        os.kill(pid, signal.SIGKILL)
        lane.wait_for_events("task-retried", [*running])
    lane.wait_for_events("task-succeeded", ids)
    lane.settle()
    assert lane.registered("killed") == ids
    assert lane.service.dead_letters("killed") == []
    retries = lane.lines("message.retry", ids)
    assert retries.keys() >= running
    assert {line["error"] for lines in retries.values() for line in lines} == {"WorkerLostError"}


def test_a_job_past_its_hard_limit_runs_again_message_by_message(lane: Lane) -> None:
    def limit(soft: float, hard: float) -> None:
        limits = {"task_name": "registerUser", "soft": soft, "hard": hard}
        lane.client.control.broadcast(
            "time_limit", arguments=limits, reply=True, destination=[NAME], timeout=PATIENCE
        )

    limit(2.0, 3.0)
    try:
        with lane.slow_inserts(5_000):
            ids = lane.send("late")
            running = lane.wait_for_a_job("late")
            # So the soft limit does not end it.
            (pid,) = lane.service.worker.pool_pids()
            os.kill(pid, signal.SIGSTOP)
            lane.wait_for_events("task-retried", [*running])
    finally:
        limit(25.0, 30.0)
    lane.wait_for_events("task-succeeded", ids)
    lane.settle()
    assert lane.registered("late") == ids
    assert lane.service.dead_letters("late") == []
    # The limit may be the fault of MongoDB, so the end of a run is not always a retry.
    assert min(lane.deliveries(running).values()) > 1


def test_a_stop_lets_a_job_finish(lane: Lane) -> None:
    with lane.slow_inserts(3_000):
        ids = lane.send("stopped")
        running = lane.wait_for_a_job("stopped")
        assert lane.service.worker.stop() == 0
    done = lane.lines("message.done", ids).keys()
    released = lane.lines("message.released", ids).keys()
    assert done >= running
    assert lane.registered("stopped") == sorted(done)
    assert released <= {*ids} - done
