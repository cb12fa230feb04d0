"""A worker and the store of failed runs: what the store costs, and what a task sees of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.concurrency.base import BasePool
from celery.worker import state
from kombu.asynchronous import set_event_loop

from app.messages import Increment
from sqs_broker import install
from sqs_broker.rules.attempts import Record
from sqs_broker.rules.outcomes import DeadLetter, Done, Retry
from sqs_broker.testing import Clock, FakeSqs, MemoryAttempts
from tests.unit.conftest import GivePlane
from tests.unit.in_memory import InMemoryWorker, Outcomes, new_sqs


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


class Store:
    """The control database of a worker, as far as attempts go."""

    def __init__(self) -> None:
        self.memory = MemoryAttempts()

    def attempts(self, message_ids: Sequence[str]) -> dict[str, Record]:
        return dict(self.memory.read(message_ids))

    def add_attempts(self, changes: Mapping[str, Record]) -> dict[str, Record]:
        self.memory.add(changes)
        return dict(changes)

    def close(self) -> None:
        """Does nothing."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    return new_sqs(clock)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


@pytest.fixture
def worker(
    fake: FakeSqs, clock: Clock, outcomes: Outcomes, store: Store, give_plane: GivePlane
) -> Iterator[InMemoryWorker]:
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
    def increment(*_: Any) -> None: ...

    running = InMemoryWorker(app, fake, clock, outcomes, Pool)
    yield running
    running.close()
    set_event_loop(None)
    state.requests.clear()
    state.reserved_requests.clear()


def plain(number: int) -> str:
    return f'{{"id": "id-{number}", "action": "increment", "data": {{"input": {number}}}}}'


def test_what_succeeds_makes_no_call_of_the_store(worker: InMemoryWorker, store: Store) -> None:
    assert worker.receive([plain(2 * n) for n in range(30)]) == [Done()] * 30
    assert (store.memory.reads, store.memory.writes) == ([], [])


def test_failures_that_are_settled_together_are_one_write(
    worker: InMemoryWorker, store: Store
) -> None:
    outcomes = worker.receive([plain(2 * n + 1) for n in range(10)])
    assert {type(outcome) for outcome in outcomes} == {Retry}
    assert sum(len(changes) for changes in store.memory.writes) == 10
    assert len(store.memory.writes) <= 3
    assert store.memory.reads == []


def test_a_task_has_all_its_attempts_however_often_its_message_was_delivered(
    worker: InMemoryWorker, fake: FakeSqs, store: Store
) -> None:
    # Six workers released it.
    assert [type(outcome) for outcome in worker.receive([plain(1)], receives=6)] == [Retry]
    assert worker.pool.retries == [0]
    assert len(store.memory.reads) == 1


def test_the_failed_runs_of_other_workers_count(
    worker: InMemoryWorker, fake: FakeSqs, store: Store
) -> None:
    store.memory.add({"sqs-1": Record(failed=frozenset({2, 5}))})
    (outcome,) = worker.receive([plain(1)], receives=6)
    assert outcome == DeadLetter(
        "the task failed in the last attempt with KeyError (failed runs: 3, deliveries: 7)",
        "KeyError",
    )
    assert worker.pool.retries == [2]
