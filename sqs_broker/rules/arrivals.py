"""What a message is on arrival: something the worker can take, or the end of its delivery."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqs_broker.rules.decoding import decode
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.foreign import DecodeJson
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import Happened, NotDue

#: Seconds by which clocks may differ before a message counts as not due.
CLOCK_TOLERANCE = 2


@dataclass(frozen=True)
class Arrival:
    """A payload for the worker, unless the delivery `ended` on arrival."""

    payload: dict[str, Any] = field(default_factory=dict)
    ended: Happened | None = None

    @property
    def headers(self) -> dict[str, Any] | None:
        """The headers of its task, where they could be read."""
        return self.payload.get("headers")


def look_at(delivery: Delivery, decode_json: DecodeJson | None) -> Arrival:
    """Decode a delivery. Never raises: no body may stop a receiver."""
    try:
        payload = decode(delivery, decode_json)
        due_in = seconds_until_due(payload["headers"])
    except Exception as exc:
        # Broad on purpose: whatever it is, it is said by what becomes of the message.
        return Arrival(ended=untaken(exc))
    if due_in > CLOCK_TOLERANCE:
        return Arrival(payload, NotDue(due_in))
    # Celery would hold a task with an eta in memory (celery 5.7 worker/strategy.py).
    payload["headers"]["eta"] = None
    return Arrival(payload)


def seconds_until_due(headers: Mapping[str, Any]) -> int:
    """Whole seconds, rounded up, until the `eta` header of a task; 0 where it is past or none."""
    eta = headers.get("eta")
    if not eta:
        return 0
    due = datetime.fromisoformat(eta)
    if due.tzinfo is None:
        due = due.replace(tzinfo=UTC)
    return max(0, math.ceil((due - datetime.now(UTC)).total_seconds()))
