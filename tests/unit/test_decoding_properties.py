"""Any body at all becomes what Celery can take, or a dead letter with a reason: nothing else, and
nothing on its way raises.
"""

import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.concurrency.base import BasePool
from celery.worker import state
from hypothesis import example, given, settings
from kombu.asynchronous import set_event_loop

from app.messages import Increment, Registration
from sqs_broker import install
from sqs_broker.limits import LONGEST_DELAY
from sqs_broker.rules.canvas import Canvas
from sqs_broker.rules.due import CLOCK_TOLERANCE
from sqs_broker.rules.outcomes import DeadLetter, Done, Outcome, Postponed
from sqs_broker.rules.provenance import Source
from sqs_broker.rules.time_limits import LEAST
from sqs_broker.testing import Clock
from tests.bodies import bodies
from tests.unit.in_memory import InMemoryWorker, Outcomes, new_sqs

MANY = settings(derandomize=True, database=None, max_examples=300)


class Pool(BasePool):
    """Takes what Celery hands to its pool as the pool does, pickled; then it is done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.taken: list[tuple[Any, ...]] = []

    def apply_async(
        self, _: Any, args: Any, accept_callback: Any, callback: Any, **__: Any
    ) -> None:
        accept_callback(1, 0.0)
        self.taken.append(pickle.loads(pickle.dumps(args)))
        callback((0, None, 0.0))


#: What this application allows of Celery's canvas: nothing.
CLOSED: dict[str, Any] = {"built_in_tasks": (), "most_callbacks": 0}


@pytest.fixture(scope="module", params=[{}, CLOSED], ids=["canvas", "no canvas"])
def worker(request: pytest.FixtureRequest) -> Iterator[InMemoryWorker]:
    """A worker of an app with the tasks of this application's names, which do nothing."""
    clock, outcomes = Clock(), Outcomes()
    fake = new_sqs(clock)
    made = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    install(made)
    made.conf.update(
        broker_transport_options=fake.transport_options(
            decode_json="app.messages:decode_json",
            unknown_task_grace=0,
            observers=[outcomes],
            **request.param,
        ),
        task_default_queue="jobs",
        task_acks_late=True,
        task_ignore_result=True,
        task_time_limit=30,
    )

    @made.task(shared=False, name="registerUser", model=Registration)
    def register_user(*_: Any) -> None: ...

    @made.task(shared=False, name="increment", model=Increment)
    def increment(*_: Any) -> None: ...

    made.finalize()
    worker = InMemoryWorker(made, fake, clock, outcomes, Pool)
    yield worker
    worker.close()
    set_event_loop(None)
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
    worker: InMemoryWorker, body: str
) -> None:
    worker.pool.taken.clear()
    (outcome,) = worker.receive([body])
    if worker.pool.taken:
        (taken,) = worker.pool.taken
        context = assert_runnable(*taken)
        if worker.options.canvas == Canvas.read(CLOSED):
            assert_calls_nothing(context)
        assert outcome == Done()
    else:
        assert_ended(outcome)


def assert_runnable(
    name: str, id_: str, request: dict[str, Any], body: Any, content_type: None, encoding: None
) -> Context:
    """What Celery does with it in the pool's process before the task runs (app/trace.py)."""
    args, kwargs, embed = body
    context = Context(request, args=args, kwargs=kwargs, **(embed or {}))
    assert (content_type, encoding) == (None, None)
    assert (context.task, context.id) == (name, id_)
    # By default an envelope may name Celery's own tasks.
    assert name in {"registerUser", "increment"} or name.startswith("celery.")
    assert isinstance(args, list)
    assert isinstance(kwargs, dict)
    assert context.retries == 0
    assert context.delivery.deliveries == 1
    assert not context.is_eager
    for signature in [*(context.callbacks or ()), *(context.errbacks or ())]:
        assert isinstance(signature["task"], str)
    hard, soft = context.timelimit
    assert LEAST <= hard <= 30
    assert soft is None or LEAST <= soft < hard
    if context.delivery.source is not Source.CELERY:
        assert_calls_nothing(context)
        assert (hard, soft) == (30, None)
    return context


def assert_calls_nothing(context: Context) -> None:
    """Celery calls the task, and no other one."""
    assert context.task in {"registerUser", "increment"}
    called = (context.callbacks, context.errbacks, context.chain, context.chord)
    assert not any(called)


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
