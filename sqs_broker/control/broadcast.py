"""A message of the control plane. This module does not need pymongo."""

from dataclasses import dataclass
from typing import Any

#: Most events of tasks in one message, unless more are sent at once. Celery's dispatcher takes 24.
MOST_TOGETHER = 200


@dataclass(slots=True)
class Broadcast:
    """One message to all that are bound to its exchange and routing key."""

    exchange: str
    routing_key: str
    headers: dict[str, Any]
    body: Any
    """JSON, or a value that is not encoded yet."""
    id: Any = None
    """MongoDB's `_id`: created for the first try and kept for each retry, so that the message is
    written only once."""
    events: int = 1
    """Number of events in it."""

    def takes_in(self, other: "Broadcast") -> bool:
        """Take in the events of a message that comes after this one, if both have lists of events
        for the same readers, and there is room. Returns whether it did."""
        ours, theirs = self.body, other.body
        if (
            type(ours) is not list
            or type(theirs) is not list
            or len(ours) + len(theirs) > MOST_TOGETHER
            or (self.exchange, self.routing_key) != (other.exchange, other.routing_key)
            or self.headers != other.headers
        ):
            return False
        self.body = ours + theirs
        self.events += other.events
        return True
