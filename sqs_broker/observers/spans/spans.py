"""What all spans of the broker share: names of attributes, contexts, errors.

The names are OpenTelemetry's for messaging (semantic conventions 1.38, status: development), and
`sqs_broker.*` for what these lack.
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
https://opentelemetry.io/docs/specs/semconv/messaging/sqs/
"""

import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sqs_broker.errors import label
from sqs_broker.machine.seldom import Seldom

logger = logging.getLogger(__name__)

#: The name of the tracer: the scope of all spans of the broker.
SCOPE = "sqs_broker"

#: The scope of the spans of OpenTelemetry's own instrumentation of Celery.
CELERYS = "opentelemetry.instrumentation.celery"

#: Most code locations of an error.
MOST_FRAMES = 12

#: W3C's, whatever the process uses elsewhere: the broker reads nothing else from a message.
_W3C = TraceContextTextMapPropagator()

_seldom = Seldom()


def attributes(queue: str, type_: str, name: str, **more: Any) -> dict[str, Any]:
    """The attributes of a span about messages of a queue. Those that are None are left out.
    `type_` is one of the convention's operations: create, send, receive, process, settle."""
    found = {
        "messaging.system": "aws_sqs",
        "messaging.destination.name": queue,
        "messaging.operation.type": type_,
        "messaging.operation.name": name,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return {key: value for key, value in found.items() if value is not None}


def context_in(carrier: Mapping[str, Any]) -> Context:
    """A context whose span is the one that a message names, or none if it names none. What this
    thread does has no part in it."""
    return _W3C.extract(carrier, Context())


def carrier_of(span: Span) -> dict[str, str]:
    """What a message must carry so that its spans are in the span's trace, below it."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier


def is_of_celerys(span: Span) -> bool:
    """Whether OpenTelemetry's own instrumentation of Celery made this span."""
    # Of the SDK. Without it there are no spans.
    return getattr(getattr(span, "instrumentation_scope", None), "name", None) == CELERYS


def fail(span: Span, exc: BaseException) -> None:
    """Make it the span of an error. An exception's text can hold personal data, so the span gets
    its class, and the places in the code."""
    frames = traceback.extract_tb(exc.__traceback__)[-MOST_FRAMES:]
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    event = {"exception.type": label(exc), "exception.stacktrace": "\n".join(places)}
    span.add_event("exception", event)
    fail_with(span, label(exc))


def fail_with(span: Span, error: str, why: str | None = None) -> None:
    """Make it the span of an error that is no exception here."""
    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR, why or error))


@contextmanager
def active(span: Span | None) -> Iterator[None]:
    """A block whose current span is this one."""
    if span is None:
        yield
        return
    token = contexts.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        contexts.detach(token)


@contextmanager
def harmless() -> Iterator[None]:
    """A block of the tracing library's: a processor of the project's may raise anything. That is
    logged, at most once a minute, and has no other effect."""
    try:
        yield
    except SoftTimeLimitExceeded:
        raise  # The time limit is that of the run.
    except Exception as exc:
        if _seldom.allows(label(exc), monotonic()):
            logger.error(
                "The tracing library failed (%s). Messages are not affected.",
                label(exc),
                extra={"event": "tracing.failed", "error": label(exc)},
            )
