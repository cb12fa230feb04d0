"""What is published to the control plane. Needs no MongoDB, and so no pymongo."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Broadcast:
    """One message to whoever is bound to its exchange."""

    exchange: str
    routing_key: str
    headers: dict[str, Any]
    body: Any
    """JSON; or what is still to be made JSON of."""
    id: Any = None
    """MongoDB's: made for the first try and the same in each, so that it is written once."""
