"""What is known of a message, for reports on it: ids and times, nothing that a user typed."""

from dataclasses import dataclass
from typing import Any

from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.provenance import Source


@dataclass(frozen=True)
class Facts:
    """A delivery, and the message in it as far as it could be read."""

    delivery: Delivery
    """Its body is not for logs, metrics or traces."""
    task: str | None
    """None if the body names no task."""
    id: str
    """The producer's id of the message; SQS's MessageId if there is none."""
    source: Source | None
    """None if the body could not be read."""


def facts_of(delivery: Delivery, headers: dict[str, Any] | None) -> Facts:
    """The facts of a message, by the headers of its task; None if they could not be read."""
    if not headers:
        return Facts(delivery, None, delivery.message_id, None)
    return Facts(delivery, headers["task"], headers["id"], headers["delivery"].source)
