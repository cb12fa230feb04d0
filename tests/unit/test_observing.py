"""A project's own observer hears each step of a message, by the option `observers`."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.base import BasePool
from celery.worker import state
from kombu.asynchronous import set_event_loop

from app.messages import Increment
from sqs_broker import install
from sqs_broker.observers.observer import Observer
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import Happened, Outcome
from sqs_broker.sqs.publisher import publish_many
from sqs_broker.testing import Clock, FakeSqs
from tests.unit.in_memory import InMemoryWorker, Outcomes, new_sqs


class Pool(BasePool):
    """Runs a task at once; one that raises has failed."""

    def apply_async(
        self, target: Any, args: Any, accept_callback: Any, callback: Any, **_: Any
    ) -> None:
        accept_callback(1, 0.0)
        callback((0, None, 0.0))


class Noting(Observer):
    """Notes what it hears, with the id of the message."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []
        self.messages: list[Facts] = []

    def received(self, message: Facts) -> None:
        self.heard.append(("received", message.id, str(message.task), str(message.source)))

    def started(self, message: Facts) -> None:
        self.heard.append(("started", message.id))

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        self.heard.append(("ended", message.id, type(happened).__name__, outcome.name))
        self.messages.append(message)

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        self.heard.append(("settled", message.id, outcome.name, str(error)))

    def published(self, queue: str, count: int) -> None:
        self.heard.append(("published", queue, str(count)))

    def paused(self, reasons: frozenset[str]) -> None:
        self.heard.append(("paused", *sorted(reasons)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    return new_sqs(clock)


@pytest.fixture
def noting() -> Noting:
    return Noting()


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


@pytest.fixture
def celery_app(fake: FakeSqs, noting: Noting, outcomes: Outcomes) -> Celery:
    app = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    install(app)
    app.conf.update(
        broker_transport_options=fake.transport_options(
            decode_json="app.messages:decode_json", observers=[noting, outcomes]
        ),
        task_default_queue="jobs",
        task_acks_late=True,
        task_ignore_result=True,
        task_time_limit=30,
    )

    @app.task(shared=False, name="increment", model=Increment)
    def increment(*_: Any) -> None: ...

    return app


@pytest.fixture
def worker(
    celery_app: Celery, fake: FakeSqs, clock: Clock, outcomes: Outcomes
) -> Iterator[InMemoryWorker]:
    running = InMemoryWorker(celery_app, fake, clock, outcomes, Pool)
    yield running
    running.close()
    set_event_loop(None)
    state.requests.clear()
    state.reserved_requests.clear()


PLAIN = '{"id": "id-1", "action": "increment", "data": {"input": 1}}'


def test_a_message_that_succeeds_is_heard_of_at_each_step_in_order(
    worker: InMemoryWorker, noting: Noting
) -> None:
    worker.receive([PLAIN])
    assert noting.heard == [
        ("received", "id-1", "increment", "json"),
        ("started", "id-1"),
        ("ended", "id-1", "Succeeded", "done"),
        ("settled", "id-1", "done", "None"),
    ]


def test_the_end_says_when_the_task_started_if_it_did(
    worker: InMemoryWorker, noting: Noting
) -> None:
    worker.receive([PLAIN])
    worker.receive(["nonsense"])
    ran, refused = noting.messages
    assert ran.started_at is not None
    assert ran.started_at >= ran.delivery.received_at
    assert refused.started_at is None


def test_a_message_that_cannot_run_is_heard_of_at_its_end(
    worker: InMemoryWorker, noting: Noting
) -> None:
    worker.receive([PLAIN.replace("increment", "nobody"), "nonsense"])
    assert sorted(noting.heard) == [
        ("ended", "id-1", "UnknownTask", "released"),
        ("ended", "sqs-2", "Refused", "dead-letter"),
        ("settled", "id-1", "released", "None"),
        ("settled", "sqs-2", "dead-letter", "None"),
    ]


def test_an_outcome_that_sqs_never_hears_is_heard_of_with_the_error(
    worker: InMemoryWorker, fake: FakeSqs, noting: Noting
) -> None:
    fake.fail("DeleteMessageBatch", "AccessDenied")
    worker.receive([PLAIN])
    assert noting.heard[-1] == ("settled", "id-1", "done", "AccessDenied")


def test_a_pause_is_heard_of_when_it_begins_and_ends(
    worker: InMemoryWorker, noting: Noting
) -> None:
    worker.deliveries.pause("MongoDB is away", 0)
    worker.deliveries.pause("MongoDB is away", 0)
    worker.deliveries.resume("MongoDB is away")
    assert noting.heard == [("paused", "MongoDB is away"), ("paused",)]


@pytest.mark.parametrize(
    ("send", "heard"),
    [
        (lambda task: task.delay(input=1), [("published", "jobs", "1")]),
        (
            lambda task: publish_many(task, [{"input": n} for n in range(12)]),
            [("published", "jobs", "10"), ("published", "jobs", "2")],
        ),
    ],
    ids=["delay", "publish_many"],
)
def test_what_sqs_took_of_a_producer_is_heard_of(
    celery_app: Celery,
    noting: Noting,
    send: Callable[[Any], object],
    heard: list[tuple[str, ...]],
) -> None:
    send(celery_app.tasks["increment"])
    # Calls at the same time end in any order.
    assert sorted(noting.heard) == heard


def test_a_message_that_sqs_refuses_was_not_published(
    celery_app: Celery, fake: FakeSqs, noting: Noting
) -> None:
    fake.fail("SendMessageBatch", entries=[0], sender_fault=True)
    publish_many(celery_app.tasks["increment"], [{"input": n} for n in range(3)])
    assert noting.heard == [("published", "jobs", "2")]
