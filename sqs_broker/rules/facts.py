"""The facts about a message that observers get."""

from dataclasses import dataclass
from typing import Any

from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.provenance import Source


@dataclass(frozen=True)
class Facts:
    """A delivery, and what could be read of its message."""

    delivery: Delivery
    """Its body and attributes can hold personal data: never write them to logs, metrics or traces.
    """
    task: str | None
    """Name of the task; None if the body could not be read."""
    id: str
    """The producer's id of the message; SQS's MessageId if there is none."""
    source: Source | None
    """None if the body could not be read, and for a message that is redriven."""
    started_at: float | None = None
    """When the pool started the task in this delivery, in monotonic seconds; None if it did not."""


def facts_of(
    delivery: Delivery, headers: dict[str, Any] | None, started_at: float | None = None
) -> Facts:
    """The facts of a message. `headers` are its task's, or None if they could not be read."""
    if not headers:
        return Facts(delivery, None, delivery.message_id, None, started_at)
    return Facts(delivery, headers["task"], headers["id"], headers["delivery"].source, started_at)
