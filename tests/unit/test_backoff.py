"""Backoff: pauses that double with each failure, within bounds, and never all at once."""

from collections.abc import Callable

import pytest

from sqs_broker.rules.backoff import full_jitter, half_jitter

Jitter = Callable[[float, int, float], float]


@pytest.mark.parametrize(
    ("failures", "ceiling"), [(0, 1), (1, 1), (2, 2), (3, 4), (5, 16), (6, 20), (10_000, 20)]
)
@pytest.mark.parametrize(("jitter", "least"), [(full_jitter, 0.0), (half_jitter, 0.5)])
def test_a_pause_is_within_the_bounds_of_its_failure(
    jitter: Jitter, least: float, failures: int, ceiling: float
) -> None:
    pauses = [jitter(1.0, failures, 20.0) for _ in range(200)]
    assert least * ceiling <= min(pauses) <= max(pauses) <= ceiling
    # Workers that failed at one time do not come back at one time.
    assert max(pauses) - min(pauses) > (1 - least) * ceiling / 2


@pytest.mark.parametrize("jitter", [full_jitter, half_jitter])
def test_without_a_longest_pause_the_number_stays_finite(jitter: Callable[..., float]) -> None:
    assert jitter(1.0, 10_000) < 10_000_000_000
