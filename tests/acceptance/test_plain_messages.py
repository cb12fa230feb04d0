"""Jobs of several messages that need no request of Celery: whatever happens to them, each message
is seen, and ends, as a message that has one.
"""

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from pymongo import MongoClient
from pymongo.database import Database

from sqs_broker.control import planes
from tests.acceptance.test_remote_control import client_of
from tests.acceptance.worker import Place, Service, serving
from tests.services import wait_until

pytestmark = pytest.mark.slow

NAME = "lane@test"

#: Seconds for what follows from something.
PATIENCE = 60

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


@dataclass
class Lane:
    """A worker with one process, and a client that controls it."""

    service: Service
    client: Celery
    control: Database[dict[str, Any]]
    events: list[tuple[str, str]]

    def send(self, mark: str, count: int = 10) -> list[str]:
        """Put registrations on the queue, ten a call; their ids."""
        ids = [f"{mark}-{number:02}" for number in range(count)]
        self.service.send_many([(_body(id_), {}) for id_ in ids])
        return ids

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        return self.service.worker.wait_for(condition, PATIENCE, what)

    def wait_for_a_job(self, mark: str) -> set[str]:
        """Wait until a job of several messages runs; the ids of all that run."""

        def running() -> set[str]:
            ids = {uuid for type_, uuid in list(self.events) if type_ == "task-started"}
            return {id_ for id_ in ids if id_.startswith(f"{mark}-") and len(self.of(id_)) == 2}

        self.wait_for(lambda: len(running()) > 1, "a job")
        return running()

    def wait_for_events(self, type_: str, ids: Sequence[str]) -> None:
        self.wait_for(lambda: set(self.events) >= {(type_, id_) for id_ in ids}, type_)

    def of(self, id_: str) -> list[str]:
        """The types of the events of a message."""
        return [type_ for type_, uuid in list(self.events) if uuid == id_]

    def registered(self, mark: str) -> set[str]:
        found = self.service.database["users"].find({"user_id": {"$regex": f"^{mark}-"}})
        return {user["user_id"] for user in found}

    def lines(self, event: str, mark: str) -> list[dict[str, Any]]:
        lines = self.service.worker.log_lines(event)
        return [line for line in lines if str(line.get("message_id")).startswith(f"{mark}-")]

    @contextmanager
    def slow_inserts(self, milliseconds: int) -> Iterator[None]:
        """MongoDB takes its time with users meanwhile."""
        admin = self.control.client.admin
        data = {
            "failCommands": ["update", "insert"],
            "namespace": f"{self.service.database.name}.users",
            "blockConnection": True,
            "blockTimeMS": milliseconds,
        }
        admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
        try:
            yield
        finally:
            admin.command("configureFailPoint", "failCommand", mode="off")


def _body(id_: str) -> str:
    info = {"nickname": MARKER, "introduction": MARKER}
    data = {"stockId": "s1", "userId": id_, "userInfo": info}
    return json.dumps({"id": id_, "action": "registerUser", "data": data})


@pytest.fixture(scope="module")
def lane(
    where: Place,
    mongo_client: MongoClient[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lane]:
    home = tmp_path_factory.mktemp("lane")
    uri, name = where.environment["MONGO_URI"], f"{where.database.name}_control"
    arguments = ("-n", NAME, "-c", "1")
    with serving(where, home / "one", *arguments) as service:
        client = client_of(service, {"database_uri": uri, "database": name})
        taken: list[tuple[str, str]] = []
        with client.connection_for_read() as connection:
            receiver = client.events.Receiver(
                connection,
                handlers={"*": lambda event: taken.append((event["type"], event.get("uuid", "")))},
            )
            thread = threading.Thread(target=receiver.capture, daemon=True)
            thread.start()
            wait_until(lambda: taken, PATIENCE, "a sign of life")
            made = Lane(service, client, mongo_client[name], taken)
            # After this the worker knows how short its jobs are.
            made.wait_for_events("task-succeeded", made.send("first", 10))
            yield made
            receiver.should_stop = True
            thread.join(PATIENCE)
        client.close()
        for options in tuple(planes._planes):
            planes._planes.pop(options).close()


def test_each_message_of_a_job_has_its_events_and_lines(lane: Lane) -> None:
    ids = lane.send("seen")
    lane.wait_for_events("task-succeeded", ids)
    lane.service.settle()
    for id_ in ids:
        assert lane.of(id_) == ["task-received", "task-started", "task-succeeded"]
    assert lane.registered("seen") == set(ids)
    for event in ("message.received", "message.done"):
        assert sorted(line["message_id"] for line in lane.lines(event, "seen")) == ids
    ends = {line["message_id"]: line for line in lane.lines("message.done", "seen")}
    assert all(line["run_seconds"] > 0 and line["attempt"] == 1 for line in ends.values())
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
    lane.service.settle()
    assert lane.registered("shown") == set(ids)


def test_one_of_many_that_is_revoked_before_it_runs_does_not_run(lane: Lane) -> None:
    with lane.slow_inserts(3_000):
        # More than one job takes.
        ids = lane.send("revoked", 30)
        lane.wait_for_a_job("revoked")
        started = {id_ for type_, id_ in list(lane.events) if type_ == "task-started"}
        unwanted = next(id_ for id_ in ids if id_ not in started)
        lane.client.control.revoke(unwanted)
        lane.wait_for(lambda: "task-revoked" in lane.of(unwanted), "the event of it")
    lane.service.settle()
    assert lane.registered("revoked") == {*ids} - {unwanted}
    assert [line["message_id"] for line in lane.lines("task.revoked", "revoked")] == [unwanted]
    assert lane.service.dead_letters("revoked") == []


def test_a_job_whose_process_is_killed_runs_again_message_by_message(lane: Lane) -> None:
    with lane.slow_inserts(3_000):
        ids = lane.send("killed")
        running = lane.wait_for_a_job("killed")
        (pid,) = lane.service.worker.pool_pids()
        os.kill(pid, signal.SIGKILL)
        lane.wait_for_events("task-retried", [*running])
    lane.wait_for_events("task-succeeded", ids)
    lane.service.settle()
    assert lane.registered("killed") == set(ids)
    assert lane.service.dead_letters("killed") == []
    retries = lane.lines("message.retry", "killed")
    assert {line["message_id"] for line in retries} >= running
    assert {line["error"] for line in retries} == {"WorkerLostError"}


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
    lane.service.settle()
    assert lane.registered("late") == set(ids)
    assert lane.service.dead_letters("late") == []
    # The limit may be the fault of MongoDB, so the end of a run is not always a retry.
    received = Counter(line["message_id"] for line in lane.lines("message.received", "late"))
    assert all(received[id_] > 1 for id_ in running)


def test_a_stop_lets_a_job_finish(lane: Lane) -> None:
    with lane.slow_inserts(3_000):
        ids = lane.send("stopped")
        running = lane.wait_for_a_job("stopped")
        assert lane.service.worker.stop() == 0
    done = {line["message_id"] for line in lane.lines("message.done", "stopped")}
    released = {line["message_id"] for line in lane.lines("message.released", "stopped")}
    assert done >= running
    assert lane.registered("stopped") == done
    assert released <= {*ids} - done
