"""Consumer: only what can run gets to a task, and of what cannot nothing is logged but why."""

import errno
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
from celery.result import allow_join_result
from celery.worker import WorkController, state
from celery.worker.request import Request as CeleryRequest
from kombu.asynchronous import set_event_loop
from kombu.exceptions import ContentDisallowed
from kombu.transport import virtual

from app.messages import Registration
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.foreign import ForeignMessage
from sqs_broker.rules.outcomes import DeadLetter, Failed, NotTaken, Refused, decide
from sqs_broker.rules.policy import Policy
from sqs_broker.worker.channel import Message
from sqs_broker.worker.consumer import Consumer
from sqs_broker.worker.loop import Hub
from sqs_broker.worker.loop import Loop as EventLoop
from tests.unit.conftest import MakeDelivery

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


class Channel(virtual.Channel):
    """Notes what is rejected and what is admitted. It has no connection."""

    def __init__(self) -> None:
        self.rejected: list[bool] = []
        self.admitted: list[str] = []
        self.deliveries = SimpleNamespace(admitted=lambda tag, _: self.admitted.append(tag))

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self.rejected.append(requeue)


class Strategy:
    """Takes what Celery would give to the pool."""

    def __init__(self) -> None:
        self.taken: list[Message] = []
        self.fault: Exception | None = None
        self.before: Callable[[], None] = lambda: None

    def __call__(self, message: Message, *_: Any) -> None:
        self.before()
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
        ("plain", "plain JSON", "task plain has no message model, so plain JSON cannot call it"),
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
    outcome = decide(message.happened, 1, Policy())
    assert isinstance(outcome, DeadLetter)
    assert outcome.reason == reason
    assert message.channel.rejected == [False]
    assert strategy.taken == []


@pytest.mark.parametrize("fault", [KeyError(MARKER), RecursionError(), TypeError(MARKER)])
def test_a_message_that_cannot_be_taken_does_not_end_the_worker(
    consumer: Consumer, strategy: Strategy, make_message: MakeMessage, fault: Exception
) -> None:
    strategy.fault = fault
    message = make_message("typed")
    consumer.create_task_handler()(message)
    error = type(fault).__name__
    assert message.happened == Failed(error, f"the worker could not accept the message ({error})")
    assert message.channel.rejected == [False]


@pytest.mark.parametrize(
    "fault", [MemoryError(), OSError(errno.EMFILE, MARKER), RuntimeError("can't start new thread")]
)
def test_a_message_that_this_machine_cannot_take_now_was_not_tried(
    consumer: Consumer, strategy: Strategy, make_message: MakeMessage, fault: Exception
) -> None:
    strategy.fault = fault
    message = make_message("typed")
    consumer.create_task_handler()(message)
    assert message.happened == NotTaken(type(fault).__name__)


@pytest.mark.parametrize("fault", [InvalidTaskError(MARKER), ContentDisallowed(MARKER)])
def test_what_celery_calls_invalid_is_refused(
    consumer: Consumer, strategy: Strategy, make_message: MakeMessage, fault: Exception
) -> None:
    strategy.fault = fault
    message = make_message("typed")
    consumer.create_task_handler()(message)
    assert isinstance(message.happened, Refused)


def test_celery_keeps_no_request_of_a_message_that_could_not_be_taken(
    consumer: Consumer, strategy: Strategy, make_message: MakeMessage
) -> None:
    message = make_message("typed")
    request = CeleryRequest(message, app=consumer.app, on_ack=print, on_reject=print)
    strategy.before = lambda: state.task_reserved(request)
    strategy.fault = MemoryError()
    consumer.create_task_handler()(message)
    assert request not in state.reserved_requests
    assert request.id not in state.requests


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
    outcome = decide(message.happened, 1, Policy())
    assert isinstance(outcome, DeadLetter)
    assert outcome.error == error
    assert MARKER not in outcome.reason + caplog.text
    assert message.channel.rejected == [False]


def test_only_what_can_run_has_been_received(consumer: Consumer, make_message: MakeMessage) -> None:
    taken, refused = make_message("typed"), make_message("nobody")
    for message in (taken, refused):
        consumer.create_task_handler()(message)
    assert taken.channel.admitted == [taken.delivery_tag]
    assert refused.channel.admitted == []


# What the pool does not take


class Untakable:
    """A request that the pool does not take, and that notes what it is told of it."""

    task = SimpleNamespace(many=None)

    def __init__(self, fault: Exception) -> None:
        self.fault = fault
        self.told: list[Exception] = []

    def execute_using_pool(self, _: Any) -> None:
        raise self.fault

    def not_taken(self, exc: Exception) -> None:
        self.told.append(exc)


@pytest.fixture
def make_worker(celery_app: Celery) -> Iterator[Callable[[str], WorkController]]:
    """Makes workers, with their parts, that are not started."""
    celery_app.conf.update(
        broker_transport="sqs_broker:Transport",
        broker_url="sqs://amazon",
        worker_consumer="sqs_broker.worker.consumer:Consumer",
    )
    made: list[WorkController] = []

    def make(pool: str) -> WorkController:
        made.append(celery_app.WorkController(pool_cls=pool, concurrency=1))
        return made[-1]

    # A pool of processes forbids its process to wait for results, for good.
    with allow_join_result():
        yield make
    for worker in made:
        worker.hub.close()
    set_event_loop(None)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_request_that_the_pool_does_not_take_is_told_and_nobody_else(
    make_worker: Callable[[str], WorkController], pool: str
) -> None:
    request = Untakable(MemoryError())
    make_worker(pool).consumer.on_task_request(request)
    assert request.told == [request.fault]


def test_celerys_loop_is_given_a_hub_that_goes_on_where_a_callback_fails(
    make_worker: Callable[[str], WorkController],
) -> None:
    consumer = make_worker("threads").consumer
    (hub,) = (arg for arg in consumer.loop_args() if isinstance(arg, Hub))
    assert hub.timer is consumer.hub.timer
    assert isinstance(hub.create_loop(), EventLoop)


def test_a_process_that_could_not_be_given_a_task_takes_the_next_ones(
    make_worker: Callable[[str], WorkController],
) -> None:
    worker = make_worker("prefork")
    requests = [Untakable(MemoryError()) for _ in range(900)]
    for request in requests:
        worker.consumer.on_task_request(request)
    next(EventLoop(worker.hub))
    # Not one within the other: of so many, Python would reach its limit of recursion.
    assert all(len(request.told) == 1 for request in requests)


# A lost lease


class Request:
    """A task that runs, and notes how it is cancelled."""

    def __init__(self, tag: str, *, cancel_on_lease_loss: bool) -> None:
        self.message = SimpleNamespace(delivery_tag=tag)
        self.task = SimpleNamespace(policy=Policy(cancel_on_lease_loss=cancel_on_lease_loss))
        self.cancelled: list[dict[str, Any]] = []

    def cancel(self, pool: Any, **how: Any) -> None:
        self.cancelled.append(how)


class Attached:
    """Keeps what a consumer attaches."""

    def attach(self, **how: Any) -> None:
        vars(self).update(how)


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
        deliveries = Attached()
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


def cannot(*_: Any) -> None:
    raise NotImplementedError  # As the base of Celery's pools does.


THREADS = SimpleNamespace(terminate_job=cannot, uses_semaphore=False)


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
