"""Many messages in flight: a worker that retries looks seldom, says so, and uses delayed copies."""

import logging
from collections.abc import Callable

import pytest

from sqs_broker.options import Options
from sqs_broker.rules.facts import facts_of
from sqs_broker.rules.outcomes import Done, Outcome, Released, Retry
from sqs_broker.sqs.in_flight import InFlight
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.receiver import Receiver
from sqs_broker.sqs.settlement import Reporter, Settlement
from sqs_broker.testing import Clock, FakeSqs
from tests.unit.conftest import VISIBILITY_TIMEOUT, Receive

LOOK = "GetQueueAttributes"

#: From so many on, the queue of these tests is crowded.
THRESHOLD = 3

#: Longer than the pause between two looks, and than all leases here.
LATER = 61

Look = Callable[[], bool]


@pytest.fixture
def in_flight(clock: Clock) -> InFlight:
    return InFlight(THRESHOLD, clock)


@pytest.fixture
def look(fake: FakeSqs, options: Options, in_flight: InFlight) -> Look:
    """Looks at the queue `jobs`. Whether it is crowded."""

    def look_once() -> bool:
        in_flight.look("jobs", Queue(options.queue("jobs").url, fake))
        return in_flight.is_crowded("jobs")

    return look_once


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    """The event and the count of each line."""
    lines = [vars(record) for record in caplog.records]
    return [(line["event"], line["count"]) for line in lines if "in_flight" in line["event"]]


def test_a_queue_is_crowded_from_the_threshold_on_and_each_change_is_one_line(
    receive: Receive, clock: Clock, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    crowded = []
    for count in (2, 3, 4, 0):
        clock.advance(LATER)  # What was in flight is visible again.
        for _ in range(count):
            receive()
        crowded.append(look())
    assert crowded == [False, True, True, False]
    assert events(caplog) == [("in_flight.high", 3), ("in_flight.normal", 0)]


def test_a_queue_is_looked_at_once_a_minute(fake: FakeSqs, clock: Clock, look: Look) -> None:
    for _ in range(3):
        for _ in range(5):
            look()
        clock.advance(60)
    assert fake.counts[LOOK] == 3


@pytest.mark.parametrize("outcome", [Done(), Released(30)])
def test_where_nothing_is_retried_no_queue_is_looked_at(
    fake: FakeSqs,
    options: Options,
    clock: Clock,
    in_flight: InFlight,
    receive: Receive,
    outcome: Outcome,
) -> None:
    report(fake, options, clock, in_flight, receive, outcome)
    assert fake.counts[LOOK] == 0


def test_where_messages_are_retried_their_queue_is_looked_at(
    fake: FakeSqs, options: Options, clock: Clock, in_flight: InFlight, receive: Receive
) -> None:
    for _ in range(3):
        report(fake, options, clock, in_flight, receive, Retry(30, "KeyError"))
    assert fake.asked(LOOK) == []  # Each `receive` forgets the calls before it.
    clock.advance(LATER)
    report(fake, options, clock, in_flight, receive, Retry(30, "KeyError"))
    (asked,) = fake.asked(LOOK)
    assert asked["QueueUrl"] == options.queue("jobs").url


def report(
    fake: FakeSqs,
    options: Options,
    clock: Clock,
    in_flight: InFlight,
    receive: Receive,
    outcome: Outcome,
) -> None:
    """Receive a message and report its outcome."""
    facts = facts_of(receive().delivery, None)
    reporter = Reporter(options, fake, clock, in_flight=in_flight)
    assert reporter.tell([Settlement(facts, outcome, clock() + VISIBILITY_TIMEOUT)]) == [None]


def test_if_sqs_does_not_say_how_many_are_in_flight_nothing_changes(
    fake: FakeSqs, clock: Clock, receive: Receive, look: Look
) -> None:
    for _ in range(THRESHOLD):
        receive()
    assert look()
    clock.advance(LATER)
    fake.deny(LOOK)
    assert look()


def test_a_receive_that_sqs_refuses_because_of_them_makes_the_queue_crowded(
    fake: FakeSqs,
    options: Options,
    clock: Clock,
    in_flight: InFlight,
    look: Look,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    receiver = Receiver(
        "jobs",
        options,
        fake,
        Leases(VISIBILITY_TIMEOUT, clock=clock),
        lambda _: None,
        in_flight=in_flight,
        clock=clock,
        first_pause=0,
    )
    fake.fail("ReceiveMessage", "AWS.SimpleQueueService.OverLimit")
    receiver.poll(0, 0)
    assert look()
    assert events(caplog) == [("in_flight.high", 120_000)]
    clock.advance(LATER)
    assert not look()
