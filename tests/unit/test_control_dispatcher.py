"""Dispatcher: an event is no work where it happens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from celery import Celery
from celery.events.dispatcher import EventDispatcher
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import Consumer, Exchange, Queue

from sqs_broker import install
from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.dispatcher import MOST_TOGETHER, send_all
from tests.unit.conftest import GivePlane


class Writer:
    """Stands where the shared writer stands."""

    def __init__(self) -> None:
        self.put: list[Broadcast] = []
        self.on_put: Callable[[], None] = lambda: None

    def put_events(self, message: Broadcast) -> None:
        self.put.append(message)
        self.on_put()

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


FIELDS = {"uuid": "id-1", "name": "registerUser", "retries": 0, "eta": None}


@pytest.mark.parametrize("given", [{}, {"timestamp": 5.0}, {"retry": True, "blind": True}], ids=str)
def test_an_event_of_a_task_is_that_of_celerys_dispatcher(
    dispatcher: MakeDispatcher, writer: Writer, given: dict[str, Any]
) -> None:
    ours = dispatcher(buffer_group=["task"])
    stock: Any = EventDispatcher(
        ours.connection, hostname="one@host", buffer_group=["task"], app=ours.app
    )
    before = ours.clock.value
    for sender in (ours, stock):
        sender.send("task-received", **FIELDS, **given)
    ours.flush()
    (event,) = writer.put[0].body
    (theirs,) = stock._group_buffer["task"]
    assert [event.pop("clock"), theirs.pop("clock")] == [before + 1, before + 2]
    if "timestamp" not in given:
        assert abs(event.pop("timestamp") - theirs.pop("timestamp")) < 30
    assert event == theirs


fields = st.dictionaries(
    st.sampled_from(["uuid", "result", "runtime", "timestamp", "hostname", "clock", "pid"]),
    st.integers() | st.text(max_size=3) | st.none(),
)


@settings(
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    each=st.lists(fields, max_size=5),
    is_gathered=st.booleans(),
    groups=st.sampled_from([None, ["task"], ["worker"]]),
    is_enabled=st.booleans(),
)
def test_events_that_are_sent_at_once_are_those_that_are_sent_one_by_one(
    dispatcher: MakeDispatcher,
    writer: Writer,
    each: list[dict[str, Any]],
    is_gathered: bool,
    groups: list[str] | None,
    is_enabled: bool,
) -> None:
    if not is_gathered:  # Celery's own `send` takes no second value of these.
        own = ("hostname", "clock", "pid")
        each = [{n: value for n, value in some.items() if n not in own} for some in each]

    counted: list[int] = []

    def sent(send: Callable[[Any], None]) -> list[dict[str, Any]]:
        sender = dispatcher(buffer_group=["task"] if is_gathered else [], groups=groups)
        if not is_enabled:
            sender.disable()
        before, writer.put = sender.clock.value, []
        send(sender)
        counted.append(sender.clock.value - before)
        sender.enable()
        sender.flush()
        bodies = [message.body for message in writer.put]
        events = [e for body in bodies for e in (body if isinstance(body, list) else [body])]
        for event in events:
            event["clock"] -= before
            if isinstance(event["timestamp"], float):
                event["timestamp"] = "now"
        return events

    def one_by_one(sender: Any) -> None:
        for some in each:
            sender.send("task-succeeded", **some)

    at_once = sent(lambda sender: send_all(sender, "task-succeeded", each))
    assert at_once == sent(one_by_one)
    assert counted == [len(at_once)] * 2
    assert len(at_once) == (len(each) if is_enabled and groups != ["worker"] else 0)


def test_events_that_are_sent_at_once_wait_for_no_more_than_a_full_message(
    dispatcher: MakeDispatcher, writer: Writer
) -> None:
    sender = dispatcher(buffer_group=["task"])
    for _ in range(2):
        send_all(sender, "task-started", [{"uuid": "id"}] * (MOST_TOGETHER - 10))
    sender.flush()
    assert [len(message.body) for message in writer.put] == [MOST_TOGETHER - 10] * 2


def test_many_events_of_tasks_ask_for_one_flush(dispatcher: MakeDispatcher, writer: Writer) -> None:
    asked: list[int] = []
    sender = dispatcher(buffer_group=["task"], on_send_buffered=lambda: asked.append(1))
    for turn in (1, 2):
        for number in range(30):
            sender.send("task-started", uuid=f"id-{number}")
        assert len(asked) == turn
        sender.flush()
    assert [len(message.body) for message in writer.put] == [30, 30]


def test_an_event_that_comes_during_a_flush_asks_for_another(
    dispatcher: MakeDispatcher, writer: Writer
) -> None:
    asked: list[int] = []
    sender = dispatcher(buffer_group=["task"], on_send_buffered=lambda: asked.append(1))
    sender.send("task-started", uuid="id-1")
    writer.on_put = lambda: sender.send("task-started", uuid="id-2")
    sender.flush()
    writer.on_put = lambda: None
    assert len(asked) == 2
    sender.flush()
    assert [event["uuid"] for message in writer.put for event in message.body] == ["id-1", "id-2"]


def test_events_wait_for_no_more_than_a_full_message(
    dispatcher: MakeDispatcher, writer: Writer
) -> None:
    sender = dispatcher(buffer_group=["task"])
    for number in range(MOST_TOGETHER):
        assert writer.put == []
        sender.send("task-started", uuid=f"id-{number}")
    assert len(writer.put[0].body) == MOST_TOGETHER


@pytest.mark.parametrize("change", ["disabled", "another group"])
def test_an_event_that_nobody_wants_is_not_kept(
    dispatcher: MakeDispatcher, writer: Writer, change: str
) -> None:
    sender = dispatcher(buffer_group=["task"], groups=["worker"] if change != "disabled" else None)
    if change == "disabled":
        sender.disable()
    sender.send("task-started", uuid="id-1")
    sender.enable()
    sender.flush()
    assert writer.put == []


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
