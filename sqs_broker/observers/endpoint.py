"""`/metrics` of this process, for Prometheus, on threads of its own."""

import base64
import hmac
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from time import monotonic
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from sqs_broker.errors import ConfigurationError, label
from sqs_broker.machine import threads
from sqs_broker.machine.seldom import Seldom
from sqs_broker.observers.figures import Sample

try:
    from prometheus_client import make_wsgi_app

    from sqs_broker.observers.exposition import registry_of
except ImportError as exc:
    raise ConfigurationError(
        "broker_transport_options: `port` of `metrics` needs prometheus_client. "
        "Run: pip install 'celery-sqs-broker[metrics]'"
    ) from exc

logger = logging.getLogger(__name__)

#: Seconds until the next try, if the port is taken: by the worker before this one, for example.
RETRY_PAUSE = 5.0

#: Seconds between two looks whether to close.
POLL_INTERVAL = 5.0

#: Seconds that a client may take for its request.
READ_TIMEOUT = 10

_Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Endpoint:
    """Serves the samples that `read` returns at each request. A port that is taken is tried again,
    without end: a worker works without it, too."""

    def __init__(
        self,
        read: Callable[[], Iterable[Sample]],
        *,
        port: int,
        address: str,
        login: str | None = None,
        retry_pause: float = RETRY_PAUSE,
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        self._address = address
        self._port = port
        self._retry_pause = retry_pause
        self._poll_interval = poll_interval
        self._app = _only_metrics(make_wsgi_app(registry_of(read)), login)
        self._closing = threading.Event()
        self._server: _Server | None = None
        self._seldom = Seldom()

    @property
    def port(self) -> int | None:
        """The port on which it listens; None until it does."""
        server = self._server
        return None if server is None else int(server.server_address[1])

    def start(self) -> None:
        """Listen soon. Returns at once; never raises."""
        threads.start(self._run, "sqs-metrics")

    def close(self) -> None:
        """Listen no more."""
        self._closing.set()
        if (server := self._server) is not None:
            server.shutdown()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                server = _Server(self._address, self._port, self._app)
            except OSError as exc:
                self._log_failure(exc)
                self._closing.wait(self._retry_pause)
            else:
                with server:
                    self._server = server
                    logger.info(
                        "Prometheus can read /metrics at %s, port %d.",
                        self._address,
                        server.server_address[1],
                        extra={"event": "metrics.served"},
                    )
                    server.serve_forever(self._poll_interval)
                return

    def _log_failure(self, exc: OSError) -> None:
        if self._seldom.allows("bind", monotonic()):
            logger.warning(
                "Cannot serve /metrics at %s, port %d (%s); trying again.",
                self._address,
                self._port,
                exc.strerror or label(exc),
                extra={"event": "metrics.unserved", "error": label(exc)},
            )


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: str, port: int, app: _Wsgi) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)
        self.set_app(app)
        _listening.append(self)

    def server_close(self) -> None:
        super().server_close()
        if self in _listening:
            _listening.remove(self)

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no error, and the others are logged by who reads."""


class _Handler(WSGIRequestHandler):
    timeout = READ_TIMEOUT

    def log_message(self, *_: Any) -> None:
        """Nothing: Prometheus asks every few seconds."""


def _only_metrics(app: _Wsgi, login: str | None) -> _Wsgi:
    expected = login and f"Basic {base64.b64encode(login.encode()).decode()}"

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environ.get("HTTP_AUTHORIZATION", "")
        if expected and not hmac.compare_digest(given.encode(), expected.encode()):
            asked = ("WWW-Authenticate", 'Basic realm="metrics"')
            return _refused(HTTPStatus.UNAUTHORIZED, start_response, asked)
        if environ["PATH_INFO"] != "/metrics":
            return _refused(HTTPStatus.NOT_FOUND, start_response)
        return app(environ, start_response)

    return guarded


def _refused(
    status: HTTPStatus, start_response: Callable[..., Any], *headers: tuple[str, str]
) -> Iterable[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain"), *headers])
    return [status.phrase.encode() + b"\n"]


#: The servers of this process. A pool process must not hold their port when the worker has ended.
_listening: list[_Server] = []


def _close_after_fork() -> None:
    for server in _listening:
        server.socket.close()
    _listening.clear()


os.register_at_fork(after_in_child=_close_after_fork)
