"""A server of this machine that answers as a script says."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from sqs_broker.options import Options

#: The header `Date` of each answer that names no other.
DATE = "Fri, 02 Jan 2026 03:04:05 GMT"

MESSAGE = (
    '{"Messages": [{"MessageId": "1", "ReceiptHandle": "r", "Body": "{}", "Attributes": '
    '{"ApproximateReceiveCount": "1", "SentTimestamp": "1"}}]}'
)


@dataclass
class Asked:
    """A request that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes
    #: Of whom, by the port of its connection.
    port: int


@dataclass
class Script:
    """The answers that a server will give, and the requests that it got."""

    url: str = ""
    answers: list[tuple[int, dict[str, str], bytes, float]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def answer(
        self, body: str = "{}", status: int = 200, *, drip: float = 0.0, **headers: str
    ) -> None:
        """Give this answer next. `drip`: seconds before each byte, so that no single read takes
        long."""
        self.answers.append((status, headers, body.encode(), drip))

    @property
    def ports(self) -> list[int]:
        """Of each request, the port of its connection."""
        return [asked.port for asked in self.asked]

    def options(self, **changes: Any) -> Options:
        """Options of a client of this server."""
        key = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        given = {"region": "us-east-1", "queues": {}, "endpoint_url": self.url, "credentials": key}
        return Options(**given | changes)

    @property
    def queue_url(self) -> str:
        """The URL of a queue here."""
        return f"{self.url}/1/jobs"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: ClassVar[Script]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        script = self.script
        script.asked.append(Asked(self.path, dict(self.headers), body, int(self.client_address[1])))
        status, headers, answer, drip = script.answers.pop(0)
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(answer)), "Date": DATE, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for byte in answer if drip else b"":
            time.sleep(drip)
            try:
                self.wfile.write(bytes([byte]))
            except OSError:
                return  # The client has ended the call.
        if not drip:
            self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def running(certificate: Path | None = None) -> Iterator[Script]:
    """A server on a free port of 127.0.0.1, until the end of the block. With a certificate and its
    key it speaks TLS."""
    script = Script()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"script": script}))
    # A call that a client has left may still drip.
    server.block_on_close = False
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # Of a client that does not trust it. Else it would print the error.
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    script.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
