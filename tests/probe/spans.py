"""An exporter of spans that a process of the application finds by its entry point: it appends each
span to the file SPANS_FILE, as a line of JSON.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tests.growing import whole_lines

#: Of the entry point: the value of OTEL_TRACES_EXPORTER.
NAME = "to_file"


class ToFile(SpanExporter):
    """Appends whole lines, so that several processes can share the file."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = "".join(json.dumps(_facts_of(span)) + "\n" for span in spans).encode()
        file = os.open(os.environ["SPANS_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, lines)
        finally:
            os.close(file)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is open."""


def install(site: Path) -> dict[str, str]:
    """Offer the exporter in a directory of packages. Returns the variables that use it, but for the
    path of Python."""
    package = site / "spans_to_file-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: spans-to-file\nVersion: 1\n")
    points = f"[opentelemetry_traces_exporter]\n{NAME} = tests.probe.spans:ToFile\n"
    (package / "entry_points.txt").write_text(points)
    return {"OTEL_TRACES_EXPORTER": NAME, "SPANS_FILE": str(site / "spans.jsonl")}


def read(file: Path) -> list[dict[str, Any]]:
    """The spans in a file, in the order of their starts."""
    return sorted(map(json.loads, whole_lines(file)), key=lambda span: float(span["start"]))


def tree(spans: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each span: the names from its root to itself."""
    by_id = {span["id"]: span for span in spans}

    def path(span: dict[str, Any]) -> str:
        above = by_id.get(span["parent"])
        return f"{path(above)} > {span['name']}" if above else str(span["name"])

    return sorted(map(path, spans))


def _facts_of(span: ReadableSpan) -> dict[str, Any]:
    assert span.context
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace": f"{span.context.trace_id:032x}",
        "id": f"{span.context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else None,
        "start": (span.start_time or 0) / 1e9,
        "end": (span.end_time or 0) / 1e9,
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes or {}),
        "service": span.resource.attributes["service.name"],
        "pid": os.getpid(),
    }
