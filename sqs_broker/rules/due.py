"""When a message is due and when it has expired, by this machine's clock: its `eta` and `expires`,
and the time that a copy carries."""

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqs_broker.limits import LONGEST_RETENTION, LONGEST_VISIBILITY

#: Seconds by which clocks may differ before a message counts as not due.
CLOCK_TOLERANCE = 2

#: Longest time until a message is due, in seconds, if the option `eta_max` is not set: 14 days.
ETA_MAX = LONGEST_RETENTION

#: Seconds by which the clock of a sender may be ahead of a worker's. It is generous, because an
#: accepted message costs little, and a refused one does not run.
MOST_SKEW = 1_800


def seconds_until_due(headers: Mapping[str, Any], now: datetime | None = None) -> int:
    """Whole seconds, rounded up, from `now` until the `eta` header; 0 if it is past or missing."""
    eta = headers.get("eta")
    if not eta:
        return 0
    return max(0, math.ceil((_time(eta) - (now or datetime.now(UTC))).total_seconds()))


def seconds_until(due: float | None, now: float | None = None) -> int:
    """Whole seconds, rounded up, from `now` until a time that a copy carries; both in seconds since
    1970. 0 if it is past, or None. At most the 12 hours that a retry may wait."""
    if due is None:
        return 0
    left = due - (time.time() if now is None else now)
    return math.ceil(min(max(left, 0), LONGEST_VISIBILITY))


def has_expired(headers: Mapping[str, Any], now: datetime | None = None) -> bool:
    """Whether the `expires` header is past, so that the message must not run any more."""
    expires = headers.get("expires")
    return expires is not None and _time(expires) < (now or datetime.now(UTC))


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
