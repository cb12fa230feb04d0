"""A worker and the store of failed runs: what the store costs, what a task sees of it, and that a
Lambda function counts alike."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, current_app
from celery.concurrency.base import BasePool
from celery.worker import state
from kombu.asynchronous import set_event_loop

from app.messages import Increment
from sqs_broker import install
from sqs_broker.function import Function
from sqs_broker.rules.attempts import Record
from sqs_broker.rules.outcomes import DeadLetter, Done, Retry
from sqs_broker.testing import Clock, FakeSqs
from tests.lambda_trigger import Trigger
from tests.unit.conftest import GivePlane
from tests.unit.in_memory import ControlDatabase, InMemoryWorker, Outcomes, new_sqs


class Pool(BasePool):
    """Runs a task at once: an odd number fails."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: `retries` of each run.
        self.retries: list[int] = []

    def apply_async(
        self, target: Any, args: Any, accept_callback: Any, callback: Any, **_: Any
    ) -> None:
        _, _, request, body, *_ = args
        self.retries.append(request["retries"])
        accept_callback(1, 0.0)
        try:
            if body[1]["input"] % 2:
                raise KeyError
        except KeyError:
            callback((1, ExceptionInfo(), 0.0))
        else:
            callback((0, None, 0.0))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    return new_sqs(clock)


@pytest.fixture
def store() -> ControlDatabase:
    return ControlDatabase()


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


StartWorker = Callable[[], AbstractContextManager[InMemoryWorker]]


@pytest.fixture
def worker(start_worker: StartWorker) -> Iterator[InMemoryWorker]:
    with start_worker() as running:
        yield running


@pytest.fixture
def app(fake: FakeSqs, outcomes: Outcomes, store: ControlDatabase, give_plane: GivePlane) -> Celery:
    address = give_plane(store=store)
    app = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    install(app)
    app.conf.update(
        broker_transport_options=fake.transport_options(
            decode_json="app.messages:decode_json",
            observers=[outcomes],
            control={"database_uri": address.uri, "database": address.database},
        ),
        task_default_queue="jobs",
        task_acks_late=True,
        task_ignore_result=True,
        task_time_limit=30,
        worker_send_task_events=False,
    )

    @app.task(shared=False, name="increment", model=Increment)
    def increment(message: Increment, _: Any) -> None:
        if message.input % 2:
            raise KeyError

    return app


@pytest.fixture
def start_worker(app: Celery, fake: FakeSqs, clock: Clock, outcomes: Outcomes) -> StartWorker:
    @contextmanager
    def start() -> Iterator[InMemoryWorker]:
        running = InMemoryWorker(app, fake, clock, outcomes, Pool)
        try:
            yield running
        finally:
            running.close()
            set_event_loop(None)
            state.requests.clear()
            state.reserved_requests.clear()

    return start


@pytest.fixture
def trigger(app: Celery, fake: FakeSqs, clock: Clock) -> Iterator[Trigger]:
    """A Lambda function of the same app, behind the same queue."""
    before = current_app._get_current_object()
    function = Function(app, clock=clock, write=lambda line: None)
    yield Trigger(fake, fake.options().queue("jobs").url, function)
    before.set_current()


def plain(number: int) -> str:
    return f'{{"id": "id-{number}", "action": "increment", "data": {{"input": {number}}}}}'


def test_what_succeeds_makes_no_call_of_the_store(
    worker: InMemoryWorker, store: ControlDatabase
) -> None:
    assert worker.receive([plain(2 * n) for n in range(30)]) == [Done()] * 30
    assert (store.memory.reads, store.memory.writes) == ([], [])


def test_failures_that_are_settled_together_are_one_write(
    worker: InMemoryWorker, store: ControlDatabase
) -> None:
    outcomes = worker.receive([plain(2 * n + 1) for n in range(10)])
    assert {type(outcome) for outcome in outcomes} == {Retry}
    assert sum(len(changes) for changes in store.memory.writes) == 10
    assert len(store.memory.writes) <= 3
    assert store.memory.reads == []


def test_a_task_has_all_its_attempts_however_often_its_message_was_delivered(
    worker: InMemoryWorker, fake: FakeSqs, store: ControlDatabase
) -> None:
    # Six workers released it.
    assert [type(outcome) for outcome in worker.receive([plain(1)], receives=6)] == [Retry]
    assert worker.pool.retries == [0]
    assert len(store.memory.reads) == 1


def test_the_failed_runs_of_other_workers_count(
    worker: InMemoryWorker, fake: FakeSqs, store: ControlDatabase
) -> None:
    store.memory.add({"sqs-1": Record(failed=frozenset({2, 5}))})
    (outcome,) = worker.receive([plain(1)], receives=6)
    assert outcome == DeadLetter(
        "the task failed in the last attempt with KeyError (failed runs: 3, deliveries: 7)",
        "KeyError",
    )
    assert worker.pool.retries == [2]


def test_runs_that_failed_in_a_worker_and_in_a_function_are_attempts_of_one_message(
    start_worker: StartWorker,
    trigger: Trigger,
    clock: Clock,
    store: ControlDatabase,
    outcomes: Outcomes,
) -> None:
    with start_worker() as worker:
        assert [type(outcome) for outcome in worker.receive([plain(1)])] == [Retry]
    clock.advance(2)
    assert trigger.poll() == 1
    outcomes.by_id.clear()  # Those of the function.
    ((id_, found),) = store.memory.read(["sqs-1"]).items()
    assert found == Record(failed=frozenset({1, 2}))
    clock.advance(4)
    with start_worker() as worker:
        (outcome,) = worker.outcomes_of([id_])
        assert worker.pool.retries == [2]
    assert outcome == DeadLetter(
        "the task failed in the last attempt with KeyError (failed runs: 3, deliveries: 3)",
        "KeyError",
    )


def test_a_delivery_that_a_function_released_is_no_attempt_in_a_worker(
    start_worker: StartWorker,
    trigger: Trigger,
    fake: FakeSqs,
    store: ControlDatabase,
    outcomes: Outcomes,
) -> None:
    id_ = fake.put(trigger.url, plain(1))
    # So short that no task can start.
    trigger.timeout = 5
    assert trigger.poll() == 1
    outcomes.by_id.clear()  # Those of the function.
    assert store.memory.read([id_]) == {id_: Record(released=frozenset({1}))}
    with start_worker() as worker:
        assert [type(outcome) for outcome in worker.outcomes_of([id_])] == [Retry]
        assert worker.pool.retries == [0]
