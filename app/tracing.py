"""Traces of this application's processes. It is imported only if TRACING is on (docs/tracing.md).

OpenTelemetry's own variables say where the spans go to. If the program has set OpenTelemetry up
itself, its provider is used as it is.
"""

import os
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from celery.signals import worker_process_shutdown
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from app.errors import SettingsError
from app.spans import Traces
from sqs_broker.machine import threads

#: The name of the service if OTEL_SERVICE_NAME gives none.
SERVICE = "registrations"

#: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
EXPORTER = "OTEL_TRACES_EXPORTER"

#: The kind of entry points by which packages offer exporters.
GROUP = "opentelemetry_traces_exporter"

#: Seconds in which a process sends its last spans, and a Lambda function those of an invocation.
#: Spans that are not sent by then are lost with their process.
FLUSH = 1.0


#: The thread that sends the spans that waited at the last `flush`.
_sender: threading.Thread | None = None


class OfEachProcess(SpanProcessor):
    """A processor that each process makes for itself: an exporter's connection and threads
    cannot be shared between processes."""

    def __init__(self, make: Callable[[], SpanProcessor]) -> None:
        self._make = make
        self._lock, self._is_closing = threading.Lock(), threading.Event()
        self._own: SpanProcessor | None = None
        self._closer: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._forget)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is needed of a span that begins."""

    def on_end(self, span: ReadableSpan) -> None:
        """Send it, later."""
        with self._lock:
            if self._own is None:
                self._own = self._make()
                # Now, because Python 3.12 starts no thread when the interpreter ends.
                self._closer = threads.start(self._close, "span-closer")
        self._own.on_end(span)

    def shutdown(self) -> None:
        """Send what waits, and end. Returns after FLUSH seconds at the latest: the processor itself
        waits for an open call of its exporter, and up to 30 s (SDK 1.45 `BatchProcessor.shutdown`).
        """
        self._is_closing.set()
        if self._closer is not None:
            self._closer.join(FLUSH)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits."""
        return self._own is None or self._own.force_flush(timeout_millis)

    def _close(self) -> None:
        own, is_closing = self._own, self._is_closing
        is_closing.wait()
        if own is not None:
            own.shutdown()

    def _forget(self) -> None:
        self._lock, self._is_closing = threading.Lock(), threading.Event()
        self._own = self._closer = None


def provide() -> None:
    """Set the global provider, unless there is one. Raises SettingsError if the exporter is not
    installed."""
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    exporter = _exporter()
    provider = TracerProvider(resource=_resource())
    # Not a processor that sends each span as it ends: it would do so on the thread of the task, and
    # would catch the exception of the task's time limit (SDK 1.45 `SimpleSpanProcessor.on_end`).
    provider.add_span_processor(OfEachProcess(lambda: BatchSpanProcessor(exporter())))
    trace.set_tracer_provider(provider)
    # A process of the pool ends without Python's own end.
    worker_process_shutdown.connect(flush, weak=False)


def flush(**_: Any) -> None:
    """Send the spans that wait, and return after FLUSH seconds at the latest. Never raises. While
    an earlier call still sends, it sends nothing."""
    global _sender
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        return
    if _sender is None or not _sender.is_alive():
        # `force_flush` has no limit of time in SDK 1.45: it waits for the exporter.
        _sender = threads.start(provider.force_flush, "span-sender")
    if _sender is not None:
        _sender.join(FLUSH)


def _resource() -> Resource:
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "unknown_")).startswith("unknown_"):
        resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
    return resource


def _exporter() -> Callable[[], Any]:
    asked = os.environ.get(EXPORTER) or "otlp"
    name = "otlp_proto_http" if asked == "otlp" else asked
    for found in entry_points(group=GROUP, name=name):
        exporter: Callable[[], Any] = found.load()
        return exporter
    raise SettingsError(
        f"TRACING is on, but the exporter of spans {asked!r} is not installed. Install "
        f"'sqs-registrations[tracing]', or set {EXPORTER}."
    )


@cache
def _of_this_process() -> Traces:
    provide()
    return Traces()


#: The option `tracing` (celeryconfig.py). The provider is set when it is first needed.
tracing: Traces


def __getattr__(name: str) -> Any:
    if name == "tracing":
        return _of_this_process()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
