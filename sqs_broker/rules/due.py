"""When a message is due: its `eta`, compared with this machine's clock."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

#: Seconds by which clocks may differ before a message counts as not due.
CLOCK_TOLERANCE = 2


def seconds_until_due(headers: Mapping[str, Any], now: datetime | None = None) -> int:
    """Whole seconds, rounded up, from `now` until the `eta` header; 0 if it is past or missing."""
    eta = headers.get("eta")
    if not eta:
        return 0
    due = datetime.fromisoformat(eta)
    if due.tzinfo is None:
        due = due.replace(tzinfo=UTC)
    return max(0, math.ceil((due - (now or datetime.now(UTC))).total_seconds()))
