"""What a message is on arrival: something the worker can take, or the end of its delivery."""

from dataclasses import dataclass, field
from typing import Any

from app.broker.decoding import decode
from app.broker.faults import untaken
from app.broker.lease import Delivery
from app.broker.options import DecodeJson
from app.broker.outcomes import Happened, NotDue
from app.broker.publisher import seconds_until_due

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
