"""The spans of the main process: one for each delivery, and in it one for its settlement.

Receive calls, heartbeats and the control plane have none.
"""

from collections.abc import Sequence
from datetime import datetime
from time import monotonic, time
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, Tracer

from sqs_broker.observers.observer import Observer
from sqs_broker.observers.spans.spans import attributes, carrier_of, context_in, fail_with, harmless
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import DeadLetter, Happened, Outcome, Postponed, Retry


class DeliverySpans(Observer):
    """Keeps the spans of the deliveries that have not ended. Thread-safe."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        #: By the tag of the delivery.
        self._open: dict[str, Span] = {}
        self._settling: dict[str, tuple[Span, Span]] = {}

    def delivered(self, message: Facts, headers: dict[str, Any]) -> None:
        """Begin the span of a delivery, and put it into the headers."""
        with harmless():
            span = self._begin(message)
            self._open[message.delivery.tag] = span
            headers |= carrier_of(span)

    def started(self, message: Facts) -> None:
        if (span := self._open.get(message.delivery.tag)) is not None:
            span.add_event("started")

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        span = self._taken(message)
        span.set_attribute("sqs_broker.outcome", outcome.name)
        span.set_attribute("sqs_broker.happened", type(happened).__name__)
        if isinstance(outcome, DeadLetter):
            # Not the reason: it can be the text of an exception, and spans may go to other firms.
            fail_with(span, outcome.error or type(happened).__name__)
        elif isinstance(outcome, Retry | Postponed) and outcome.error is not None:
            span.set_attribute("sqs_broker.retried_after", outcome.error)
        queue = message.delivery.queue
        settle = self._tracer.start_span(
            f"settle {queue}",
            trace.set_span_in_context(span),
            SpanKind.CLIENT,
            attributes(
                queue,
                "settle",
                "settle",
                messaging__message__id=message.id,
                sqs_broker__outcome=outcome.name,
            ),
        )
        self._settling[message.delivery.tag] = span, settle

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        if (spans := self._settling.pop(message.delivery.tag, None)) is None:
            return
        span, settle = spans
        if error is not None:
            fail_with(settle, error)
            fail_with(span, error)
        settle.end()
        span.end()

    def lost(self, message: Facts, why: str) -> None:
        span = self._taken(message)
        fail_with(span, "lease.lost", why)
        span.end()

    def redriven(self, messages: Sequence[Facts], began_at: datetime) -> None:
        """The redrive has a span, with links to the traces of its messages. A redriven message is
        what it was, so its further life is in the trace of the first."""
        queue = messages[0].delivery.queue
        contexts = [
            trace.get_current_span(context_in(message.context)).get_span_context()
            for message in messages
        ]
        self._tracer.start_span(
            f"redrive {queue}",
            kind=SpanKind.PRODUCER,
            attributes=attributes(
                queue, "send", "redrive", messaging__batch__message_count=len(messages)
            ),
            links=[Link(context) for context in contexts if context.is_valid],
            start_time=_nanoseconds(began_at.timestamp()),
        ).end()

    def _taken(self, message: Facts) -> Span:
        """The span of a delivery that ends: one of its own if its message could not run."""
        return self._open.pop(message.delivery.tag, None) or self._begin(message)

    def _begin(self, message: Facts) -> Span:
        delivery = message.delivery
        return self._tracer.start_span(
            f"deliver {delivery.queue}",
            context_in(message.context),
            SpanKind.CONSUMER,
            attributes(
                delivery.queue,
                "receive",
                "deliver",
                messaging__message__id=message.id,
                sqs_broker__sqs_message_id=delivery.message_id,
                sqs_broker__task=message.task,
                sqs_broker__source=None if message.source is None else str(message.source),
                sqs_broker__deliveries=delivery.deliveries,
                sqs_broker__attempt=delivery.attempt,
                sqs_broker__request_id=message.request_id,
            ),
            start_time=_nanoseconds(time() - (monotonic() - delivery.received_at)),
        )


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
