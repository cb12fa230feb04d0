"""Consumer: only what can run gets to a task, and of what cannot nothing is logged but why."""

import gc
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import InvalidTaskError
from celery.worker import WorkController
from kombu.exceptions import ContentDisallowed
from kombu.transport import virtual

from app.broker.consumer import Consumer
from app.broker.decoding import decode
from app.broker.message import Message
from app.broker.options import ForeignMessage
from app.broker.outcomes import Refused
from app.broker.policy import Policy
from app.messages import Registration
from tests.unit.conftest import MakeDelivery

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


class Channel(virtual.Channel):
    """Notes what is rejected. It has no connection."""

    def __init__(self) -> None:
        self.rejected: list[bool] = []

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self.rejected.append(requeue)


class Strategy:
    """Takes what Celery would give to the pool."""

    def __init__(self) -> None:
        self.taken: list[Message] = []
        self.fault: Exception | None = None

    def __call__(self, message: Message, *_: Any) -> None:
        if self.fault:
            raise self.fault
        self.taken.append(message)


class Stop:
    """Notes what it is told, in the place of the consumer's Shutdown."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def listen(self) -> None:
        self.told.append("listen")

    def drain(self) -> None:
        self.told.append("drain")


@pytest.fixture
def celery_app() -> Celery:
    """An app with a task that has a message model and one that has none."""
    app = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    app.conf.broker_transport_options = {
        "region": "us-east-1",
        "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
    }

    @app.task(shared=False, name="typed", model=Registration)
    def typed(*_: Any) -> None: ...

    app.conf.update(task_time_limit=30, task_soft_time_limit=25)

    @app.task(shared=False, name="plain")
    def plain(*_: Any) -> None: ...

    return app


@pytest.fixture
def strategy() -> Strategy:
    return Strategy()


@pytest.fixture
def consumer(celery_app: Celery, strategy: Strategy) -> Consumer:
    """A consumer without the worker around it, which its constructor wants."""
    made = object.__new__(Consumer)
    made.app = celery_app
    made.connection_errors = ()
    made.on_task_message = set()
    made.strategies = dict.fromkeys(("typed", "plain"), strategy)
    made.restart_count = 0
    made._maximum_prefetch_restored = True
    made.connection = None
    made._shutdown = Stop()
    return made


@pytest.fixture(autouse=True)
def collections() -> Iterator[None]:
    """The garbage collector looks at everything again."""
    yield
    gc.unfreeze()


MakeMessage = Callable[..., Message]


@pytest.fixture
def make_message(make_delivery: MakeDelivery) -> MakeMessage:
    """Makes messages from an envelope, or from plain JSON."""
    fields = {"stock_id": "s1", "user_id": "u1", "user_info": {"nickname": MARKER}}

    def make(task: str, door: str = "envelope", **headers: Any) -> Message:
        envelope = {
            "body": json.dumps([[], fields, {}]),
            "headers": {"task": task, "id": "id-1"} | headers,
            "properties": {},
            "content-type": "application/json",
            "content-encoding": "utf-8",
        }
        body = json.dumps(envelope if door == "envelope" else fields)
        payload = decode(make_delivery(body=body), lambda data: ForeignMessage(task, data, "id-1"))
        return Message(payload, channel=Channel())

    return make


@pytest.mark.parametrize(
    ("task", "door"), [("typed", "envelope"), ("plain", "envelope"), ("typed", "plain JSON")]
)
def test_what_can_run_gets_to_its_task(
    consumer: Consumer, strategy: Strategy, make_message: MakeMessage, task: str, door: str
) -> None:
    message = make_message(task, door)
    consumer.create_task_handler()(message)
    assert strategy.taken == [message]
    assert message.channel.rejected == []


@pytest.mark.parametrize("task", ["typed", "plain"])
def test_what_events_show_of_the_arguments_is_ours_and_not_of_the_wire(
    consumer: Consumer, make_message: MakeMessage, task: str
) -> None:
    message = make_message(task, argsrepr=f"({MARKER})", kwargsrepr=f"{{{MARKER}}}")
    consumer.create_task_handler()(message)
    assert MARKER not in message.headers["argsrepr"] + message.headers["kwargsrepr"]
    assert message.headers["kwargsrepr"]


@pytest.mark.parametrize(
    ("door", "asked", "its"),
    [
        ("envelope", {"timelimit": [30, 25]}, [None, None]),
        ("envelope", {"timelimit": [3000, None]}, [None, None]),
        ("envelope", {"timelimit": [10, 5]}, [10, 5]),
        ("envelope", {"timelimit": [1e-9, 1e-9]}, [1, None]),
        ("envelope", {}, [None, None]),
        ("plain JSON", {}, [None, None]),
    ],
)
def test_a_message_has_the_time_limits_of_its_own_that_its_task_allows(
    consumer: Consumer,
    strategy: Strategy,
    make_message: MakeMessage,
    door: str,
    asked: Any,
    its: list[float | None],
) -> None:
    consumer.create_task_handler()(make_message("typed", door, **asked))
    (taken,) = strategy.taken
    assert taken.headers["timelimit"] == its


@pytest.mark.parametrize(
    ("task", "door", "reason"),
    [
        ("nobody", "envelope", "unknown task 'nobody'"),
        ("nobody", "plain JSON", "unknown task 'nobody'"),
        ("plain", "plain JSON", "task plain cannot be reached by plain JSON"),
        ("line\nbreak", "envelope", "unknown task 'line\\nbreak'"),
        ("x" * 200, "envelope", f"unknown task '{'x' * 100}'"),
    ],
)
def test_what_cannot_run_is_refused_with_its_reason(
    consumer: Consumer,
    strategy: Strategy,
    make_message: MakeMessage,
    task: str,
    door: str,
    reason: str,
) -> None:
    message = make_message(task, door)
    consumer.create_task_handler()(message)
    assert isinstance(message.happened, Refused)
    assert message.happened.reason == reason
    assert message.channel.rejected == [False]
    assert strategy.taken == []


@pytest.mark.parametrize("fault", [KeyError(MARKER), RecursionError(), TypeError(MARKER)])
def test_a_message_that_cannot_be_taken_does_not_end_the_worker(
    consumer: Consumer, strategy: Strategy, make_message: MakeMessage, fault: Exception
) -> None:
    strategy.fault = fault
    message = make_message("typed")
    consumer.create_task_handler()(message)
    reason = "the worker cannot take the message"
    assert message.happened == Refused(reason, type(fault).__name__)
    assert message.channel.rejected == [False]


@pytest.mark.parametrize(
    ("refuse", "error"),
    [
        (lambda to, m: to.on_decode_error(m, ContentDisallowed(MARKER)), "ContentDisallowed"),
        (lambda to, m: to.on_unknown_message(MARKER, m), "Reject"),
        (lambda to, m: to.on_unknown_task(MARKER, m, KeyError(MARKER)), "KeyError"),
        (lambda to, m: to.on_invalid_task(MARKER, m, InvalidTaskError(MARKER)), "InvalidTaskError"),
    ],
    ids=["decode", "message", "task", "invalid"],
)
def test_celerys_own_refusals_are_ours_and_log_no_body(
    consumer: Consumer,
    make_message: MakeMessage,
    caplog: pytest.LogCaptureFixture,
    refuse: Callable[[Consumer, Message], None],
    error: str,
) -> None:
    message = make_message("typed")
    with caplog.at_level(logging.DEBUG):
        refuse(consumer, message)
    assert isinstance(message.happened, Refused)
    assert message.happened.error == error
    assert MARKER not in message.happened.reason + caplog.text
    assert message.channel.rejected == [False]


def test_the_arrival_is_logged_with_ids_and_without_arguments(
    consumer: Consumer, make_message: MakeMessage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "app.broker.consumer"):
        consumer.create_task_handler()(make_message("typed"))
    (record,) = caplog.records
    facts = vars(record)
    assert (facts["event"], facts["task"]) == ("message.received", "typed")
    assert (facts["message_id"], facts["source"]) == ("id-1", "celery")
    assert (facts["queue"], facts["deliveries"]) == ("jobs", 1)
    assert MARKER not in str(facts)


# A lost lease


class Request:
    """A task that runs, and notes how it is cancelled."""

    def __init__(self, tag: str, *, cancel_on_lease_loss: bool) -> None:
        self.message = SimpleNamespace(delivery_tag=tag)
        self.task = SimpleNamespace(policy=Policy(cancel_on_lease_loss=cancel_on_lease_loss))
        self.cancelled: list[dict[str, Any]] = []

    def cancel(self, pool: Any, **how: Any) -> None:
        self.cancelled.append(how)


class Loop:
    """Runs what it is given later, as Celery's event loop does."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        # Like Celery's, without keyword arguments (kombu 5.7 asynchronous/hub.py).
        self.soon.append(partial(call, *args))

    def turn(self) -> None:
        for call in self.soon:
            call()


@pytest.fixture
def lose(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Loses the lease `tag-1` while requests run, and lets the loop turn."""

    def lose_it(*requests: Request, pool: Any) -> None:
        monkeypatch.setattr("celery.worker.state.reserved_requests", set(requests))
        deliveries = SimpleNamespace()
        channel = SimpleNamespace(deliveries=deliveries)
        consumer.task_consumer = SimpleNamespace(channel=channel)
        consumer.hub, consumer.pool = Loop(), pool
        consumer.init_callback = lambda _: None
        consumer.on_ready()
        deliveries.on_lease_lost("tag-1")
        # Celery's requests are the loop's alone.
        assert not any(request.cancelled for request in requests)
        consumer.hub.turn()

    return lose_it


PREFORK = SimpleNamespace(terminate_job=print, uses_semaphore=True)
THREADS = SimpleNamespace(uses_semaphore=False)


def test_a_task_that_lost_its_lease_is_cancelled_where_that_is_wanted(
    lose: Callable[..., None],
) -> None:
    running, other = (Request(tag, cancel_on_lease_loss=True) for tag in ("tag-1", "tag-2"))
    lose(running, other, pool=PREFORK)
    # Without an event of a retry: the redelivery is told by its own.
    assert running.cancelled == [{"emit_retry": False}]
    assert other.cancelled == []


@pytest.mark.parametrize(("wanted", "pool"), [(False, PREFORK), (True, THREADS)])
def test_else_a_task_that_lost_its_lease_runs_on(
    lose: Callable[..., None], wanted: bool, pool: Any
) -> None:
    running = Request("tag-1", cancel_on_lease_loss=wanted)
    lose(running, pool=pool)
    assert running.cancelled == []


def test_what_a_worker_starts_with_is_no_work_for_the_garbage_collector(
    lose: Callable[..., None],
) -> None:
    lose(pool=THREADS)
    assert gc.get_freeze_count() > 1_000
    assert len(gc.get_objects()) < 1_000


def test_what_a_worker_has_when_it_connects_again_is_garbage_some_day(
    lose: Callable[..., None],
) -> None:
    lose(pool=THREADS)
    frozen = gc.get_freeze_count()
    lose(pool=THREADS)
    assert gc.get_freeze_count() <= frozen


@pytest.mark.parametrize(("pool", "has_processes"), [(PREFORK, True), (THREADS, False)])
def test_a_worker_that_is_ready_can_be_stopped(
    consumer: Consumer, lose: Callable[..., None], pool: Any, has_processes: bool
) -> None:
    lose(pool=pool)
    assert consumer._shutdown.told == ["listen"]
    assert consumer.task_consumer.channel.deliveries.pool_has_processes is has_processes


def test_celery_lets_the_consumer_drain_before_it_stops_anything(consumer: Consumer) -> None:
    controller = object.__new__(WorkController)
    controller.consumer = consumer
    controller.signal_consumer_close()
    assert consumer._shutdown.told == ["drain"]
