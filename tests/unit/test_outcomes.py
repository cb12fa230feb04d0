"""decide(): every Happened, and each border at which its outcome changes."""

from dataclasses import replace

import pytest

from sqs_broker.rules.outcomes import (
    DeadLetter,
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
    decide,
    is_final,
)
from sqs_broker.rules.policy import Policy

# A ceiling of one second leaves the jitter no choice: every backoff is 1.
POLICY = Policy(max_attempts=3, max_receive_count=10, backoff_max=1)
FAILED = Failed("ValueError", "it failed in each attempt")


@pytest.mark.parametrize("deliveries", [1, 3, 10, 999])
@pytest.mark.parametrize(
    ("happened", "outcome"),
    [
        (Succeeded(), Done()),
        (Refused("no such task", "KeyError"), DeadLetter("no such task", "KeyError")),
        (Refused("rejected"), DeadLetter("rejected", "Reject")),
    ],
)
def test_what_is_no_failure_ends_alike_in_every_delivery(
    happened: Happened, outcome: Outcome, deliveries: int
) -> None:
    assert decide(happened, deliveries, POLICY) == outcome


@pytest.mark.parametrize(
    ("happened", "delay"),
    [
        (NotStarted(), 0),
        (NotStarted(25), 25),
        (Interrupted("AutoReconnect", 25), 25),
        (NotTaken("MemoryError"), 1),
    ],
)
@pytest.mark.parametrize("deliveries", [1, 3, 9])
def test_what_is_handed_back_is_released_however_often_it_was_delivered(
    happened: Happened, delay: int, deliveries: int
) -> None:
    assert decide(happened, deliveries, POLICY) == Released(delay)


@pytest.mark.parametrize(
    ("happened", "delay"),
    [
        (NotStarted(), 0),
        (NotStarted(25), 25),
        (Interrupted("AutoReconnect", 1000), 900),
        (NotTaken("MemoryError"), 1),
    ],
)
@pytest.mark.parametrize("deliveries", [10, 11])
def test_what_is_handed_back_in_sqs_last_delivery_is_sent_on_for_sqs_would_dead_letter_it(
    happened: Happened, delay: int, deliveries: int
) -> None:
    assert decide(happened, deliveries, POLICY) == Postponed(delay)


@pytest.mark.parametrize("deliveries", [1, 2])
def test_a_failure_with_attempts_left_is_retried(deliveries: int) -> None:
    assert decide(FAILED, deliveries, POLICY) == Retry(1, "ValueError")


@pytest.mark.parametrize("deliveries", [3, 4, 10, 11])
def test_a_failure_in_the_last_attempt_or_later_is_dead_lettered(deliveries: int) -> None:
    outcome = decide(FAILED, deliveries, POLICY)
    assert outcome == DeadLetter("it failed in each attempt", "ValueError")


def test_a_single_attempt_allows_no_retry() -> None:
    assert isinstance(decide(FAILED, 1, replace(POLICY, max_attempts=1)), DeadLetter)


@pytest.mark.parametrize(("deliveries", "outcome"), [(4, Retry), (5, DeadLetter)])
def test_a_failure_in_sqs_last_delivery_is_dead_lettered_with_our_reason(
    deliveries: int, outcome: type[Outcome]
) -> None:
    policy = replace(POLICY, max_attempts=8, max_receive_count=5)
    assert type(decide(FAILED, deliveries, policy)) is outcome


def test_what_this_machine_could_not_take_waits_as_a_failure_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("random.uniform", lambda _, high: high)
    policy = replace(POLICY, backoff_base=2, backoff_max=600)
    waits = [decide(NotTaken("MemoryError"), deliveries, policy) for deliveries in (1, 2, 3, 9)]
    assert waits == [Released(2), Released(4), Released(8), Released(512)]


def test_the_delay_of_a_failure_grows_with_its_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    policy = Policy(max_attempts=7, backoff_base=2.0, backoff_max=600)
    outcomes = [decide(FAILED, deliveries, policy) for deliveries in (1, 2, 3)]
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
    assert decide(RetryAsked(asked, "KeyError"), 1, POLICY) == Retry(given, "KeyError")


@pytest.mark.parametrize("delay", [None, float("nan")])
def test_a_retry_without_a_delay_waits_for_the_backoff(delay: float | None) -> None:
    assert decide(RetryAsked(delay, "KeyError"), 1, POLICY) == Retry(1, "KeyError")


@pytest.mark.parametrize("deliveries", [3, 9])
def test_a_retry_that_was_asked_for_is_not_bound_by_max_attempts(deliveries: int) -> None:
    assert decide(RetryAsked(5, "KeyError"), deliveries, POLICY) == Retry(5, "KeyError")


@pytest.mark.parametrize("deliveries", [10, 11])
def test_a_retry_asked_for_in_sqs_last_delivery_is_dead_lettered(deliveries: int) -> None:
    outcome = decide(RetryAsked(5, "KeyError"), deliveries, POLICY)
    assert isinstance(outcome, DeadLetter)
    assert outcome.error == "KeyError"
    assert "last delivery" in outcome.reason


@pytest.mark.parametrize(("due_in", "delay"), [(1, 1), (899, 899), (900, 900), (901, 900)])
@pytest.mark.parametrize("deliveries", [1, 10])
def test_a_message_before_its_time_is_delayed_by_at_most_what_sqs_allows(
    due_in: int, delay: int, deliveries: int
) -> None:
    assert decide(NotDue(due_in), deliveries, POLICY) == Postponed(delay)


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


def test_a_retry_that_a_task_asks_for_ends_at_the_last_delivery_of_sqs() -> None:
    policy = Policy(max_attempts=3, max_receive_count=10)
    asked = RetryAsked(1, "KeyError")
    assert not is_final(asked, 9, policy)
    assert is_final(asked, 10, policy)
