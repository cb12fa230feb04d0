"""The facts about a message that observers get."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.provenance import Source
from sqs_broker.rules.trace_context import (
    REQUEST_ID,
    TRACEPARENT,
    context_of,
    request_id_of,
    trace_id_of,
)


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
    context: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Says which trace and request it belongs to (rules/trace_context.py), among other things."""

    @property
    def trace_id(self) -> str | None:
        """The id of the message's trace; None if it has none."""
        return trace_id_of(self.context.get(TRACEPARENT))

    @property
    def request_id(self) -> str | None:
        """The id of the request that sent the message; None if the message has none."""
        return request_id_of(self.context.get(REQUEST_ID))


def facts_of(
    delivery: Delivery, headers: dict[str, Any] | None, started_at: float | None = None
) -> Facts:
    """The facts of a message. `headers` are its task's, or None if they could not be read."""
    if not headers:
        context = context_of(delivery)
        return Facts(delivery, None, delivery.message_id, None, started_at, context)
    # Each message has several. A frozen dataclass sets its fields one by one, which takes longer.
    facts = object.__new__(Facts)
    vars(facts).update(
        delivery=delivery,
        task=headers["task"],
        id=headers["id"],
        source=headers["delivery"].source,
        started_at=started_at,
        context=headers,
    )
    return facts
