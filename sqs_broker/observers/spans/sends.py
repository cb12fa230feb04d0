"""The spans of producers: one for each send of a message, or for many sends of one request."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.trace import Span, SpanKind, Tracer

from sqs_broker.observers.spans.spans import active, attributes, carrier_of, fail, harmless
from sqs_broker.rules.trace_context import TRACEPARENT, TRACESTATE, trace_id_of


class SendSpans:
    """Makes the spans of the current context's sends."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def sending(self, queue: str, headers: dict[str, Any], *, is_collected: bool) -> Iterator[None]:
        """The span of a Celery message. A message that has a trace has a span already: of
        OpenTelemetry's own instrumentation of Celery, or of the caller."""
        if trace_id_of(headers.get(TRACEPARENT)):
            yield
            return
        facts = {
            "messaging__message__id": headers.get("id"),
            "sqs_broker__task": headers.get("task"),
        }
        with self.span(queue, "create" if is_collected else "send", **facts) as carrier:
            headers.pop(TRACESTATE, None)
            headers |= carrier
            yield

    @contextmanager
    def span(self, queue: str, operation: str = "send", **facts: Any) -> Iterator[dict[str, str]]:
        """A span, and what the messages of the block must carry: empty if there is no provider."""
        span: Span | None = None
        carrier: dict[str, str] = {}
        with harmless():
            span = self._tracer.start_span(
                f"{operation} {queue}",
                kind=SpanKind.PRODUCER,
                attributes=attributes(queue, operation, operation, **facts),
            )
            carrier = carrier_of(span)
        try:
            with active(span):
                yield carrier
        except BaseException as exc:
            with harmless():
                if span is not None:
                    fail(span, exc)
            raise
        finally:
            with harmless():
                if span is not None:
                    span.end()
