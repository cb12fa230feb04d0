"""Dispatcher: an event is no work where it happens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from celery import Celery
from kombu import Consumer, Exchange, Queue

from sqs_broker import install
from sqs_broker.control.broadcast import Broadcast
from tests.unit.conftest import GivePlane


class Writer:
    """Stands where the shared writer stands."""

    def __init__(self) -> None:
        self.put: list[Broadcast] = []

    def put_events(self, message: Broadcast) -> None:
        self.put.append(message)

    def flush(self) -> None: ...


MakeDispatcher = Callable[..., Any]


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def dispatcher(give_plane: GivePlane, writer: Writer) -> MakeDispatcher:
    """Makes dispatchers of events, as a worker has one."""
    address = give_plane(writer=writer)
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.broker_transport_options = {
        "region": "us-east-1",
        "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
        "control": {"database_uri": address.uri, "database": address.database},
    }
    return partial(app.events.Dispatcher, app.connection_for_write(), hostname="one@host")


def test_an_event_is_handed_over_as_it_is(dispatcher: MakeDispatcher, writer: Writer) -> None:
    dispatcher().send("worker-heartbeat", active=1)
    (message,) = writer.put
    assert (message.exchange, message.routing_key) == ("celeryev", "worker.heartbeat")
    assert message.headers == {"hostname": "one@host"}
    assert (message.body["type"], message.body["active"]) == ("worker-heartbeat", 1)


def test_events_of_tasks_are_handed_over_together(
    dispatcher: MakeDispatcher, writer: Writer
) -> None:
    sender = dispatcher(buffer_group=["task"])
    for number in range(3):
        sender.send("task-started", uuid=f"id-{number}")
    assert writer.put == []
    sender.flush()
    (message,) = writer.put
    assert message.routing_key == "task.multi"
    assert [event["uuid"] for event in message.body] == ["id-0", "id-1", "id-2"]
    # What is sent later must not turn up in what was given away.
    sender.send("task-started", uuid="id-3")
    assert len(message.body) == 3


def test_a_dispatcher_of_another_broker_goes_its_own_way() -> None:
    app = Celery("tests", set_as_current=False, broker="memory://")
    app.events_cls = "sqs_broker.control.dispatcher:Events"
    got: list[Any] = []
    with app.connection_for_write() as connection:
        events = Exchange("celeryev", type="topic")
        queue = Queue("celeryev.heard", events, routing_key="#", auto_delete=True)
        with Consumer(connection, [queue], on_message=got.append, no_ack=True):
            app.events.Dispatcher(connection, hostname="one@host").send("worker-online")
            connection.drain_events(timeout=5)
    assert got[0].payload["type"] == "worker-online"
