"""A proxy in front of an SQS server that counts calls by action, holds them back, and fails them.

A test says which calls of which action fail, and how:

    proxy.fail("ReceiveMessage", SERVER_ERROR, first=1, last=20)
"""

import http.client
import io
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

#: Headers that belong to one connection and not to the message.
HOP_BY_HOP = {"connection", "host", "transfer-encoding", "keep-alive", "content-length"}


@dataclass(frozen=True)
class Fault:
    """What the caller gets instead of the answer.

    An answer with `status` and `body`, of which only `sent` bytes are sent; or, without a status,
    no answer: the connection is reset or, where it `hangs`, kept open until the caller gives up.
    """

    name: str
    status: int | None = None
    body: bytes = b""
    sent: int | None = None
    hangs: bool = False
    is_forwarded: bool = False
    """Whether the server does what was asked: then only its answer is lost."""
    drips: float = 0.0
    """If above 0, the caller gets the server's answer, with a pause of so many seconds before each
    byte."""
    lasts: float = 0.0
    """If above 0, the same, with pauses of so many seconds in total."""


def refusal(name: str, status: int, code: str) -> Fault:
    """The error that SQS gives by a code of its own."""
    # https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html#operation-error-serialization
    error = {"__type": f"com.amazonaws.sqs#{code}", "message": "said by the fault proxy"}
    return Fault(name, status, json.dumps(error).encode())


def refused(*places: int, of: int) -> Fault:
    """Of so many entries of a call, those at these places have a receipt handle that SQS does not
    take. The server does what the others ask for."""
    failed = [
        {"Id": str(place), "Code": "ReceiptHandleIsInvalid", "SenderFault": True}
        for place in places
    ]
    others = [{"Id": str(place)} for place in range(of) if place not in places]
    body = json.dumps({"Successful": others, "Failed": failed}).encode()
    return Fault("handles refused", 200, body, is_forwarded=len(places) < of)


MESSAGE = b'{"Messages": [{"MessageId": "b3a4", "ReceiptHandle": "AQEB", "Body": "x"}]}'

SERVER_ERROR = refusal("HTTP 500", 500, "InternalFailure")
THROTTLED = refusal("503 throttling", 503, "RequestThrottled")
OVER_LIMIT = refusal("OverLimit", 400, "OverLimit")
EXPIRED = refusal("403 expired token", 403, "ExpiredToken")
RESET = Fault("reset")
TRUNCATED = Fault("truncated body", 200, MESSAGE, sent=len(MESSAGE) // 2)
GARBLED = Fault("garbled body", 200, b"\xff\xfe\x00garbled")
NOT_SQS = Fault("a page of HTML", 200, b"<html>a gateway says hello</html>")
MISSHAPEN = Fault("message without its fields", 200, MESSAGE)
SILENT = Fault("an answer that never comes", hangs=True)
#: As from a proxy on the way that lets hardly anything through: an empty answer takes minutes.
DRIPPING = Fault("one byte a second", drips=1.0)
#: The server hands messages out, and nobody gets them.
LOST = replace(RESET, name="lost answer", is_forwarded=True)

EVERY = (
    SERVER_ERROR, THROTTLED, OVER_LIMIT, EXPIRED, RESET, TRUNCATED, GARBLED, NOT_SQS,
    MISSHAPEN, SILENT,
)  # fmt: skip


@dataclass
class _Plan:
    """Which calls of an action fail, counted from when it was made."""

    faults: tuple[Fault, ...]
    first: int
    last: int | None
    seen: int = 0

    def next(self) -> Fault | None:
        self.seen += 1
        if self.seen < self.first or (self.last is not None and self.seen > self.last):
            return None
        return self.faults[(self.seen - self.first) % len(self.faults)]


class FaultProxy:
    """Forwards to `target`. Thread-safe; used through `running`."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.calls: Counter[str] = Counter()
        #: Calls by action that were failed.
        self.failed: Counter[str] = Counter()
        #: Seconds that each call takes longer, as if the server were far away.
        self.distance = 0.0
        #: Seconds that the clock of the server is ahead, as its answers say.
        self.ahead = 0.0
        self._held: set[str] = set()
        self._plans: dict[str, _Plan] = {}
        self._changed = threading.Condition()
        self._waiting: Counter[str] = Counter()
        self._closed = False
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def hold(self, action: str) -> None:
        """Let calls of this action wait, unforwarded, until `let_go`."""
        with self._changed:
            self._held.add(action)

    def let_go(self, action: str) -> None:
        """Forward what waits, and what comes."""
        with self._changed:
            self._held.discard(action)
            self._changed.notify_all()

    def is_holding(self, action: str) -> bool:
        """Whether a call of this action waits here now."""
        with self._changed:
            return self._waiting[action] > 0

    def fail(self, action: str, *faults: Fault, first: int = 1, last: int | None = None) -> None:
        """Fail the `first` to the `last` call of this action, counted from now; without a last one,
        all until `heal`. Several faults take turns. What was planned before is forgotten."""
        with self._changed:
            self.failed[action] = 0
            self._plans[action] = _Plan(faults, first, last)

    def heal(self, action: str) -> None:
        """Fail no more calls of this action."""
        with self._changed:
            self._plans.pop(action, None)

    def go_down(self) -> None:
        """Reset every connection and refuse new ones, until `come_up`."""
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = None
        with self._changed:
            connections = list(self._connections)
        for connection in connections:
            # Wakes the thread that reads from it, which closes it.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def come_up(self) -> None:
        """Listen, on the same port as before."""
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", self._port), type("Handler", (_Handler,), {"proxy": self})
        )
        self._server.daemon_threads = True
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Drop what waits: it never reaches the server."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._server is not None:
            self.go_down()

    def pass_through(self, action: str) -> bool:
        """Count a call and keep it for as long as its action is held; False where it is dropped."""
        with self._changed:
            self.calls[action] += 1
            self._waiting[action] += 1
            self._changed.wait_for(lambda: self._closed or action not in self._held)
            self._waiting[action] -= 1
            return not self._closed

    def waits(self, seconds: float) -> bool:
        """Wait. True if the proxy has closed meanwhile."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)

    def fault_for(self, action: str) -> Fault | None:
        """How this call, the next of its action, fails; None where it does not."""
        with self._changed:
            plan = self._plans.get(action)
            fault = plan.next() if plan else None
            if fault is not None:
                self.failed[action] += 1
            return fault

    def opened(self, connection: socket.socket) -> None:
        """A caller has connected."""
        with self._changed:
            self._connections.add(connection)

    def ended(self, connection: socket.socket) -> None:
        """A caller has gone."""
        with self._changed:
            self._connections.discard(connection)


@contextmanager
def running(target: str) -> Iterator[tuple[FaultProxy, str]]:
    """A proxy on a free port of 127.0.0.1, and its URL, until the end of the block."""
    proxy = FaultProxy(target)
    proxy.come_up()
    try:
        yield proxy, proxy.url
    finally:
        proxy.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[FaultProxy]

    def setup(self) -> None:
        super().setup()
        self.proxy.opened(self.connection)

    def handle(self) -> None:
        # The caller may leave at any time: a test kills workers, and the proxy goes down.
        with suppress(ConnectionError, ValueError):
            super().handle()

    def finish(self) -> None:
        self.proxy.ended(self.connection)
        with suppress(OSError):
            super().finish()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        action = self._action(body)
        fault = self.proxy.fault_for(action)
        if not self.proxy.pass_through(action):
            self.close_connection = True
            return
        if self.proxy.distance:
            self.proxy.waits(self.proxy.distance)
        if fault is None:
            self._answer(*self._forward(body))
            return
        if fault.drips or fault.lasts:
            self._drip(*self._forward(body), fault)
            return
        if fault.is_forwarded:
            self._forward(body)
        self._fail(fault)

    def _action(self, body: bytes) -> str:
        if target := self.headers["X-Amz-Target"]:
            return str(target).rpartition(".")[2]
        # The older of SQS's two protocols, which kombu 5.7 speaks in part.
        return parse_qs(body.decode())["Action"][0]

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.proxy.target.hostname, self.proxy.target.port)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
            upstream.request("POST", self.path, body, headers)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            # `send_response` has sent a date.
            if name.lower() not in HOP_BY_HOP | {"date"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The time of the server."""
        return super().date_time_string((timestamp or time.time()) + self.proxy.ahead)

    def _drip(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault) -> None:
        whole, self.wfile = self.wfile, io.BytesIO()
        try:
            self._answer(status, headers, body)
            answer = self.wfile.getvalue()
        finally:
            self.wfile = whole
        pause = fault.drips or fault.lasts / len(answer)
        for byte in answer:
            if self.proxy.waits(pause):
                break  # The proxy closes.
            self.wfile.write(bytes([byte]))

    def _fail(self, fault: Fault) -> None:
        if fault.status is not None:
            headers = [("Content-Type", "application/x-amz-json-1.0")]
            self._answer(fault.status, headers, fault.body, fault.sent)
            # Else the caller would wait for the rest of a truncated body.
            self.close_connection = fault.sent is not None
            return
        self.close_connection = True
        if fault.hangs:
            self.connection.recv(1)  # Returns once the caller, or the proxy, is gone.
            return
        # Closed without a linger time, a socket sends RST. The server's own way of closing
        # would shut it down first, which sends FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a test asks for the counts."""
