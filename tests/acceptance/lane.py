"""A worker whose messages are plain (sqs_broker/worker/plain.py), with a proxy before SQS, and a
client that controls it and hears its events.
"""

import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from celery import Celery
from pymongo import MongoClient

from sqs_broker.control import planes
from tests.acceptance.test_remote_control import client_of
from tests.acceptance.worker import Place, Service, serving
from tests.faults import proxy
from tests.faults.proxy import FaultProxy
from tests.services import wait_until

NAME = "lane@test"

#: Seconds for what follows from something.
PATIENCE = 60

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"

#: The largest batch of a call to SQS.
TEN = 10

RECEIVE = "ReceiveMessage"


@dataclass
class Lane:
    """The worker, and all it works with."""

    service: Service
    client: Celery
    mongo: MongoClient[dict[str, Any]]
    faults: FaultProxy
    events: list[tuple[str, str]]
    #: SQS's id of each message that was sent here, by its own.
    sqs_ids: dict[str, str] = field(default_factory=dict)

    # Sending

    def send(self, mark: str, count: int = TEN) -> list[str]:
        """Put registrations on the queue, ten a call; their ids."""
        ids = [f"{mark}-{number:02}" for number in range(count)]
        self.send_bodies([(id_, registration(id_)) for id_ in ids])
        return ids

    def send_bodies(self, messages: Sequence[tuple[str, str]]) -> None:
        """Put bodies on the queue, each with the id that it has."""
        sent = self.service.send_many([(body, {}) for _, body in messages])
        self.sqs_ids |= dict(zip((id_ for id_, _ in messages), sent, strict=True))

    @contextmanager
    def received_together(self) -> Iterator[None]:
        """What is sent in the block is received by one call after it, if it is not more than ten
        messages."""
        self.faults.hold(RECEIVE)
        # A call that has passed the proxy could take some of them.
        self.wait_for(lambda: self.faults.is_holding(RECEIVE), "a call that waits")
        yield
        self.faults.let_go(RECEIVE)

    def send_together(self, mark: str) -> list[str]:
        """Put ten registrations on the queue, which one call receives; their ids."""
        with self.received_together():
            return self.send(mark)

    # Waiting

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        return self.service.worker.wait_for(condition, PATIENCE, what)

    def running(self, mark: str) -> set[str]:
        """The ids of all messages that run, by their events."""
        started = {uuid for type_, uuid in list(self.events) if type_ == "task-started"}
        here = {id_ for id_ in started if id_.startswith(f"{mark}-")}
        return {id_ for id_ in here if self.of(id_)[-1] == "task-started"}

    def wait_for_a_job(self, mark: str, size: int = 2) -> set[str]:
        """Wait until a job of so many messages or more runs; the ids of all that run."""
        self.wait_for(lambda: len(self.running(mark)) >= size, "a job")
        return self.running(mark)

    def wait_for_events(self, type_: str, ids: Collection[str]) -> None:
        self.wait_for(lambda: set(self.events) >= {(type_, id_) for id_ in ids}, type_)

    def wait_for_lines(self, event: str, ids: Collection[str]) -> None:
        """Wait until each of these messages has a line of this event."""
        self.wait_for(lambda: {*self.lines(event, ids)} == {*ids}, event)

    def settle(self) -> None:
        """Returns once every message is settled."""
        self.wait_for(self.service.queues.is_empty, "an empty queue")

    # Looking

    def of(self, id_: str) -> list[str]:
        """The types of the events of a message."""
        return [type_ for type_, uuid in list(self.events) if uuid == id_]

    def registered(self, mark: str) -> list[str]:
        """The users that are stored, as often as they are."""
        found = self.service.database["users"].find({"user_id": {"$regex": f"^{mark}-"}})
        return sorted(user["user_id"] for user in found)

    def lines(self, event: str, ids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
        """The log's lines of this event about these messages, by their ids."""
        by_sqs_id = {self.sqs_ids[id_]: id_ for id_ in ids}
        found: dict[str, list[dict[str, Any]]] = {}
        for line in self.service.worker.log_lines(event):
            # A line about a lease knows SQS's id only.
            id_ = line.get("message_id") or by_sqs_id.get(line.get("sqs_message_id"))
            if id_ in ids:
                found.setdefault(id_, []).append(line)
        return found

    def figures(self, *names: str) -> list[int]:
        """The sums of these metrics so far; of one with many values, how many there are."""
        lines = [line for line in self.service.worker.log_lines() if "_aws" in line]
        values = [[line.get(name, 0) for line in lines] for name in names]
        return [sum(len(v) if isinstance(v, list) else v for v in each) for each in values]

    def assert_each_is_done_once(self, ids: Collection[str]) -> None:
        """Each of these registrations is stored, has one line that says that it is done, and
        nothing is left of it in a queue."""
        self.settle()
        self.wait_for_lines("message.done", ids)
        done = self.lines("message.done", ids)
        assert {id_: len(lines) for id_, lines in done.items()} == dict.fromkeys(ids, 1)
        for mark in {id_.rpartition("-")[0] for id_ in ids}:
            assert self.registered(mark) == sorted(i for i in ids if i.startswith(f"{mark}-"))
            assert self.service.dead_letters(f"{mark}-") == []

    def deliveries(self, ids: Collection[str]) -> dict[str, int]:
        """How often each message was received."""
        lines = self.lines("message.received", ids)
        return {id_: len(lines.get(id_, ())) for id_ in ids}

    # Trouble

    @contextmanager
    def slow_inserts(self, milliseconds: int, times: int | None = None) -> Iterator[None]:
        """MongoDB takes its time with users meanwhile; or with so many calls."""
        how = {"blockConnection": True, "blockTimeMS": milliseconds}
        with failing_inserts(self.mongo, self.service.database.name, times, **how):
            yield


def registration(id_: str, user: str | None = None, nickname: str = MARKER) -> str:
    """A message with this id, which registers the user with the same name, or another."""
    info = {"nickname": nickname, "introduction": MARKER}
    data = {"stockId": "s1", "userId": user or id_, "userInfo": info}
    return json.dumps({"id": id_, "action": "registerUser", "data": data})


@contextmanager
def failing_inserts(
    mongo: MongoClient[dict[str, Any]], database: str, times: int | None = None, **how: object
) -> Iterator[int]:
    """Writes of users fail or are slow until the end of the block, or so many times; `how` is the
    fail point's. Yields how often it was entered before.

    https://github.com/mongodb/mongo/wiki/The-%22failCommand%22-fail-point
    """
    data = {
        "failCommands": ["update", "insert", "findAndModify"],
        "namespace": f"{database}.users",
        **how,
    }
    mode: object = "alwaysOn" if times is None else {"times": times}
    made = mongo.admin.command("configureFailPoint", "failCommand", mode=mode, data=data)
    try:
        yield int(made["count"])
    finally:
        mongo.admin.command("configureFailPoint", "failCommand", mode="off")


@contextmanager
def lanes(
    where: Place,
    mongo: MongoClient[dict[str, Any]],
    home: Path,
    *arguments: str,
    **variables: str,
) -> Iterator[Lane]:
    """A worker with one process until the end of the block; it has done ten messages, so that it
    knows how short they are. `arguments` go to its command, `variables` to its environment."""
    if timeout := variables.get("SQS_VISIBILITY_TIMEOUT"):
        where.queues.client.set_queue_attributes(
            QueueUrl=where.queues.url, Attributes={"VisibilityTimeout": timeout}
        )
    with proxy.running(where.queues.endpoint_url) as (faults, url):
        given = {**where.environment, "AWS_ENDPOINT_URL": url, **variables}
        place = replace(where, environment=given)
        with serving(place, home, "-n", NAME, "-c", "1", *arguments) as service:
            control = {"database_uri": given["MONGO_URI"]}
            client = client_of(service, control | {"database": f"{where.database.name}_control"})
            with _events(client) as events:
                made = Lane(service, client, mongo, faults, events)
                made.wait_for_events("task-succeeded", made.send("first"))
                yield made
            client.close()
            for options in tuple(planes._planes):
                planes._planes.pop(options).close()


@contextmanager
def _events(client: Celery) -> Iterator[list[tuple[str, str]]]:
    """All events from now on: (type, id of the task)."""
    taken: list[tuple[str, str]] = []
    with client.connection_for_read() as connection:
        receiver = client.events.Receiver(
            connection,
            handlers={"*": lambda event: taken.append((event["type"], event.get("uuid", "")))},
        )
        thread = threading.Thread(target=receiver.capture, daemon=True)
        thread.start()
        wait_until(lambda: taken, PATIENCE, "a sign of life")
        yield taken
        receiver.should_stop = True
        thread.join(PATIENCE)
