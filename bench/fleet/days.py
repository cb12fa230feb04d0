"""When the messages of a day come."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from infra.scaling import day

SECONDS = 24 * 3600
MESSAGES = 10_000_000


@dataclass(frozen=True)
class Day:
    """The messages that come in each second, and when none can be stored."""

    name: str
    arrivals: Sequence[int]
    away: range = range(0)
    """The seconds in which MongoDB is away: workers wait, and do nothing."""


def steady(messages: int = MESSAGES) -> list[int]:
    """The same in each second."""
    return spread([1] * SECONDS, messages)


def with_peaks(messages: int = MESSAGES) -> list[int]:
    """The day of docs/aws.md, with so many messages: a silent night, two peaks and two spikes."""
    return spread([minute for minute in day() for _ in range(60)], messages)


def spread(weights: Sequence[int], messages: int) -> list[int]:
    """So many whole messages in proportion to these weights."""
    total = sum(weights)
    until = [0, *(messages * part // total for part in accumulate(weights))]
    return [after - before for before, after in pairwise(until)]


#: The hour in which MongoDB is away: noon, the first peak.
OUTAGE = range(12 * 3600, 13 * 3600)


def days() -> list[Day]:
    """Those that are simulated."""
    return [
        Day("steady", steady()),
        Day("peaks", with_peaks()),
        Day("peaks, and MongoDB away from 12:00 to 13:00", with_peaks(), OUTAGE),
    ]
