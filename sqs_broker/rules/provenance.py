"""Where a message came from, for its task."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class Source(StrEnum):
    """How a message was sent. SNS: as plain JSON or by Celery, inside a notification."""

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
    """When SQS accepted the message from its producer, in UTC. If the task was called without a
    queue, the time of the call."""
    attempt: int = 1
    """The number of this attempt: one more than the runs of this message that failed before."""

    def packed(self) -> tuple[Any, ...]:
        """The same as a tuple of plain values."""
        sent_at = self.enqueued_at.timestamp()
        counts = self.deliveries, self.attempt
        return self.message_id, self.has_producer_id, self.source.value, *counts, sent_at

    @classmethod
    def unpacked(cls, packed: tuple[Any, ...]) -> "Provenance":
        """What `packed` was made of."""
        message_id, has_producer_id, source, deliveries, attempt, sent_at = packed
        at = datetime.fromtimestamp(sent_at, UTC)
        return cls.made(message_id, has_producer_id, _SOURCES[source], deliveries, at, attempt)

    @classmethod
    def made(
        cls,
        message_id: str,
        has_producer_id: bool,
        source: Source,
        deliveries: int,
        enqueued_at: datetime,
        attempt: int,
    ) -> "Provenance":
        """The same as Provenance(...). A frozen dataclass sets its fields one by one, which takes
        longer."""
        provenance = object.__new__(cls)
        vars(provenance).update(
            message_id=message_id,
            has_producer_id=has_producer_id,
            source=source,
            deliveries=deliveries,
            enqueued_at=enqueued_at,
            attempt=attempt,
        )
        return provenance

    def __reduce__(self) -> tuple[Any, ...]:
        # It goes to a process of the pool with each message. Pickle's own way, which takes the
        # enumeration and the time zone apart, costs nearly three times as much.
        return Provenance.unpacked, (self.packed(),)


_SOURCES = {source.value: source for source in Source}
