"""Policy: how late a retry is, when a failure is final, and which numbers contradict each other."""

import pytest

from app.settings import Settings
from sqs_broker.errors import ConfigurationError
from sqs_broker.limits import LONGEST_VISIBILITY
from sqs_broker.rules.policy import SPARE_DELIVERIES, Policy

HIGHEST, LOWEST = 1.0, 0.0


@pytest.fixture
def chance(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the jitter draws, as a share of its range."""
    drawn = {"share": HIGHEST}
    monkeypatch.setattr(
        "sqs_broker.rules.backoff.RANDOM.uniform",
        lambda low, high: low + (high - low) * drawn["share"],
    )
    return drawn


@pytest.mark.parametrize(
    ("deliveries", "longest"), [(1, 2), (2, 4), (3, 8), (9, 512), (10, 600), (11, 600), (1000, 600)]
)
def test_the_longest_backoff_doubles_with_each_delivery_up_to_its_maximum(
    chance: dict[str, float], deliveries: int, longest: int
) -> None:
    assert Policy(backoff_base=2.0, backoff_max=600).backoff(deliveries) == longest


@pytest.mark.parametrize("deliveries", [1, 2, 1000])
def test_the_shortest_backoff_is_one_second(chance: dict[str, float], deliveries: int) -> None:
    chance["share"] = LOWEST
    assert Policy().backoff(deliveries) == 1


@pytest.mark.parametrize("deliveries", [-1, 0, 1])
def test_a_count_below_one_is_counted_as_the_first(
    chance: dict[str, float], deliveries: int
) -> None:
    assert Policy(backoff_base=5.0).backoff(deliveries) == 5


def test_a_part_of_a_second_is_rounded_up(chance: dict[str, float]) -> None:
    assert Policy(backoff_base=2.25).backoff(1) == 3


@pytest.mark.parametrize("deliveries", [1, 20, 10_000])
def test_no_backoff_is_beyond_what_sqs_allows(chance: dict[str, float], deliveries: int) -> None:
    policy = Policy(backoff_base=1e300, backoff_max=LONGEST_VISIBILITY)
    assert policy.backoff(deliveries) == 43_200


def test_two_backoffs_differ_so_that_failures_do_not_come_back_together() -> None:
    policy = Policy(backoff_base=600.0, backoff_max=600)
    drawn = {policy.backoff(1) for _ in range(200)}
    assert len(drawn) > 50
    assert drawn <= set(range(1, 601))


@pytest.mark.parametrize(
    ("max_retries", "max_attempts"), [(None, 3), (0, 1), (1, 2), (2, 3), (3, 3), (99, 3)]
)
def test_a_task_may_lower_the_number_of_attempts_and_never_raise_it(
    max_retries: int | None, max_attempts: int
) -> None:
    policy = Policy(max_attempts=3, visibility_timeout=77)
    limited = policy.limited_to(max_retries)
    assert limited.max_attempts == max_attempts
    assert limited.visibility_timeout == 77


def test_the_defaults_are_those_of_the_settings_and_contradict_nothing() -> None:
    settings = Settings()
    policy = Policy()
    policy.check(settings.task_time_limit)
    assert policy == Policy(
        visibility_timeout=settings.visibility_timeout,
        max_attempts=settings.sqs_max_attempts,
        max_receive_count=settings.sqs_max_receive_count,
        backoff_base=settings.sqs_backoff_base,
        backoff_max=settings.sqs_backoff_max,
        heartbeat=True,
        cancel_on_lease_loss=False,
    )


@pytest.mark.parametrize(
    ("policy", "time_limit"),
    [
        (Policy(max_attempts=7, max_receive_count=7 + SPARE_DELIVERIES), 30),
        (Policy(visibility_timeout=31), 30),
        (Policy(visibility_timeout=60), 59),
    ],
)
def test_numbers_at_their_border_are_accepted(policy: Policy, time_limit: float) -> None:
    policy.check(time_limit)


@pytest.mark.parametrize(
    ("policy", "time_limit", "names"),
    [
        (
            Policy(max_attempts=8, max_receive_count=10),
            30,
            ("max_attempts (8)", "max_receive_count (10)"),
        ),
        (
            Policy(visibility_timeout=30),
            30,
            ("visibility_timeout (30 s)", "task_time_limit (30 s)"),
        ),
        (
            Policy(visibility_timeout=30),
            29.5,
            ("visibility_timeout (30 s)", "task_time_limit (29.5 s)"),
        ),
        (Policy(), None, ("visibility_timeout", "task_time_limit")),
    ],
)
def test_a_contradiction_names_both_settings_and_their_values(
    policy: Policy, time_limit: float | None, names: tuple[str, str]
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        policy.check(time_limit)
    assert all(name in raised.value.message for name in names)
