"""This project's own app with traces. Each process makes its spans and drops them as it would send
them: what a collector takes is not this project's.
"""

from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from app.tracing import OfEachProcess


class Dropping(SpanExporter):
    """Takes all spans, and does nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is open."""


_provider = TracerProvider()
_provider.add_span_processor(OfEachProcess(lambda: BatchSpanProcessor(Dropping())))
# First: the app keeps a provider that the program has.
trace.set_tracer_provider(_provider)

import bench.ours  # noqa: E402, F401 - it adds the measured tasks
from app.celery import app  # noqa: E402

__all__ = ["app"]
