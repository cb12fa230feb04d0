"""Whatever a task asks for and whatever is configured: SQS is never told a time that it refuses."""

from datetime import UTC, datetime, timedelta, timezone
from math import inf
from time import monotonic
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sqs_broker.limits import LONGEST_DELAY, LONGEST_VISIBILITY
from sqs_broker.rules.facts import facts_of
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.rules.outcomes import (
    DeadLetter,
    Done,
    Failed,
    Happened,
    NotDue,
    NotStarted,
    Postponed,
    Refused,
    Released,
    Retry,
    RetryAsked,
    Succeeded,
    decide,
)
from sqs_broker.rules.policy import Policy
from sqs_broker.sqs.heartbeat import seconds_for
from sqs_broker.sqs.publisher import message_for
from sqs_broker.sqs.settlement import Settlement
from tests.unit.conftest import MakeDelivery

MANY = settings(derandomize=True, database=None, max_examples=500)

counts = st.integers(-1, 10_000)
policies = st.builds(
    Policy,
    visibility_timeout=st.integers(1, LONGEST_VISIBILITY),
    max_attempts=st.integers(1, 1_000),
    max_receive_count=st.integers(1, 1_000),
    backoff_base=st.floats(1e-9, 1e300),
    # Also what celeryconfig.py would refuse: another project gives its own numbers.
    backoff_max=st.integers(1, 10 * LONGEST_VISIBILITY),
)
#: A task may give any number for a countdown.
odd = st.sampled_from([float("nan"), float("inf"), -0.0, 43_200.5, 1e-300])
seconds = st.none() | odd | st.floats() | st.integers(-(2**70), 2**70)
happenings = st.one_of(
    st.just(Succeeded()),
    st.just(NotStarted()),
    st.builds(RetryAsked, seconds, st.just("E")),
    st.builds(Failed, st.just("E"), st.just("why")),
    st.builds(Refused, st.just("why")),
    st.builds(NotDue, st.integers(0, 2**70)),
)
#: Seconds since the receive.
ages = st.floats(0, LONGEST_VISIBILITY - 1)


@MANY
@given(policy=policies, deliveries=counts)
def test_a_backoff_is_whole_seconds_from_one_to_its_maximum(
    policy: Policy, deliveries: int
) -> None:
    delay = policy.backoff(deliveries)
    assert isinstance(delay, int)
    assert 1 <= delay <= policy.backoff_max


@MANY
@given(happened=happenings, deliveries=counts, policy=policies, age=ages, is_crowded=st.booleans())
def test_each_outcome_is_one_that_sqs_can_be_told(
    make_delivery: MakeDelivery,
    happened: Happened,
    deliveries: int,
    policy: Policy,
    age: float,
    is_crowded: bool,
) -> None:
    delivery = make_delivery(received_at=monotonic() - age, count=deliveries)
    outcome = decide(happened, delivery, policy, is_crowded=is_crowded)
    match outcome:
        case Retry(delay):
            assert isinstance(delay, int)
            assert delay >= 0
            assert_told_within_twelve_hours(delivery, outcome)
        case Postponed(delay):
            # What is longer than SQS's delay goes in several copies.
            assert 0 <= delay <= (LONGEST_VISIBILITY if outcome.is_again else LONGEST_DELAY)
        case DeadLetter(reason):
            assert reason
        case _:
            assert outcome in (Done(), Released())


@MANY
@given(happened=happenings, deliveries=counts, policy=policies)
def test_no_message_comes_again_where_sqs_might_dead_letter_it(
    make_delivery: MakeDelivery, happened: Happened, deliveries: int, policy: Policy
) -> None:
    if deliveries >= policy.max_receive_count - 2:
        outcome = decide(happened, make_delivery(count=deliveries), policy)
        assert not isinstance(outcome, Retry | Released)


def assert_told_within_twelve_hours(delivery: Delivery, outcome: Retry) -> None:
    visibility = Settlement(facts_of(delivery, None), outcome, 0.0).visibility(monotonic())
    assert isinstance(visibility, int)
    assert visibility >= 0
    assert delivery.received_at + LONGEST_VISIBILITY >= monotonic() + visibility


limits = st.none() | st.floats(0, allow_infinity=False)


@MANY
@given(
    visibility_timeout=st.integers(1, LONGEST_VISIBILITY),
    age=ages,
    waited=st.floats(0, 100),
    limit=limits,
)
def test_an_extension_stays_within_the_twelve_hours_and_the_bound_of_its_lease(
    make_delivery: MakeDelivery,
    visibility_timeout: int,
    age: float,
    waited: float,
    limit: float | None,
) -> None:
    now = monotonic()
    delivery = make_delivery(received_at=now - age + waited, waited=waited)
    for is_started in (False, True):
        lease = Lease(delivery, delivery.asked_at + visibility_timeout)
        if is_started:
            lease.started(limit)
        extension = seconds_for(lease, now, visibility_timeout)
        assert isinstance(extension, int)
        assert 0 <= extension <= visibility_timeout
        assert extension == 0 or now + extension <= lease.may_last_until
        assert now + extension <= delivery.asked_at + LONGEST_VISIBILITY


zones = (
    st.none()
    | st.just(UTC)
    | st.builds(lambda minutes: timezone(timedelta(minutes=minutes)), st.integers(-1439, 1439))
)
times = st.datetimes(timezones=zones) | st.builds(
    lambda delay: datetime.now(UTC) + timedelta(seconds=delay), st.floats(-10, 2_000)
)


@MANY
@given(eta=st.none() | times)
def test_a_message_is_delayed_by_no_more_than_sqs_takes(eta: Any) -> None:
    message = {
        "body": "[]",
        "properties": {},
        "headers": {"eta": eta.isoformat() if eta else None},
    }
    delay = message_for(message, 1_000, eta_max=inf).delay
    # None: that of the queue, for a message that is due.
    assert delay is None or (isinstance(delay, int) and 0 < delay <= LONGEST_DELAY)
