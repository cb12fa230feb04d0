"""The spans of this application, beside those of the broker: of the HTTP API, and of MongoDB."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, TracerProvider
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from sqs_broker.observers.spans import OpenTelemetry
from sqs_broker.observers.spans.spans import (
    active,
    carrier_of,
    context_in,
    fail,
    fail_with,
    harmless,
)

#: Commands without a collection that belong to a task. Those of connections and sessions do not.
OF_TRANSACTIONS = ("commitTransaction", "abortTransaction")


class Exchange(Protocol):
    """A request to the HTTP API, and its answer (app/api/front.py)."""

    scope: Any
    facts: dict[str, Any]
    status: int | None


class Traces(OpenTelemetry):
    """The option `tracing` of the broker, and more."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        super().__init__(provider)
        self.commands = Commands(self.tracer)

    @contextmanager
    def serving(self, exchange: Exchange) -> Iterator[None]:
        """The span of a request. Its facts have the trace from then on. The span has no path, which
        has ids of users, but the pattern of the route."""
        span: Span | None = None
        scope, facts = exchange.scope, exchange.facts
        with harmless():
            span = self.tracer.start_span(
                scope["method"],
                context_in(_given(scope) if facts["traceparent"] else {}),
                SpanKind.SERVER,
                {
                    "http.request.method": scope["method"],
                    "sqs_broker.request_id": facts["request_id"],
                },
            )
            facts |= carrier_of(span)
        try:
            with active(span):
                yield
        except BaseException as exc:
            with harmless():
                if span is not None:
                    fail(span, exc)
            raise
        finally:
            with harmless():
                if span is not None:
                    _end(span, exchange)


class Commands(CommandListener):
    """Makes a span of each command to MongoDB inside another span, such as the run of a task. So
    heartbeats, start checks and the control plane have none."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        #: By the id of the request, which pymongo counts up in each process.
        self._open: dict[int, Span] = {}

    def started(self, event: CommandStartedEvent) -> None:
        """Begin the span of a command: with its name and its collection, and no values."""
        collection = event.command.get(event.command_name)
        if event.command_name == "getMore":
            collection = event.command.get("collection")
        is_known = isinstance(collection, str) or event.command_name in OF_TRANSACTIONS
        if not is_known or not trace.get_current_span().is_recording():
            return
        host, port = event.connection_id[0], event.connection_id[1]
        facts = {
            "db.system.name": "mongodb",
            "db.namespace": event.database_name,
            "db.operation.name": event.command_name,
            "server.address": host,
            "server.port": port,
        }
        where = {"db.collection.name": collection} if isinstance(collection, str) else {}
        self._open[event.request_id] = self._tracer.start_span(
            " ".join([event.command_name, *where.values()]),
            kind=SpanKind.CLIENT,
            attributes={k: v for k, v in (facts | where).items() if v is not None},
        )

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """End the span."""
        if (span := self._open.pop(event.request_id, None)) is not None:
            span.end()

    def failed(self, event: CommandFailedEvent) -> None:
        """End the span with the code of the error; its text can have values."""
        if (span := self._open.pop(event.request_id, None)) is not None:
            error = event.failure.get("code") or event.failure.get("errtype")
            fail_with(span, str(error or "failed"))
            span.end()


def _given(scope: Any) -> dict[str, str]:
    names = (b"traceparent", b"tracestate")
    return {n.decode(): v.decode("latin-1") for n, v in scope["headers"] if n in names}


def _end(span: Span, exchange: Exchange) -> None:
    method, route = exchange.scope["method"], getattr(exchange.scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    if exchange.status is not None:
        span.set_attribute("http.response.status_code", exchange.status)
        if exchange.status >= 500:
            fail_with(span, str(exchange.status))
    span.end()
