"""Consumer: only what can run gets to a task, and of what cannot nothing is logged but why.

Which message can run is a rule of its own: test_admission.py.
"""

import errno
import gc
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from celery.exceptions import InvalidTaskError
from celery.result import allow_join_result
from celery.worker import WorkController, state
from celery.worker.request import Request as CeleryRequest
from kombu.asynchronous import set_event_loop
from kombu.exceptions import ContentDisallowed
from kombu.transport import virtual

from app.messages import Registration
from sqs_broker.control.worker import log_revoked
from sqs_broker.errors import ConfigurationError
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.outcomes import HUNG, Failed, Happened, NotTaken, Refused, UnknownTask
from sqs_broker.rules.policy import Policy
from sqs_broker.worker.channel import Message
from sqs_broker.worker.consumer import Consumer
from sqs_broker.worker.loop import Hub
from sqs_broker.worker.loop import Loop as EventLoop
from tests.unit.conftest import HEADERS, MakeDelivery, celery_message

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"

PLAIN_JSON = HEADERS["delivery"]


class Channel(virtual.Channel):
    """Notes what is rejected and what is admitted. It has no connection."""

    def __init__(self) -> None:
        self.rejected: list[bool] = []
        self.admitted: list[str] = []
        self.has_grace = False
        self.deliveries = SimpleNamespace(
            admitted=lambda tag, _: self.admitted.append(tag), has_grace=lambda _: self.has_grace
        )

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


@pytest.fixture
def celery_app() -> Celery:
    """An app with a task that has a message model and one that has none."""
    app = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    app.conf.update(
        broker_transport="sqs_broker:Transport",
        broker_url="sqs://amazon",
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
        },
        worker_consumer="sqs_broker.worker.consumer:Consumer",
        task_time_limit=30,
    )

    def job(*_: Any) -> None: ...

    app.task(job, shared=False, name="typed", model=Registration)
    app.task(job, shared=False, name="plain")
    return app


MakeWorker = Callable[..., WorkController]


@pytest.fixture
def make_worker(celery_app: Celery) -> Iterator[MakeWorker]:
    """Makes workers, with their parts, that are not started."""
    made: list[WorkController] = []

    def make(pool: str, **options: Any) -> WorkController:
        made.append(celery_app.WorkController(pool_cls=pool, concurrency=1, **options))
        return made[-1]

    # A pool of processes forbids its process to wait for results, for good.
    with allow_join_result():
        yield make
    for worker in made:
        worker.consumer.task_consumer = None
        worker.consumer.shutdown()
        worker.hub.close()
    set_event_loop(None)
    signals.task_revoked.disconnect(log_revoked)
    # Each consumer has kept the garbage collector from what was there.
    gc.unfreeze()


@pytest.fixture
def strategy() -> Strategy:
    return Strategy()


@pytest.fixture
def consumer(make_worker: MakeWorker, strategy: Strategy) -> Consumer:
    """The consumer of a worker that takes messages and gives them to no pool."""
    made: Consumer = make_worker("threads").consumer
    made.strategies = dict.fromkeys(("typed", "plain"), strategy)
    return made


MakeMessage = Callable[..., Message]


@pytest.fixture
def make_message(make_delivery: MakeDelivery) -> MakeMessage:
    """Makes messages as Celery sends them."""
    fields = {"stock_id": "s1", "user_id": "u1", "user_info": {"nickname": MARKER}}

    def make(task: str = "typed", embed: Any = None, **headers: Any) -> Message:
        body = celery_message(task, ([], fields, embed or {}), **headers)
        return Message(decode(make_delivery(body=body), None), channel=Channel())

    return make


def test_what_can_run_gets_to_its_task_with_what_admission_says_of_it(
    consumer: Consumer, strategy: Strategy, make_message: MakeMessage
) -> None:
    wire = {"argsrepr": f"({MARKER})", "kwargsrepr": f"{{{MARKER}}}", "timelimit": [3000, None]}
    messages = [make_message(task, **wire) for task in ("typed", "plain")]
    for message in messages:
        consumer.create_task_handler()(message)
        assert MARKER not in message.headers["argsrepr"] + message.headers["kwargsrepr"]
        assert message.headers["timelimit"] == [None, None]
        assert message.channel.admitted == [message.delivery_tag]
        assert message.channel.rejected == []
    assert strategy.taken == messages


def test_what_cannot_run_is_refused_and_celerys_signals_say_so(
    consumer: Consumer, strategy: Strategy, make_message: MakeMessage
) -> None:
    said: list[Any] = []

    def note(signal: Any, message: Any, exc: Any, **_: Any) -> None:
        said.append((signal, message, type(exc)))

    signals.task_unknown.connect(note, sender=consumer)
    signals.task_rejected.connect(note, sender=consumer)
    unknown, unreachable = make_message("nobody"), make_message("plain")
    unreachable.headers["delivery"] = PLAIN_JSON
    for message in (unknown, unreachable):
        consumer.create_task_handler()(message)
        assert message.channel.rejected == [False]
        assert message.channel.admitted == []
    assert unknown.happened == UnknownTask("nobody")
    assert unreachable.happened == Refused(
        "task plain has no message model, so neither plain JSON nor SNS can call it"
    )
    assert strategy.taken == []
    assert said == [
        (signals.task_rejected, unknown, KeyError),
        (signals.task_unknown, unknown, KeyError),
        (signals.task_rejected, unreachable, type(None)),
    ]


def callback(task: str) -> dict[str, Any]:
    return {"callbacks": [{"task": task, "args": [], "kwargs": {}, "options": {}}]}


def test_a_callback_to_an_unknown_task_is_an_unknown_task(
    consumer: Consumer, strategy: Strategy, make_message: MakeMessage
) -> None:
    names: list[str] = []

    def note(name: str, **_: Any) -> None:
        names.append(name)

    signals.task_unknown.connect(note, sender=consumer)
    message = make_message(embed=callback("nobody"))
    consumer.create_task_handler()(message)
    assert message.happened == UnknownTask("nobody")
    assert names == ["nobody"]
    assert strategy.taken == []


def test_the_options_of_the_worker_say_what_a_message_may_call(
    celery_app: Celery, make_worker: MakeWorker, strategy: Strategy, make_message: MakeMessage
) -> None:
    celery_app.conf.broker_transport_options |= {"most_callbacks": 0, "built_in_tasks": ()}
    consumer = make_worker("threads").consumer
    consumer.strategies = dict.fromkeys(("typed", "celery.backend_cleanup"), strategy)
    for message in (make_message(embed=callback("plain")), make_message("celery.backend_cleanup")):
        consumer.create_task_handler()(message)
        assert isinstance(message.happened, Refused)
    assert strategy.taken == []


def test_an_unknown_task_is_not_rejected_while_it_has_grace(
    consumer: Consumer, make_message: MakeMessage
) -> None:
    said: list[str] = []

    def note_unknown(name: str, **_: Any) -> None:
        said.append(f"unknown {name}")

    def note_rejected(**_: Any) -> None:
        said.append("rejected")

    signals.task_unknown.connect(note_unknown, sender=consumer)
    signals.task_rejected.connect(note_rejected, sender=consumer)
    message = make_message("nobody")
    message.channel.has_grace = True
    consumer.create_task_handler()(message)
    assert message.happened == UnknownTask("nobody")
    assert said == ["unknown nobody"]


INVALID = "the message is not a valid task message"


def not_taken_by_worker(error: str) -> Failed:
    return Failed(error, f"the worker could not accept the message ({error})")


@pytest.mark.parametrize(
    ("fault", "happened"),
    [
        (KeyError(MARKER), not_taken_by_worker("KeyError")),
        (RecursionError(), not_taken_by_worker("RecursionError")),
        (TypeError(MARKER), not_taken_by_worker("TypeError")),
        # This machine cannot take it now: it was not tried.
        (MemoryError(), NotTaken("MemoryError")),
        (OSError(errno.EMFILE, MARKER), NotTaken("OSError")),
        (RuntimeError("can't start new thread"), NotTaken("RuntimeError")),
        # Celery calls it invalid.
        (InvalidTaskError(MARKER), Refused(INVALID, "InvalidTaskError")),
        (ContentDisallowed(MARKER), Refused(INVALID, "ContentDisallowed")),
    ],
    ids=repr,
)
def test_a_message_that_cannot_be_taken_ends_and_not_the_worker(
    consumer: Consumer,
    strategy: Strategy,
    make_message: MakeMessage,
    fault: Exception,
    happened: Happened,
) -> None:
    strategy.fault = fault
    message = make_message()
    consumer.create_task_handler()(message)
    assert message.happened == happened
    assert message.channel.rejected == [False]


def test_celery_keeps_no_request_of_a_message_that_could_not_be_taken(
    consumer: Consumer, strategy: Strategy, make_message: MakeMessage
) -> None:
    message = make_message()
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
        (lambda to, m: to.on_unknown_task(MARKER, m, KeyError(MARKER)), None),
        (lambda to, m: to.on_invalid_task(MARKER, m, InvalidTaskError(MARKER)), "InvalidTaskError"),
    ],
    ids=["decode", "message", "task", "invalid"],
)
def test_celerys_own_refusals_are_ours_and_log_no_body(
    consumer: Consumer,
    make_message: MakeMessage,
    caplog: pytest.LogCaptureFixture,
    refuse: Callable[[Consumer, Message], None],
    error: str | None,
) -> None:
    message = make_message()
    with caplog.at_level(logging.DEBUG):
        refuse(consumer, message)
    if error is None:
        assert message.happened == UnknownTask("typed")
    else:
        assert isinstance(message.happened, Refused)
        assert message.happened.error == error
    assert MARKER not in repr(message.happened) + caplog.text
    assert message.channel.rejected == [False]


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


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_request_that_the_pool_does_not_take_is_told_and_nobody_else(
    make_worker: MakeWorker, pool: str
) -> None:
    request = Untakable(MemoryError())
    make_worker(pool).consumer.on_task_request(request)
    assert request.told == [request.fault]


def test_a_process_that_could_not_be_given_a_task_takes_the_next_ones(
    make_worker: MakeWorker,
) -> None:
    worker = make_worker("prefork")
    requests = [Untakable(MemoryError()) for _ in range(900)]
    worker.semaphore.acquire(print, "The one process is busy.")
    for request in requests:
        worker.consumer.on_task_request(request)
    worker.semaphore.release()
    next(EventLoop(worker.hub))
    # Not one within the other: of so many, Python would reach its limit of recursion.
    assert all(len(request.told) == 1 for request in requests)


def test_celerys_loop_is_given_a_hub_that_goes_on_where_a_callback_fails(
    make_worker: MakeWorker,
) -> None:
    consumer = make_worker("threads").consumer
    (hub,) = (arg for arg in consumer.loop_args() if isinstance(arg, Hub))
    assert hub.timer is consumer.hub.timer
    assert isinstance(hub.create_loop(), EventLoop)


# A worker that is ready


class Deliveries:
    """What a consumer asks of the deliveries, and says to them."""

    is_empty = True
    on_lease_lost: Callable[[str], None]
    pool_has_processes: bool | None = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def attach(
        self,
        *,
        pool_has_processes: bool,
        on_lease_lost: Callable[[str], None],
        on_given_up: Callable[[str, Happened], None],
    ) -> None:
        self.pool_has_processes, self.on_lease_lost = pool_has_processes, on_lease_lost
        self.on_given_up = on_given_up

    def on_empty(self, callback: Any) -> None: ...

    def stop_receiving(self) -> None:
        self.asked.append("stop receiving")

    def release(self, *, running: bool) -> int:
        self.asked.append("release all" if running else "release what waits")
        return 0


def become_ready(worker: WorkController) -> Deliveries:
    """The deliveries of a worker that has connected and takes messages now."""
    deliveries = Deliveries()
    worker.consumer.connection = worker.consumer.connect()
    worker.consumer.task_consumer = SimpleNamespace(channel=SimpleNamespace(deliveries=deliveries))
    worker.consumer.on_ready()
    return deliveries


class Running:
    """A task that runs, and notes how it is cancelled."""

    name = "job"

    def __init__(self, tag: str, *, cancel_on_lease_loss: bool) -> None:
        self.id = f"id of {tag}"
        self.message = SimpleNamespace(delivery_tag=tag)
        self.task = SimpleNamespace(policy=Policy(cancel_on_lease_loss=cancel_on_lease_loss))
        self.cancelled: list[dict[str, Any]] = []
        self.given_up_with: list[Happened] = []

    def given_up(self, happened: Happened) -> None:
        self.given_up_with.append(happened)

    def cancel(self, pool: Any, **how: Any) -> None:
        self.cancelled.append(how)


@pytest.mark.parametrize(
    ("pool", "wanted", "cancelled"),
    [
        # Without an event of a retry: the redelivery is told by its own.
        ("prefork", True, [{"emit_retry": False}]),
        ("prefork", False, []),
        ("threads", True, []),
    ],
)
def test_a_task_that_lost_its_lease_is_cancelled_where_that_is_wanted_and_possible(
    make_worker: MakeWorker, pool: str, wanted: bool, cancelled: list[Any]
) -> None:
    worker = make_worker(pool)
    deliveries = become_ready(worker)
    running = Running("tag-1", cancel_on_lease_loss=wanted)
    other = Running("tag-2", cancel_on_lease_loss=True)
    for request in (running, other):
        state.task_reserved(request)
    deliveries.on_lease_lost("tag-1")
    # Celery's requests are the loop's alone.
    assert running.cancelled == []
    next(EventLoop(worker.hub))
    assert (running.cancelled, other.cancelled) == (cancelled, [])
    for request in (running, other):
        state.task_ready(request)


def test_a_worker_without_an_event_loop_as_that_of_gevent_is_refused(celery_app: Celery) -> None:
    class Green(celery_app.WorkController):  # type: ignore[name-defined]  # made by the app
        def should_use_eventloop(self) -> bool:
            return False

    with pytest.raises(ConfigurationError, match="Use --pool=prefork, threads or solo"):
        Green(pool_cls="threads", concurrency=1)


@pytest.mark.parametrize("option", ["time_limit", "soft_time_limit"])
def test_a_time_limit_of_the_command_line_is_refused_by_name(
    make_worker: MakeWorker, option: str
) -> None:
    named = f"--{option.replace('_', '-')}: .* Set task_{option} instead"
    with pytest.raises(ConfigurationError, match=named):
        make_worker("solo", **{option: 5})


def test_the_time_limits_of_the_settings_may_be_repeated(
    celery_app: Celery, make_worker: MakeWorker
) -> None:
    celery_app.conf.update(task_time_limit=30, task_soft_time_limit=25)
    make_worker("solo", time_limit=30, soft_time_limit=25)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_the_request_of_a_task_that_hangs_is_told_on_the_loop(
    make_worker: MakeWorker, pool: str
) -> None:
    worker = make_worker(pool)
    deliveries = become_ready(worker)
    running, other = (Running(tag, cancel_on_lease_loss=False) for tag in ("tag-1", "tag-2"))
    for request in (running, other):
        state.task_accepted(request)
    deliveries.on_given_up("tag-1", HUNG)
    assert running.given_up_with == []
    next(EventLoop(worker.hub))
    assert (running.given_up_with, other.given_up_with) == ([HUNG], [])
    for request in (running, other):
        state.task_ready(request)


@pytest.mark.parametrize(("pool", "has_processes"), [("prefork", True), ("threads", False)])
def test_the_deliveries_know_whether_the_pool_has_processes(
    make_worker: MakeWorker, pool: str, has_processes: bool
) -> None:
    assert become_ready(make_worker(pool)).pool_has_processes is has_processes


def test_celery_lets_the_consumer_drain_before_it_stops_anything(make_worker: MakeWorker) -> None:
    worker = make_worker("threads")
    deliveries = become_ready(worker)
    worker.signal_consumer_close()
    assert deliveries.asked == ["stop receiving", "release what waits"]


def test_what_a_worker_starts_with_is_no_work_for_the_garbage_collector(
    make_worker: MakeWorker,
) -> None:
    become_ready(make_worker("threads"))
    assert gc.get_freeze_count() > 1_000
    assert len(gc.get_objects()) < 1_000


def test_what_a_worker_has_when_it_connects_again_is_garbage_some_day(
    make_worker: MakeWorker,
) -> None:
    worker = make_worker("threads")
    become_ready(worker)
    frozen = gc.get_freeze_count()
    become_ready(worker)
    assert gc.get_freeze_count() <= frozen
