"""A paused queue: nothing is received from it, by no worker, until its pause ends."""

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from devstack.waiting import wait_until
from sqs_broker.machine.inbox import Inbox
from sqs_broker.observers.observer import Observer
from sqs_broker.rules.pause import Pause
from sqs_broker.sqs.deliveries import Deliveries
from sqs_broker.sqs.receiver import ANSWER_MARGIN
from sqs_broker.testing import Clock, FakeSqs
from sqs_broker.worker.pausing import Obedience

#: Seconds that nothing here comes near to.
DEADLINE = 30

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BODY = json.dumps(
    {
        "body": json.dumps([[], {}, {}]),
        "headers": {"task": "job", "id": "id-1"},
        "properties": {"delivery_info": {}},
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }
)


class Noting(Observer):
    """Keeps the pauses that it is told of."""

    def __init__(self) -> None:
        self.told: list[frozenset[str]] = []

    def paused(self, reasons: frozenset[str]) -> None:
        self.told.append(reasons)


class Worker:
    """Receives from two queues, once it is started."""

    def __init__(self, fake: FakeSqs) -> None:
        self.fake = fake
        self.observer = Noting()
        self.inbox = Inbox()
        self.deliveries = Deliveries(
            fake.options(), lambda tag: None, silence=lambda: 0.0, observers=self.observer
        )
        self.deliveries.resize(2)

    def start(self, *queues: str) -> None:
        for queue in queues or ("jobs", "mail"):
            self.deliveries.receive(queue, self.inbox)

    def has_polled(self, queue: str) -> bool:
        url = self.fake.options().queue(queue).url
        return any(call["QueueUrl"] == url for call in self.fake.asked("ReceiveMessage"))

    def await_poll(self, queue: str) -> None:
        wait_until(lambda: self.has_polled(queue), DEADLINE, f"a poll of {queue}")


@pytest.fixture
def fake() -> FakeSqs:
    made = FakeSqs(Clock(), holds_polls=True)
    for name in ("jobs", "mail"):
        made.create_queue(name, dead_letters=f"{name}-dlq", visibility_timeout=60)
    return made


@pytest.fixture
def worker(fake: FakeSqs) -> Iterator[Worker]:
    made = Worker(fake)
    yield made
    fake.end_polls()
    made.deliveries.close()
    made.inbox.close()


def pause(queue: str = "jobs", until: datetime | None = None, why: str = "deploy") -> Pause:
    return Pause(queue, why, "kim", NOW, until)


def changes(fake: FakeSqs) -> list[int]:
    entries = fake.entries("ChangeMessageVisibilityBatch")
    return [entry["VisibilityTimeout"] for entry in entries]


# The worker's side


def test_a_queue_that_is_paused_before_the_first_poll_is_never_polled(worker: Worker) -> None:
    worker.deliveries.pause_queue("jobs", "deploy")
    worker.start()
    worker.await_poll("mail")
    assert not worker.has_polled("jobs")
    assert worker.deliveries.pauses == {"jobs: deploy"}
    assert worker.observer.told == [{"jobs: deploy"}]


def test_after_the_pause_the_queue_is_polled(worker: Worker) -> None:
    worker.deliveries.pause_queue("jobs", "deploy")
    worker.start()
    worker.deliveries.resume_queue("jobs")
    worker.await_poll("jobs")
    assert worker.deliveries.pauses == frozenset()
    assert worker.observer.told[-1] == frozenset()


def test_a_pause_releases_what_waits_until_the_open_polls_of_all_workers_are_over(
    worker: Worker, fake: FakeSqs
) -> None:
    options = fake.options()
    fake.put(options.queue("jobs").url, BODY)
    fake.put(options.queue("mail").url, BODY)
    worker.start()
    wait_until(lambda: len(worker.deliveries.leases) == 2, DEADLINE, "both messages")
    held = {lease.delivery.queue: lease.delivery.tag for lease in worker.deliveries.leases.all()}
    worker.deliveries.pause_queue("jobs", "deploy")
    assert [worker.deliveries.holds(held[name]) for name in ("jobs", "mail")] == [False, True]
    wait_until(lambda: changes(fake), DEADLINE, "the release")
    assert changes(fake) == [options.wait_time_seconds + ANSWER_MARGIN]


def test_what_an_open_poll_still_brings_is_released(worker: Worker, fake: FakeSqs) -> None:
    worker.start("jobs")
    worker.await_poll("jobs")
    worker.deliveries.pause_queue("jobs", "deploy")
    fake.put(fake.options().queue("jobs").url, BODY)
    wait_until(lambda: changes(fake), DEADLINE, "the release")
    assert worker.inbox.take_all() == []


def test_the_end_of_a_pause_does_not_make_a_stopping_worker_receive(worker: Worker) -> None:
    worker.deliveries.pause_queue("jobs", "deploy")
    worker.start()
    worker.await_poll("mail")
    worker.deliveries.stop_receiving()
    worker.deliveries.resume_queue("jobs")
    assert worker.deliveries.receivers == ()


def test_a_queue_that_the_worker_does_not_receive_from_is_not_reported(worker: Worker) -> None:
    worker.start("mail")
    worker.deliveries.pause_queue("jobs", "deploy")
    assert (worker.deliveries.pauses, worker.observer.told) == (frozenset(), [])


# What the control database says


class Database:
    """The pauses there, or the error of a read."""

    def __init__(self, *pauses: Pause) -> None:
        self.pauses: list[Pause] = list(pauses)
        self.error: Exception | None = None
        self.now = NOW

    def read(self) -> list[Pause]:
        if self.error is not None:
            raise self.error
        return self.pauses


class Queues:
    """What is paused, and what is received from."""

    def __init__(self) -> None:
        self.paused_queues: dict[str, str] = {}
        self.consumed = {"jobs", "mail"}

    def consumes(self, queue: str) -> bool:
        return queue in self.consumed

    def pause_queue(self, queue: str, reason: str) -> None:
        self.paused_queues[queue] = reason

    def resume_queue(self, queue: str) -> None:
        self.paused_queues.pop(queue, None)


def look(database: Database, obedience: Obedience, queues: Queues) -> set[str]:
    """What is paused after the next look."""
    with suppress(OSError):
        obedience.read()
    obedience.apply(queues)
    return set(queues.paused_queues)


@pytest.fixture
def database() -> Database:
    return Database(pause())


@pytest.fixture
def obedience(database: Database) -> Obedience:
    return Obedience(database.read, lambda: database.now)


def test_the_worker_pauses_and_resumes_what_the_database_says(
    database: Database, obedience: Obedience, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    queues = Queues()
    assert look(database, obedience, queues) == {"jobs"}
    assert look(database, obedience, queues) == {"jobs"}
    database.pauses = [pause("mail")]
    assert look(database, obedience, queues) == {"mail"}
    said = [(vars(record)["event"], vars(record)["queue"]) for record in caplog.records]
    assert said == [("queue.paused", "jobs"), ("queue.paused", "mail"), ("queue.resumed", "jobs")]


def test_a_pause_is_logged_once_the_worker_receives_from_the_queue(
    database: Database, obedience: Obedience, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    queues = Queues()
    queues.consumed = {"mail"}
    database.pauses = [pause(), pause("other")]
    assert look(database, obedience, queues) == {"jobs", "other"}
    assert caplog.records == []
    queues.consumed.add("jobs")
    look(database, obedience, queues)
    database.pauses = []
    look(database, obedience, queues)
    said = [(vars(record)["event"], vars(record)["queue"]) for record in caplog.records]
    assert said == [("queue.paused", "jobs"), ("queue.resumed", "jobs")]


def test_a_pause_ends_by_itself_also_while_mongodb_is_away(
    database: Database, obedience: Obedience
) -> None:
    queues = Queues()
    database.pauses = [pause("jobs", NOW + timedelta(minutes=30)), pause("mail")]
    look(database, obedience, queues)
    database.error = OSError()
    database.now += timedelta(minutes=29)
    assert look(database, obedience, queues) == {"jobs", "mail"}
    database.now += timedelta(minutes=1)
    assert look(database, obedience, queues) == {"mail"}


def test_a_pause_that_is_read_at_a_new_connection_holds_for_it(
    database: Database, obedience: Obedience
) -> None:
    look(database, obedience, Queues())
    database.error = OSError()
    assert look(database, obedience, Queues()) == {"jobs"}


def test_a_changed_reason_is_the_one_that_is_shown(
    database: Database, obedience: Obedience
) -> None:
    queues = Queues()
    look(database, obedience, queues)
    database.pauses = [pause(why="still")]
    look(database, obedience, queues)
    assert queues.paused_queues["jobs"].startswith("still (kim, ")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"_id": 7, "at": NOW},
        {"_id": "jobs"},
        {"_id": "jobs", "at": "today"},
        {"_id": "jobs", "at": NOW, "until": "tomorrow"},
    ],
)
def test_a_document_of_somebody_else_is_no_pause(document: dict[str, Any]) -> None:
    assert Pause.read(document) is None


def test_a_pause_is_read_as_mongodb_returns_it() -> None:
    stored = {"_id": "jobs", "reason": "deploy", "by": "kim", "at": NOW.replace(tzinfo=None)}
    assert Pause.read(stored) == pause()
