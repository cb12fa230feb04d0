"""How long to wait before the next try: pauses that double with each failure, with jitter.

https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from math import inf

from sqs_broker.rules.randomness import RANDOM

#: Doublings after which a pause grows no further, so that the number stays a number.
MOST_DOUBLINGS = 32


def full_jitter(first: float, failures: int, longest: float = inf) -> float:
    """Seconds to wait after so many failures (from 1): anything up to `first`, doubled by each
    failure after the first one, and at most `longest`."""
    return RANDOM.uniform(0, _ceiling(first, failures, longest))


def half_jitter(first: float, failures: int, longest: float = inf) -> float:
    """The same, but at least half of it: a pause that is always one."""
    ceiling = _ceiling(first, failures, longest)
    return RANDOM.uniform(ceiling / 2, ceiling)


def _ceiling(first: float, failures: int, longest: float) -> float:
    return min(first * 2.0 ** min(max(failures - 1, 0), MOST_DOUBLINGS), longest)
