"""A proxy in front of an SQS server that counts calls by action and can hold them back."""

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

#: Headers that belong to one connection and not to the message.
HOP_BY_HOP = {"connection", "host", "transfer-encoding", "keep-alive", "content-length"}


class FaultProxy:
    """Forwards to `target`. Thread-safe; used through `running`."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.calls: Counter[str] = Counter()
        self._held: set[str] = set()
        self._changed = threading.Condition()
        self._waiting: Counter[str] = Counter()
        self._closed = False

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

    def close(self) -> None:
        """Drop what waits: it never reaches the server."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def pass_through(self, action: str) -> bool:
        """Count a call and keep it for as long as its action is held; False where it is dropped."""
        with self._changed:
            self.calls[action] += 1
            self._waiting[action] += 1
            self._changed.wait_for(lambda: self._closed or action not in self._held)
            self._waiting[action] -= 1
            return not self._closed


@contextmanager
def running(target: str) -> Iterator[tuple[FaultProxy, str]]:
    """A proxy on a free port of 127.0.0.1, and its URL, until the end of the block."""
    proxy = FaultProxy(target)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy, f"http://127.0.0.1:{server.server_port}"
    finally:
        proxy.close()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not proxy.pass_through(self.headers["X-Amz-Target"].rpartition(".")[2]):
                self.close_connection = True
                return
            upstream = http.client.HTTPConnection(proxy.target.hostname, proxy.target.port)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
                upstream.request("POST", self.path, body, headers)
                answer = upstream.getresponse()
                self._answer(answer, answer.read())
            finally:
                upstream.close()

        def _answer(self, answer: http.client.HTTPResponse, body: bytes) -> None:
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a test asks for the counts."""

    return Handler
