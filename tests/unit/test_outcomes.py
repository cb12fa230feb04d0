"""decide(): every Happened, and each border at which its outcome changes."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from sqs_broker.rules.attempts import Record
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import (
    DeadLetter,
    Discarded,
    Done,
    Failed,
    Happened,
    Interrupted,
    NotDue,
    NotStarted,
    NotTaken,
    Outcome,
    Postponed,
    Refused,
    Released,
    Retry,
    RetryAsked,
    Succeeded,
    UnknownTask,
    decide,
    is_final,
)
from sqs_broker.rules.policy import Policy

# A ceiling of one second leaves the jitter no choice: every backoff is 1.
POLICY = Policy(max_attempts=3, max_receive_count=10, backoff_max=1)
FAILED = Failed("ValueError", "it failed in each attempt")


def of(count: int, failed: int | None = None, **facts: Any) -> Delivery:
    """The delivery with this number of a message of which so many runs failed: if None, nothing is
    recorded at all."""
    record = None if failed is None else Record(failed=frozenset(range(1, failed + 1)))
    now = datetime.now(UTC)
    return Delivery("1", "jobs", "sqs-1", "r", "{}", {}, count, now, 0.0, record=record, **facts)


@pytest.mark.parametrize("deliveries", [1, 3, 10, 999])
@pytest.mark.parametrize(
    ("happened", "outcome"),
    [
        (Succeeded(), Done()),
        (Discarded("expired"), Done()),
        (Refused("no such task", "KeyError"), DeadLetter("no such task", "KeyError")),
        (Refused("rejected"), DeadLetter("rejected", "Reject")),
    ],
)
def test_what_is_no_failure_ends_alike_in_every_delivery(
    happened: Happened, outcome: Outcome, deliveries: int
) -> None:
    assert decide(happened, of(deliveries), POLICY) == outcome


@pytest.mark.parametrize(
    ("happened", "delay"),
    [
        (NotStarted(), 0),
        (NotStarted(25), 25),
        (Interrupted("AutoReconnect", 25), 25),
        (NotTaken("MemoryError"), 1),
    ],
)
@pytest.mark.parametrize("deliveries", [1, 3, 7])
def test_what_is_handed_back_is_released_however_often_it_was_delivered(
    happened: Happened, delay: int, deliveries: int
) -> None:
    assert decide(happened, of(deliveries), POLICY) == Released(delay)


@pytest.mark.parametrize(
    ("happened", "delay"),
    [
        (NotStarted(), 0),
        (NotStarted(25), 25),
        # Longer than SQS delays a message: the copy carries when it may run.
        (Interrupted("AutoReconnect", 1000), 1000),
        (NotTaken("MemoryError"), 1),
    ],
)
@pytest.mark.parametrize("deliveries", [8, 9, 10, 11])
def test_what_is_handed_back_in_sqs_last_deliveries_is_sent_on_for_sqs_might_dead_letter_it(
    happened: Happened, delay: int, deliveries: int
) -> None:
    assert decide(happened, of(deliveries), POLICY) == Postponed(delay, is_again=True)


@pytest.mark.parametrize("deliveries", [1, 2])
def test_a_failure_with_attempts_left_is_retried(deliveries: int) -> None:
    assert decide(FAILED, of(deliveries), POLICY) == Retry(1, "ValueError")


@pytest.mark.parametrize("deliveries", [3, 4, 10, 11])
def test_a_failure_in_the_last_attempt_or_later_is_dead_lettered(deliveries: int) -> None:
    outcome = decide(FAILED, of(deliveries), POLICY)
    assert outcome == DeadLetter(
        f"it failed in each attempt (deliveries: {deliveries})", "ValueError"
    )


def test_a_single_attempt_allows_no_retry() -> None:
    assert isinstance(decide(FAILED, of(1), replace(POLICY, max_attempts=1)), DeadLetter)


@pytest.mark.parametrize(("deliveries", "outcome"), [(2, Retry), (3, Postponed), (5, DeadLetter)])
def test_a_failure_in_sqs_last_delivery_is_dead_lettered_with_our_reason(
    deliveries: int, outcome: type[Outcome]
) -> None:
    policy = replace(POLICY, max_attempts=8, max_receive_count=5)
    assert type(decide(FAILED, of(deliveries), policy)) is outcome


def test_what_this_machine_could_not_take_waits_as_a_failure_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sqs_broker.rules.backoff.RANDOM.uniform", lambda _, high: high)
    policy = replace(POLICY, backoff_base=2, backoff_max=600)
    waits = [decide(NotTaken("MemoryError"), of(deliveries), policy) for deliveries in (1, 2, 3, 7)]
    assert waits == [Released(2), Released(4), Released(8), Released(128)]


def test_the_delay_of_a_failure_grows_with_its_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqs_broker.rules.backoff.RANDOM.uniform", lambda _low, high: high)
    policy = Policy(max_attempts=7, backoff_base=2.0, backoff_max=600)
    outcomes = [decide(FAILED, of(deliveries), policy) for deliveries in (1, 2, 3)]
    assert outcomes == [Retry(delay, "ValueError") for delay in (2, 4, 8)]


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (0, 0),
        (-5, 0),
        (-0.5, 0),
        (0.001, 1),
        (7, 7),
        (7.2, 8),
        (43_200, 43_200),
        (43_200.1, 43_200),
        (86_400, 43_200),
        (float("inf"), 43_200),
    ],
)
def test_an_asked_for_delay_is_rounded_up_and_kept_within_twelve_hours(
    asked: float, given: int
) -> None:
    assert decide(RetryAsked(asked, "KeyError"), of(1), POLICY) == Retry(given, "KeyError")


@pytest.mark.parametrize("delay", [None, float("nan")])
def test_a_retry_without_a_delay_waits_for_the_backoff(delay: float | None) -> None:
    assert decide(RetryAsked(delay, "KeyError"), of(1), POLICY) == Retry(1, "KeyError")


@pytest.mark.parametrize("deliveries", [3, 7])
def test_a_retry_that_was_asked_for_is_not_bound_by_max_attempts(deliveries: int) -> None:
    assert decide(RetryAsked(5, "KeyError"), of(deliveries), POLICY) == Retry(5, "KeyError")


@pytest.mark.parametrize("deliveries", [10, 11])
def test_a_retry_asked_for_more_often_than_sqs_delivers_is_dead_lettered(deliveries: int) -> None:
    outcome = decide(RetryAsked(5, "KeyError"), of(deliveries), POLICY)
    assert isinstance(outcome, DeadLetter)
    assert outcome.error == "KeyError"
    assert "max_receive_count" in outcome.reason


@pytest.mark.parametrize(("due_in", "delay"), [(1, 1), (899, 899), (900, 900), (901, 900)])
@pytest.mark.parametrize("deliveries", [1, 10])
def test_a_message_before_its_time_is_delayed_by_at_most_what_sqs_allows(
    due_in: int, delay: int, deliveries: int
) -> None:
    assert decide(NotDue(due_in), of(deliveries), POLICY) == Postponed(delay)


def test_every_outcome_has_a_name_of_its_own() -> None:
    names = {kind.name for kind in (Done, Retry, DeadLetter, Postponed, Released)}
    assert names == {"done", "retry", "dead-letter", "postponed", "released"}


@pytest.mark.parametrize(
    ("max_attempts", "max_receive_count", "last"), [(3, 10, 3), (1, 10, 1), (9, 5, 5)]
)
def test_the_last_attempt_of_a_failure_is_ours_or_sqs_whichever_comes_first(
    max_attempts: int, max_receive_count: int, last: int
) -> None:
    policy = Policy(max_attempts=max_attempts, max_receive_count=max_receive_count)
    assert not is_final(FAILED, last - 1, policy)
    assert is_final(FAILED, last, policy)
    assert is_final(FAILED, last + 1, policy)


def test_a_retry_that_a_task_asks_for_ends_at_as_many_attempts_as_sqs_has_deliveries() -> None:
    policy = Policy(max_attempts=3, max_receive_count=10)
    asked = RetryAsked(1, "KeyError")
    assert not is_final(asked, 9, policy)
    assert is_final(asked, 10, policy)


# Attempts: runs that failed, however often SQS delivered the message


@pytest.mark.parametrize("deliveries", [3, 5, 7])
def test_only_failed_runs_are_attempts_where_they_are_recorded(deliveries: int) -> None:
    assert isinstance(decide(FAILED, of(deliveries, failed=0), POLICY), Retry)
    assert isinstance(decide(FAILED, of(deliveries, failed=1), POLICY), Retry)
    assert isinstance(decide(FAILED, of(deliveries, failed=2), POLICY), DeadLetter)


def test_the_reason_says_how_many_runs_failed_in_how_many_deliveries() -> None:
    outcome = decide(FAILED, of(7, failed=2), POLICY)
    assert isinstance(outcome, DeadLetter)
    assert outcome.reason == "it failed in each attempt (failed runs: 3, deliveries: 7)"


def test_the_backoff_grows_with_the_failed_runs_and_not_with_the_deliveries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sqs_broker.rules.backoff.RANDOM.uniform", lambda _low, high: high)
    policy = Policy(max_attempts=7, backoff_base=2.0, backoff_max=600)
    delays = [decide(FAILED, of(6, failed=failed), policy) for failed in (0, 1, 2)]
    assert delays == [Retry(delay, "ValueError") for delay in (2, 4, 8)]


@pytest.mark.parametrize("deliveries", [8, 9, 10])
def test_a_retry_in_sqs_last_deliveries_is_a_copy(deliveries: int) -> None:
    outcome = decide(FAILED, of(deliveries, failed=1), POLICY)
    assert outcome == Postponed(1, "ValueError", is_again=True)


# Unknown tasks


def test_a_message_of_an_unknown_task_comes_again_seven_times_within_its_grace() -> None:
    age, waits = 0, []
    for count in range(1, 10):
        outcome = decide(UnknownTask("later"), of(count, failed=0, age=age), Policy())
        if isinstance(outcome, DeadLetter):
            break
        assert isinstance(outcome, Released | Postponed)
        waits.append(outcome.delay)
        age += outcome.delay
    assert waits == [5, 10, 20, 40, 80, 160, 320]
    assert outcome == DeadLetter("unknown task 'later'", "KeyError")


def test_without_a_grace_a_message_of_an_unknown_task_is_dead_lettered_at_once() -> None:
    policy = Policy(unknown_task_grace=0)
    assert isinstance(decide(UnknownTask("later"), of(1), policy), DeadLetter)


# Many messages in flight


def test_in_a_crowded_queue_what_comes_again_later_waits_as_a_copy() -> None:
    later, soon = RetryAsked(10, "KeyError"), RetryAsked(9, "KeyError")
    assert decide(later, of(1), POLICY, is_crowded=True) == Postponed(10, "KeyError", is_again=True)
    assert decide(soon, of(1), POLICY, is_crowded=True) == Retry(9, "KeyError")
    assert decide(NotStarted(25), of(1), POLICY, is_crowded=True) == Postponed(25, is_again=True)
