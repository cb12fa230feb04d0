"""Numbers of many numbers."""

import math
from collections.abc import Mapping, Sequence


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that this share of them (0.99: the 99th percentile) does not exceed.

    By nearest rank, so it is always one that was measured; None of no values.
    """
    if not values:
        return None
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def delays(sent: Mapping[str, float], done: Mapping[str, float]) -> list[float]:
    """Milliseconds from each that was sent until it was done, for those that are."""
    return [(done[key] - at) * 1000 for key, at in sent.items() if key in done]
