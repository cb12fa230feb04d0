"""The writer of outcomes: a caller never waits and never fails, and what can be written is."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic

import pytest
from pymongo.errors import AutoReconnect

from app.outcomes.observer import OutcomeObserver
from app.outcomes.outcome import CLOCKS, DISCARDED, Seen, State, user_in
from app.outcomes.writer import BATCH, ROOM, Refused, Writer
from sqs_broker.rules import outcomes
from sqs_broker.rules.facts import Facts, facts_of
from sqs_broker.rules.outcomes import DeadLetter, Done, Happened, Outcome, Released, Retry
from tests.services import wait_until
from tests.unit.conftest import HEADERS, MakeDelivery

SECONDS = 10
NOW = datetime(2026, 11, 27, tzinfo=UTC)
ID = "0123456789abcdef0123456789abcdef01234567"


def seen(n: int = 0, state: State = State.FAILED) -> Seen:
    return Seen(f"{n:040x}", state, NOW)


class Database:
    """Takes batches, or raises what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[Seen]] = []
        self.error: Exception | None = None
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()

    def write(self, batch: Sequence[Seen]) -> None:
        self.calls += 1
        self.gate.wait(SECONDS)
        if self.error is not None:
            raise self.error
        self.batches.append(list(batch))

    @property
    def stored(self) -> list[Seen]:
        return [each for batch in self.batches for each in batch]


@pytest.fixture
def database() -> Database:
    return Database()


# The writer


def test_outcomes_that_come_together_are_one_write(database: Database) -> None:
    writer = Writer(database.write)
    for n in range(50):
        writer.put(seen(n))
    assert writer.flush(SECONDS)
    assert [len(batch) for batch in database.batches] == [50]


def test_a_caller_does_not_wait_for_mongodb(database: Database) -> None:
    database.gate.clear()
    writer = Writer(database.write, gather=0)
    began = monotonic()
    for n in range(2 * BATCH):
        writer.put(seen(n))
        writer.put_pending(seen(n, State.PENDING))
    assert not writer.flush(0.1)
    assert monotonic() - began < SECONDS / 2
    database.gate.set()
    assert writer.flush(SECONDS)
    assert {each.id for each in database.stored} == {seen(n).id for n in range(2 * BATCH)}


def test_what_comes_in_an_outage_is_written_after_it(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.error = AutoReconnect("away")
    writer = Writer(database.write, gather=0)
    writer.put(seen(1))
    wait_until(lambda: database.calls, SECONDS, "a try")
    writer.put(seen(2))
    assert not writer.flush(SECONDS)
    database.error = None
    wait_until(lambda: len(database.stored) == 2, SECONDS, "both outcomes")
    assert [vars(record)["event"] for record in caplog.records] == ["outcomes.failed"]


def test_a_flush_in_an_outage_returns_at_once(database: Database) -> None:
    database.error = AutoReconnect("away")
    writer = Writer(database.write, gather=0)
    writer.put(seen())
    began = monotonic()
    assert not writer.flush(SECONDS)
    assert monotonic() - began < SECONDS / 2


def test_what_is_too_much_is_lost_and_counted(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    database.gate.clear()
    writer = Writer(database.write, gather=0)
    writer.put(seen())
    wait_until(lambda: database.calls, SECONDS, "a write that hangs")
    for n in range(ROOM + 7):
        writer.put(seen(n))
    database.gate.set()
    assert writer.flush(SECONDS)
    assert len(database.stored) == ROOM + 1
    [lost] = [r for r in caplog.records if vars(r)["event"] == "outcomes.lost"]
    assert vars(lost)["count"] == 7


def test_a_document_that_a_validator_refuses_holds_up_no_other(database: Database) -> None:
    database.error = Refused(121, 1, is_final=True)
    writer = Writer(database.write, gather=0)
    writer.put(seen(1))
    wait_until(lambda: database.calls, SECONDS, "a try")
    database.error = None
    writer.put(seen(2))
    wait_until(lambda: database.stored == [seen(2)], SECONDS, "the other outcome")


def test_pending_is_written_only_if_no_outcome_follows_soon(database: Database) -> None:
    writer = Writer(database.write, gather=0)
    writer.put_pending(seen(1, State.PENDING))
    writer.put(seen(1, State.REGISTERED))
    writer.put_pending(seen(2, State.PENDING))
    wait_until(lambda: len(database.stored) >= 2, SECONDS, "both")
    assert {(each.id, each.state) for each in database.stored} == {
        (seen(1).id, State.REGISTERED),
        (seen(2).id, State.PENDING),
    }


# The observer


@pytest.fixture
def observer(database: Database) -> OutcomeObserver:
    return OutcomeObserver(lambda: Writer(database.write), now=lambda: NOW)


@pytest.fixture
def message(make_delivery: MakeDelivery) -> Facts:
    body = '{"id": "x", "action": "registerUser", "data": {"stockId": "s1", "user_id": "u1"}}'
    facts = facts_of(make_delivery(body=body, message_id="sqs-1"), HEADERS)
    return replace(facts, task="registerUser", id=ID)


def ended(
    observer: OutcomeObserver, database: Database, message: Facts, what: Happened, end: Outcome
) -> list[Seen]:
    observer.received(message)
    observer.ended(message, what, end)
    observer.settled(message, end, None)
    assert observer.writer.flush(SECONDS)
    return [each for each in database.stored if each.state is not State.PENDING]


@pytest.mark.parametrize(
    ("what", "end", "state", "reason"),
    [
        (outcomes.Succeeded(), Done(), State.REGISTERED, None),
        (outcomes.Refused("why", "Conflict"), DeadLetter("why", "Conflict"), State.CONFLICT, "why"),
        (outcomes.Failed("KeyError", "w"), DeadLetter("w", "KeyError"), State.FAILED, "w"),
        (outcomes.Discarded("expired"), Done(), State.EXPIRED, DISCARDED["expired"]),
        (outcomes.Discarded("revoked"), Done(), State.FAILED, DISCARDED["revoked"]),
        (outcomes.Discarded("terminated"), Done(), State.FAILED, DISCARDED["terminated"]),
    ],
)
def test_each_end_of_a_message_is_one_outcome(
    observer: OutcomeObserver,
    database: Database,
    message: Facts,
    what: Happened,
    end: Outcome,
    state: State,
    reason: str | None,
) -> None:
    expected = Seen(ID, state, NOW, reason, ("s1", "u1"), "sqs-1")
    assert ended(observer, database, message, what, end) == [expected]


@pytest.mark.parametrize(
    ("what", "end"),
    [
        (outcomes.Failed("KeyError", "w"), Retry(3, "KeyError")),
        (outcomes.NotStarted(), Released()),
        (outcomes.Copied(), Done()),
    ],
)
def test_a_message_that_has_not_ended_stays_pending(
    observer: OutcomeObserver, database: Database, message: Facts, what: Happened, end: Outcome
) -> None:
    assert ended(observer, database, message, what, end) == []
    assert [each.state for each in database.stored] == [State.PENDING]


def test_a_dead_letter_that_sqs_did_not_take_is_no_outcome(
    observer: OutcomeObserver, database: Database, message: Facts
) -> None:
    end = DeadLetter("w", "KeyError")
    observer.ended(message, outcomes.Failed("KeyError", "w"), end)
    observer.settled(message, end, "AccessDenied")
    observer.settled(replace(message, id="1" * 40), end, None)
    assert observer.writer.flush(SECONDS)
    assert [each.id for each in database.stored] == ["1" * 40]


def test_a_dead_letter_that_is_redriven_is_pending_before_the_command_ends(
    observer: OutcomeObserver,
    database: Database,
    message: Facts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MONGO_URI", "mongodb://127.0.0.1:1/x")
    observer.redriven([message, replace(message, id="plain-1")], NOW)
    # An outcome of the redriven message itself, by another clock, is not older than the margin.
    assert database.stored == [Seen(ID, State.PENDING, NOW, margin=CLOCKS)]


def test_a_redrive_needs_no_mongodb(
    observer: OutcomeObserver, database: Database, message: Facts
) -> None:
    observer.redriven([message], NOW)
    assert database.calls == 0


@pytest.mark.parametrize(
    "change", [{"task": "increment"}, {"id": "plain-1"}, {"task": None}, {"id": ID.upper()}]
)
def test_nothing_is_kept_of_other_messages(
    observer: OutcomeObserver, database: Database, message: Facts, change: dict[str, str | None]
) -> None:
    other = replace(message, **change)  # type: ignore[arg-type]  # the fields are those of Facts
    assert ended(observer, database, other, outcomes.Succeeded(), Done()) == []
    assert database.calls == 0


@pytest.mark.parametrize(
    "body",
    [
        *("", "7", "[]", "{}", "[" * 100_000, '{"data": 7}', '{"data": {"stockId": "s"}}'),
        '{"data": {"stockId": 1, "userId": "u"}}',
        '{"data": {"stockId": "s", "userId": null}}',
    ],
    ids=range(9),
)
def test_a_body_without_a_key_has_none(body: str) -> None:
    assert user_in(body) is None
