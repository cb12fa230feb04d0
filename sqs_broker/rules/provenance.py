"""Where a message came from, for its task."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Source(StrEnum):
    """The kind of program that sent a message."""

    CELERY = "celery"
    JSON = "json"
    SNS = "sns"


@dataclass(frozen=True)
class Provenance:
    """Where a message came from. A task finds it as `self.request.delivery`."""

    message_id: str
    """The producer's id; SQS's MessageId if the producer gave none."""
    has_producer_id: bool
    """Whether the id is the producer's. Such an id stays the same after a redrive."""
    source: Source
    deliveries: int
    """How often SQS has delivered the message, this delivery included."""
    enqueued_at: datetime
    """When SQS accepted the message, in UTC. If the task was called without a queue, the time of
    the call."""
