"""A message of the control plane. This module does not need pymongo."""

from dataclasses import dataclass
from typing import Any


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
