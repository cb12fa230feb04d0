"""uvicorn with the limits that it lacks, and with a stop that load balancers notice."""

import asyncio
import logging
import os
import signal
import socket
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.front import IS_CLOSED
from app.api.problems import MEDIA_TYPE, Kind, Problem, content_of
from app.api.service import Service

logger = logging.getLogger(__name__)

#: Seconds in which the headers of a request must arrive, from its first byte on, and in which a new
#: connection must begin its first request.
HEADER_SECONDS = 10.0

#: Most bytes of the headers of a request.
MOST_HEADERS = 32 * 1024

#: Seconds that the requests in flight have to end after the stop.
STOP_SECONDS = 60


class HeadersTooLarge(Exception):
    """The headers of a request are too large."""


class Joined:
    """A transport that writes the head of an answer together with the first part of its body.
    uvicorn writes each by itself: one more system call here, and two more in the client."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write, or keep the head of an answer until the next call."""
        if not self._head and data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            # The client waits for it before it sends the body.
            if not data.startswith(b"HTTP/1.1 100 "):
                return
            data = b""
        head, self._head = self._head, b""
        self._transport.write(head + data)

    def flush(self) -> None:
        """Write the head of an answer without a body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close the connection, after what was written."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """One connection. Slow or large headers end it. A request that is not HTTP is a problem like
    any other."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # As in uvicorn's own class.
        super().connection_made(transport)
        self._joined = Joined(transport)
        self.transport = self._joined  # type: ignore[assignment]  # has all its methods
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            # uvicorn forgets this timer only if the connection ended without an error. Until then
            # it would hold the last request: many clients that reset connections would fill memory.
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._header_timer is not None and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > MOST_HEADERS:
                self._refuse(Kind.HEADERS)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][IS_CLOSED] = self.transport.is_closing
        if self._header_timer is None:
            self._await_headers()

    def on_headers_complete(self) -> None:
        self._forget_timer()
        if sum(len(name) + len(value) for name, value in self.headers) > MOST_HEADERS:
            raise HeadersTooLarge
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._joined.flush()  # The answer to HEAD has no body.
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, and end the connection."""
        is_large = self.headers is not None and (
            sum(len(name) + len(value) for name, value in self.headers) > MOST_HEADERS
        )
        self._refuse(Kind.HEADERS if is_large else Kind.INVALID)

    def _await_headers(self) -> None:
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._refuse, Kind.TIMEOUT)

    def _forget_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _refuse(self, kind: Kind) -> None:
        self._forget_timer()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = content_of(Problem(kind))
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%s"
                % (kind.status, kind.title.encode(), MEDIA_TYPE.encode(), len(body), body)
            )
        self.transport.close()


class Server(uvicorn.Server):
    """A server that stops in two steps: first `/readyz` fails, then it takes no connections. No
    request in flight is cut off within STOP_SECONDS."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds
        self._stops_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the stop. At a second Ctrl+C, end at once."""
        if self._stops_at is None:
            self._stops_at = monotonic() + self._drain_seconds
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True

    def stop_with(self, descriptor: int) -> None:
        """Begin the stop once this can be read from, as when the other end of a pipe is closed."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            loop.remove_reader(descriptor)
            self.handle_exit(signal.SIGTERM, None)

        loop.add_reader(descriptor, stop)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop now. uvicorn asks ten times a second."""
        if self._stops_at is not None:
            if not self._service.is_draining:
                self._service.begin_stop()
                _log_stop()
            self.should_exit = self.should_exit or monotonic() >= self._stops_at
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections."""
        await super().startup(sockets)
        for each in sockets or ():
            _log_start(*each.getsockname()[:2])


def config(app: ASGIApp, keep_alive: int) -> uvicorn.Config:
    """uvicorn's configuration."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        # The address of the client is used for nothing.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _log_start(address: str, port: int) -> None:
    logger.info(
        "The API listens on %s:%s.",
        address,
        port,
        extra={"event": "api.started", "pid": os.getpid()},
    )


def _log_stop() -> None:
    logger.info(
        "The API stops: it ends the requests that it has.",
        extra={"event": "api.stopping", "pid": os.getpid()},
    )
