"""Attempts: what is known about earlier deliveries, in a record and on a copy, in any version."""

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from sqs_broker.limits import MOST_BYTES
from sqs_broker.rules.admission import arrive
from sqs_broker.rules.attempts import MOST_RUNS, NOTHING, Record, Run, carried_in
from sqs_broker.rules.attributes import ATTEMPTS, DEAD_LETTER
from sqs_broker.rules.dead_letter import restored
from sqs_broker.rules.facts import facts_of
from sqs_broker.rules.foreign import ForeignMessage
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import (
    DeadLetter,
    Done,
    NotDue,
    Outcome,
    Postponed,
    Released,
    Retry,
)
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.receiver import delivery_of
from sqs_broker.sqs.records import records_of
from sqs_broker.sqs.requests import Received
from sqs_broker.sqs.settlement import Reporter, Settlement
from sqs_broker.testing import Clock, FakeSqs, MemoryAttempts
from tests.unit.conftest import VISIBILITY_TIMEOUT

TEN = {f"a{n}": {"DataType": "String", "StringValue": str(n)} for n in range(10)}


class Messages:
    """A queue whose messages are received and settled, by workers that share a store."""

    def __init__(self, fake: FakeSqs, clock: Clock, store: MemoryAttempts | None) -> None:
        self.fake, self.clock, self.store = fake, clock, store
        self.options = fake.options()
        self.url = self.options.queue("jobs").url
        self.queue = Queue(self.url, fake)

    def put(self, body: str = "{}", **facts: Any) -> str:
        return self.fake.put(self.url, body, **facts)

    def receive(self, most: int = 10) -> list[Delivery]:
        """What a worker receives, once it can receive anything."""
        messages: list[Received] = []
        while not messages:
            messages = self.queue.receive(most, 20)
        records = records_of([(m.message_id, m.receives) for m in messages], self.store)
        now = self.clock()
        return [delivery_of(m, "jobs", now, 0.0, records.get(m.message_id)) for m in messages]

    def settle(self, outcome: Outcome, *deliveries: Delivery) -> None:
        reporter = Reporter(self.options, self.fake, self.clock, attempts=self.store)
        errors = reporter.tell(
            [
                Settlement(facts_of(d, None), outcome, self.clock() + VISIBILITY_TIMEOUT)
                for d in deliveries
            ]
        )
        assert errors == [None] * len(deliveries)

    def again(self, outcome: Outcome) -> Delivery:
        """Receive the one message, settle it, and receive it again."""
        (delivery,) = self.receive()
        self.settle(outcome, delivery)
        (delivery,) = self.receive()
        return delivery


@pytest.fixture
def store() -> MemoryAttempts:
    return MemoryAttempts()


@pytest.fixture
def messages(fake: FakeSqs, clock: Clock, store: MemoryAttempts) -> Messages:
    return Messages(fake, clock, store)


FAILED = Retry(0, "KeyError")
RELEASED = Released()
COPIED = Postponed(0, is_again=True)
FAILED_AND_COPIED = Postponed(0, "KeyError", is_again=True)


# Records


def test_a_released_delivery_is_no_attempt_and_a_failed_one_is(messages: Messages) -> None:
    messages.put()
    for outcome, attempt in ((RELEASED, 1), (FAILED, 2), (RELEASED, 2), (FAILED, 3)):
        assert messages.again(outcome).attempt == attempt
        messages.clock.advance(VISIBILITY_TIMEOUT)  # That delivery ends without a report.


def test_what_succeeds_at_once_costs_no_call_of_the_store(
    messages: Messages, store: MemoryAttempts
) -> None:
    for _ in range(30):
        messages.put()
    for _ in range(3):
        messages.settle(Done(), *messages.receive())
    assert messages.fake.messages(messages.url) == []
    assert (store.reads, store.writes) == ([], [])


def test_a_receive_reads_once_and_only_what_was_delivered_before(
    messages: Messages, store: MemoryAttempts
) -> None:
    again = [messages.put(receives=number) for number in (1, 2)]
    messages.put()
    messages.receive()
    assert store.reads == [tuple(again)]


def test_the_failures_of_one_batch_are_one_write(messages: Messages, store: MemoryAttempts) -> None:
    for _ in range(10):
        messages.put()
    messages.settle(FAILED, *messages.receive())
    assert [len(changes) for changes in store.writes] == [10]


@pytest.mark.parametrize("outcome", [FAILED, FAILED_AND_COPIED])
def test_a_record_has_the_time_and_the_error_of_each_failed_run_and_costs_no_write_more(
    messages: Messages, store: MemoryAttempts, outcome: Outcome
) -> None:
    id_ = messages.put()
    before = datetime.now(UTC)
    messages.again(Released())
    messages.settle(outcome, *messages.receive())
    record = store.read([id_])[id_]
    ((delivery, at, error),) = [(run.delivery, run.at, run.error) for run in record.runs]
    assert (delivery, error, record.id) == (3, "KeyError", id_)
    assert before <= at <= datetime.now(UTC)
    assert len(store.writes) == 2


def test_a_record_keeps_the_latest_runs_once_each() -> None:
    record = Record()
    for number in (*range(1, MOST_RUNS + 4), MOST_RUNS + 3):
        record |= Record(runs=(Run(number, datetime.now(UTC), "KeyError"),))
    assert [run.delivery for run in record.runs] == list(range(4, MOST_RUNS + 4))


def test_a_failure_is_recorded_before_sqs_can_deliver_the_message_again(
    messages: Messages, store: MemoryAttempts
) -> None:
    messages.put()
    seen: list[int] = []
    messages.fake.on_call = lambda call: seen.append(len(store.writes))
    (delivery,) = messages.receive()
    messages.settle(FAILED, delivery)
    assert seen == [0, 1]  # The receive, and the change of visibility.


def test_a_settlement_that_is_repeated_counts_once(messages: Messages) -> None:
    messages.put()
    (delivery,) = messages.receive()
    messages.fake.lose_answer("ChangeMessageVisibilityBatch")
    settlement = Settlement(facts_of(delivery, None), Retry(5, "KeyError"), messages.clock() + 60)
    reporter = Reporter(messages.options, messages.fake, messages.clock, attempts=messages.store)
    for _ in range(2):
        reporter.tell([settlement])
    (delivery,) = messages.receive()
    assert delivery.attempt == 2


def test_while_the_store_is_away_fewer_attempts_count_and_never_more(
    messages: Messages, store: MemoryAttempts
) -> None:
    messages.put()
    assert messages.again(FAILED).attempt == 2
    store.is_away = True
    messages.clock.advance(VISIBILITY_TIMEOUT)
    assert messages.again(FAILED).attempt == 1
    store.is_away = False
    messages.clock.advance(VISIBILITY_TIMEOUT)
    assert messages.again(RELEASED).attempt == 2


def test_deliveries_to_a_worker_of_an_older_release_are_no_attempts(messages: Messages) -> None:
    # It records nothing, whether its runs failed or it released the message.
    messages.put(receives=6)
    (delivery,) = messages.receive()
    assert (delivery.attempt, delivery.deliveries) == (1, 7)


@pytest.mark.parametrize("receives", [0, 2, 5])
def test_without_a_store_each_delivery_counts_as_an_attempt(
    fake: FakeSqs, clock: Clock, receives: int
) -> None:
    messages = Messages(fake, clock, None)
    messages.put(receives=receives)
    (delivery,) = messages.receive()
    assert delivery.attempt == receives + 1


# Sharing a job


def test_a_message_shares_no_job_once_a_delivery_ended_without_a_report(
    messages: Messages,
) -> None:
    messages.put()
    assert messages.receive()[0].may_share
    messages.clock.advance(VISIBILITY_TIMEOUT)
    # The first delivery ended without a report: it may have ended a process.
    assert not messages.again(RELEASED).may_share


@pytest.mark.parametrize(("outcome", "shares"), [(RELEASED, True), (FAILED, False)])
@pytest.mark.parametrize(("copied", "shares_after"), [(COPIED, True), (FAILED_AND_COPIED, False)])
def test_a_copy_may_share_a_job_if_its_message_may(
    messages: Messages, outcome: Outcome, shares: bool, copied: Outcome, shares_after: bool
) -> None:
    messages.put()
    delivery = messages.again(outcome)
    assert delivery.may_share is shares
    messages.settle(copied, delivery)
    (copy,) = messages.receive()
    assert copy.may_share is (shares and shares_after)


# Copies


def test_a_copy_carries_the_attempts_the_deliveries_and_the_first_receive(
    messages: Messages,
) -> None:
    messages.put()
    delivery = messages.again(FAILED)
    began = delivery.first_received_at
    messages.clock.advance(30)
    messages.settle(FAILED_AND_COPIED, delivery)
    (copy,) = messages.receive()
    assert (copy.count, copy.deliveries, copy.attempt) == (1, 3, 3)
    assert copy.carried.first == began
    assert copy.age >= 30
    messages.settle(COPIED, copy)
    (copy,) = messages.receive()
    assert (copy.count, copy.deliveries, copy.attempt) == (1, 4, 3)
    assert copy.carried.first == began


def test_plain_json_without_an_id_keeps_its_id_on_a_copy(messages: Messages) -> None:
    id_ = messages.put('{"plain": 1}')
    for _ in range(2):
        copy = messages.again(FAILED_AND_COPIED)
        arrival = arrive(copy, lambda _: ForeignMessage("job", {}, None))
        assert arrival.headers is not None
        assert arrival.headers["id"] == arrival.headers["delivery"].message_id == id_
        assert not arrival.headers["delivery"].has_producer_id
        messages.settle(FAILED, copy)


def test_the_task_sees_how_many_runs_failed_before(messages: Messages) -> None:
    messages.put('{"plain": 1}')
    delivery = messages.again(RELEASED)
    messages.settle(FAILED, delivery)
    (delivery,) = messages.receive()
    arrival = arrive(delivery, lambda _: ForeignMessage("job", {}, None))
    assert arrival.headers is not None
    assert arrival.headers["retries"] == 1
    assert arrival.headers["delivery"].attempt == 2
    assert arrival.headers["delivery"].deliveries == 3


def test_a_retry_that_is_longer_than_sqs_delays_waits_on_copies_until_it_is_due(
    messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    messages.put('{"plain": 1}')
    (delivery,) = messages.receive()
    messages.settle(Postponed(2_000, "KeyError", is_again=True), delivery)
    waited = []
    while True:
        before = messages.clock()
        (copy,) = messages.receive()
        now += messages.clock() - before
        waited.append(messages.clock() - before)
        arrival = arrive(copy, lambda _: ForeignMessage("job", {}, None))
        if not isinstance(arrival.ended, NotDue):
            break
        messages.settle(Postponed(min(arrival.ended.delay, 900)), copy)
    assert waited == [900, 900, 200]
    assert copy.attempt == 2


@pytest.mark.parametrize(
    ("body", "attributes"),
    [("{}", TEN), ("x" * (MOST_BYTES - 10), {})],
    ids=["ten attributes", "as large as can be"],
)
def test_a_copy_that_has_no_room_begins_anew(
    messages: Messages, body: str, attributes: dict[str, Any]
) -> None:
    messages.put(body, attributes=attributes)
    delivery = messages.again(FAILED)
    messages.settle(FAILED_AND_COPIED, delivery)
    (copy,) = messages.receive()
    assert (copy.body, copy.attributes) == (body, attributes)
    assert copy.attempt == 1


def test_a_message_that_was_never_due_is_copied_as_it_is(messages: Messages) -> None:
    messages.put(attributes=TEN)
    assert messages.again(Postponed(5)).attributes == TEN


# What other programs and older releases make of it


def test_a_copy_that_an_older_release_sends_on_keeps_its_attempts(messages: Messages) -> None:
    messages.put()
    copy = messages.again(FAILED_AND_COPIED)
    messages.put(copy.body, attributes=copy.attributes)  # It leaves the attributes as they are.
    messages.settle(Done(), copy)
    (copy,) = messages.receive()
    assert copy.attempt == 2


@pytest.mark.parametrize("has_reason", [True, False])
def test_a_redriven_message_begins_anew(messages: Messages, has_reason: bool) -> None:
    messages.put()
    copy = messages.again(FAILED_AND_COPIED)
    reason = {DEAD_LETTER: {"DataType": "String", "StringValue": '{"reason": "why"}'}}
    # With its reason, as Amazon's console redrives it; without, as `redrive` does.
    found = {**copy.attributes, **reason}
    assert carried_in(found if has_reason else restored(found)) == NOTHING


def test_a_dead_letter_has_the_sums_in_its_reason_and_not_in_an_attribute(
    messages: Messages,
) -> None:
    messages.put()
    copy = messages.again(FAILED_AND_COPIED)
    messages.settle(DeadLetter("why", "KeyError"), copy)
    (dead,) = messages.fake.messages(f"{messages.url}-dlq")
    assert set(dead.attributes) == {DEAD_LETTER}
    assert json.loads(dead.attributes[DEAD_LETTER]["StringValue"])["deliveries"] == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "nonsense",
        "[" * 100_000,
        "[]",
        '"text"',
        '{"failed": -1, "released": "2", "deliveries": true, "first": "now", "due": NaN, "id": ""}',
        '{"failed": 1.5, "first": 1e999, "id": 7}',
        json.dumps({"id": "x" * 256, "due": 10**400}),
    ],
)
def test_what_cannot_be_read_on_a_message_is_nothing(content: str) -> None:
    attributes = {ATTEMPTS: {"DataType": "String", "StringValue": content}}
    assert carried_in(attributes) == NOTHING
    assert carried_in({ATTEMPTS: {"DataType": "Binary", "BinaryValue": b"\xff"}}) == NOTHING


def test_a_first_receive_in_the_future_gives_no_grace(messages: Messages) -> None:
    future = {ATTEMPTS: {"DataType": "String", "StringValue": '{"first": 99999999999}'}}
    messages.put(attributes=future)
    delivery = messages.again(Released(30))
    assert delivery.age >= 30


def test_records_add_up() -> None:
    one, two = Record(frozenset({1}), frozenset({2})), Record(frozenset({1, 3}))
    assert one | two == Record(frozenset({1, 3}), frozenset({2}))
