"""Any body at all becomes what Celery can take, or a dead letter with a reason: nothing else, and
nothing on its way raises.
"""

import json
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.worker import state, strategy
from hypothesis import example, given, settings
from kombu import Connection

from app.messages import Increment, Registration
from sqs_broker.limits import LONGEST_DELAY
from sqs_broker.options import Options
from sqs_broker.rules.due import CLOCK_TOLERANCE
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.rules.outcomes import DeadLetter, Done, Outcome, Postponed
from sqs_broker.sqs.copies import Copies
from sqs_broker.worker.channel import Channel, Message
from sqs_broker.worker.consumer import Consumer
from tests.bodies import bodies
from tests.unit.conftest import MakeDelivery

OPTIONS = {
    "region": "us-east-1",
    "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
    "decode_json": "app.messages:decode_json",
}

MANY = settings(derandomize=True, database=None, deadline=None, max_examples=1_500)


class Settler:
    """Keeps what it is handed."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.copies = Copies(Options.read(OPTIONS), None)  # type: ignore[arg-type]

    def settle(self, lease: Lease, outcome: Outcome, *_: Any) -> None:
        self.outcomes.append(outcome)


class Pool:
    """Takes what Celery hands to its pool as the pool does: over a pipe, pickled."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, ...]] = []

    def apply_async(self, _: Any, args: tuple[Any, ...], **__: Any) -> None:
        self.taken.append(pickle.loads(pickle.dumps(args)))


class Worker:
    """The way of a body up to the pool: our channel and consumer, and Celery's own strategy."""

    def __init__(self, celery_app: Celery) -> None:
        connection = Connection(
            "sqs://", transport="sqs_broker:Transport", transport_options=OPTIONS
        )
        self.channel: Channel = connection.channel()
        channel, self.settler, self.pool = self.channel, Settler(), Pool()
        channel.deliveries._settler = self.settler  # type: ignore[assignment]
        channel.deliveries._receivers["jobs"] = object()  # type: ignore[assignment]
        consumer = object.__new__(Consumer)
        consumer.__dict__ |= {
            "app": celery_app, "connection": None, "connection_errors": (), "restart_count": 0,
            "on_task_message": set(), "_maximum_prefetch_restored": True, "hostname": "w@h",
            "timer": SimpleNamespace(call_at=None), "disable_rate_limits": True, "hub": None,
            "task_buckets": {}, "pool": self.pool, "event_dispatcher": None,
            "on_task_request": lambda request: request.execute_using_pool(self.pool),
            "controller": SimpleNamespace(state=state),
        }  # fmt: skip
        consumer.strategies = {
            name: strategy.default(task, celery_app, consumer)
            for name, task in celery_app.tasks.items()
        }
        self.take = consumer.create_task_handler()

    def receive(self, delivery: Delivery) -> None:
        """Let one delivery in."""
        self.channel.deliveries._leases.fill(0, [delivery])
        if payload := self.channel.deliveries._arrived(delivery):
            message = Message(payload, channel=self.channel)
            self.channel.qos.append(message, delivery.tag)
            self.take(message)


@pytest.fixture(scope="module")
def celery_app() -> Celery:
    """An app with the tasks of this application's names, which do nothing."""
    made = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    made.conf.broker_transport_options = OPTIONS
    made.conf.task_acks_late = True

    @made.task(shared=False, name="registerUser", model=Registration)
    def register_user(*_: Any) -> None: ...

    @made.task(shared=False, name="increment", model=Increment)
    def increment(*_: Any) -> None: ...

    made.finalize()
    return made


@pytest.fixture(autouse=True)
def _celery_forgets() -> Iterator[None]:
    """Celery keeps its requests in a module."""
    yield
    state.requests.clear()
    state.reserved_requests.clear()


#: What strategies seldom come by: a message that was too old when it arrived.
EXPIRED = json.dumps(
    {
        "body": "[[null], {}, {}]",
        "headers": {"task": "registerUser", "id": "any", "expires": "2026-01-02T03:04:05Z"},
        "properties": {},
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }
)


@MANY
@given(body=bodies)
@example(body=EXPIRED)
def test_any_body_is_taken_by_celery_or_dead_lettered_with_a_reason(
    make_delivery: MakeDelivery, celery_app: Celery, body: str
) -> None:
    worker = Worker(celery_app)

    worker.receive(make_delivery(body=body))

    assert len(worker.pool.taken) + len(worker.settler.outcomes) == 1
    for taken in worker.pool.taken:
        assert_runnable(*taken)
    for outcome in worker.settler.outcomes:
        assert_ended(outcome)


def assert_runnable(
    name: str, id_: str, request: dict[str, Any], body: Any, content_type: None, encoding: None
) -> None:
    """What Celery does with it in the pool's process before the task runs (app/trace.py)."""
    args, kwargs, embed = body
    context = Context(request, args=args, kwargs=kwargs, **(embed or {}))
    assert (content_type, encoding) == (None, None)
    assert (context.task, context.id) == (name, id_)
    # Celery adds tasks of its own to an app where a module has them, which an envelope may name.
    assert name in {"registerUser", "increment"} or name.startswith("celery.")
    assert isinstance(args, list)
    assert isinstance(kwargs, dict)
    assert context.retries == 0
    assert context.delivery.deliveries == 1
    assert not context.is_eager
    for signature in [*(context.callbacks or ()), *(context.errbacks or ())]:
        assert isinstance(signature["task"], str)


def assert_ended(outcome: Outcome) -> None:
    match outcome:
        case DeadLetter(reason, error):
            assert reason
            assert error
        case Postponed(delay):
            assert CLOCK_TOLERANCE < delay <= LONGEST_DELAY
        case _:
            # It expired before it arrived. A retry would say that something broke on the way.
            assert outcome == Done()
