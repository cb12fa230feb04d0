"""How long to wait before the next try: pauses that double with each failure, with jitter.

https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

import os
from math import inf
from random import Random

#: Doublings after which a pause grows no further, so that the number stays a number.
MOST_DOUBLINGS = 32

#: Not the one that all of a program shares: a program that seeds that one, so that it can repeat
#: what it did, would not expect another thread to take numbers from it.
RANDOM = Random()

os.register_at_fork(after_in_child=RANDOM.seed)


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
