"""A small collector of spans by OTLP over HTTP, whose answers a test chooses.
https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

#: Returns the status of an answer, at once or later.
Answer = Callable[["Collector"], HTTPStatus]


class Collector:
    """Keeps the spans that it has accepted. Its handlers run on threads."""

    def __init__(self) -> None:
        #: Set at the end of the test.
        self.over = threading.Event()
        #: The spans, as tests/probe/spans.py has them.
        self.spans: list[dict[str, Any]] = []
        #: How many requests have come.
        self.requests = 0
        self.endpoint = ""

    def take(self, body: bytes) -> None:
        """Keep the spans of a request. Raises if it is none."""
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(of_resource.resource.attributes)["service.name"]
            for of_scope in of_resource.scope_spans:
                self.spans += [_facts_of(span) | {"service": service} for span in of_scope.spans]


def accepts(collector: Collector) -> HTTPStatus:
    return HTTPStatus.OK


def is_silent(collector: Collector) -> HTTPStatus:
    """Answers at the end of the test."""
    collector.over.wait()
    return HTTPStatus.SERVICE_UNAVAILABLE


def is_slow(collector: Collector) -> HTTPStatus:
    """Answers after longer than a process waits for its last spans."""
    collector.over.wait(3)
    return HTTPStatus.OK


@contextmanager
def collecting(answer: Answer = accepts) -> Iterator[Collector]:
    """A collector that listens until the end of the block."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.requests += 1
            if (status := answer(collector)) is HTTPStatus.OK:
                is_packed = self.headers["Content-Encoding"] == "gzip"
                collector.take(gzip.decompress(body) if is_packed else body)
            content = ExportTraceServiceResponse().SerializeToString()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that has gone away is no error."""

    with Server(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield collector
        finally:
            collector.over.set()
            server.shutdown()
            thread.join()


def _facts_of(span: Span) -> dict[str, Any]:
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex() or None,
        "status": Status.StatusCode.Name(span.status.code),
        "attributes": _values(span.attributes),
    }


def _values(attributes: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
        for each in attributes
    }
