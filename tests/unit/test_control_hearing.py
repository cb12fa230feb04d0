"""Hearing the control plane where this machine has no room for the thread that reads it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from bson import Timestamp
from kombu import Connection, Exchange, Queue

from sqs_broker.control.waiting import OLDEST
from sqs_broker.errors import NoThread
from tests.unit.conftest import GivePlane, Machine

#: Seconds that nothing here comes near to.
DEADLINE = 5

COMMANDS = Queue("w@h.celery.pidbox", Exchange("celery.pidbox", "fanout"))
EVENTS = Queue("celeryev.1", Exchange("celeryev", "topic"), routing_key="#")


class Store:
    """Gives each reader one message, and then nothing until the end."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def stream(self, _: str) -> "Store":
        return self

    def newest(self) -> Timestamp:
        return Timestamp(100, 1)

    @contextmanager
    def read_on(self, exchange: str, _: Timestamp) -> Iterator[Any]:
        document = {"_id": 1, "at": Timestamp(101, 1), "routing_key": "", "headers": {}}
        yield self._cursor(document | {"body": "{}"})

    def _cursor(self, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield document
        self.ended.wait(DEADLINE)

    def close(self) -> None:
        self.ended.set()


class Loop:
    """Keeps what is to be called again and again."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def add_reader(self, *_: Any) -> None: ...

    def call_repeatedly(self, _: float, call: Any) -> None:
        self.calls.append(call)


@pytest.fixture
def connection(give_plane: GivePlane) -> Iterator[Connection]:
    """A connection whose control plane has a store of ours."""
    address = give_plane(Store())
    options = {
        "region": "us-east-1",
        "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
        "control": {"database_uri": address.uri, "database": address.database},
    }
    made = Connection("sqs://", transport="sqs_broker:Transport", transport_options=options)
    yield made
    made.release()


def listen(connection: Connection, queue: Queue, got: list[Any]) -> None:
    channel = connection.channel()
    queue(channel).declare()
    channel.basic_consume(queue.name, True, got.append, f"tag-{queue.name}-{len(got)}")


def test_a_worker_goes_on_without_commands_until_there_is_room(
    connection: Connection, machine: Machine
) -> None:
    machine.has_no_room_for("control-")
    got: list[Any] = []
    listen(connection, COMMANDS, got)
    loop = Loop()
    connection.transport.register_with_event_loop(connection.connection, loop)
    machine.has_room()
    for call in loop.calls:
        call()
    connection.drain_events(timeout=DEADLINE)
    assert len(got) == 1


def test_a_worker_that_cancels_before_there_is_room_hears_nothing(
    connection: Connection, machine: Machine
) -> None:
    machine.has_no_room_for("control-")
    before = set(threading.enumerate())
    listen(connection, COMMANDS, [])
    connection.transport.control.cancel(COMMANDS.name)
    machine.has_room()
    connection.transport.control.retry_readers()
    assert set(threading.enumerate()) <= before


def test_who_waits_for_events_is_told_and_can_try_again(
    connection: Connection, machine: Machine
) -> None:
    got: list[Any] = []
    machine.has_no_room_for("control-")
    with pytest.raises(NoThread, match="control-celeryev"):
        listen(connection, EVENTS, got)
    machine.has_room()
    listen(connection, EVENTS, got)
    connection.drain_events(timeout=DEADLINE)
    assert len(got) == 1


def test_an_event_that_has_waited_for_too_long_is_not_passed_on(connection: Connection) -> None:
    got: list[Any] = []
    listen(connection, EVENTS, got)
    transport = connection.transport
    assert transport.inbox.wait(DEADLINE)
    now = transport.clock()
    transport.clock = lambda: now + OLDEST + 1
    connection.drain_events(timeout=DEADLINE)
    assert got == []
