"""python -m bench.http_client: many clients of an HTTP server, each with one request at a time.

Reads a `Load` as JSON from stdin, and writes `Answers` as JSON to stdout. A process of its own, so
that its time is not that of what is measured.
"""

import asyncio
import os
import sys
import uuid
from collections import Counter
from dataclasses import dataclass, field
from time import perf_counter

import uvloop
from pydantic import TypeAdapter

from devstack import ports

#: Stands for a user in the body of a request; each request has another one.
USER = "{user}"


@dataclass(frozen=True)
class Load:
    """What to ask."""

    port: int
    path: str
    body: str
    """JSON in ASCII, with USER in it."""
    clients: int
    seconds: float
    warm_up: float = 1.0
    """Seconds before, which are not counted."""
    headers: dict[str, str] = field(default_factory=dict)
    rate: float | None = None
    """Requests a second of all clients together, evenly; None: each client asks again at once."""


@dataclass
class Answers:
    """What came back."""

    all: int = 0
    """Requests that were accepted, those of the warm-up too."""
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Milliseconds of each request that was accepted. At a rate, from when it was due: what a slow
    server keeps waiting is not left out."""


class _Client(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, load: Load, start: float, offset: float, answers: Answers) -> None:
        self._answers = answers
        self._start = start
        self._end = start + load.warm_up + load.seconds
        self._counts_from = start + load.warm_up
        self._interval = load.clients / load.rate if load.rate else 0.0
        self._due = start + offset
        self._began = 0.0
        self._received = b""
        self._left = 0
        self._size = 0
        self._head, self._parts = _request(load)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # uvloop's own class, which is no asyncio.Transport at runtime.
        self._transport = transport
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionError("The server closed the connection."))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._size:
            head, found, _ = self._received.partition(b"\r\n\r\n")
            if not found:
                return
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._size = len(head) + 4 + int(length)
        if len(self._received) >= self._size:
            self._answered(int(self._received[9:12]))

    def _answered(self, status: int) -> None:
        now = perf_counter()
        self._received, self._size = b"", 0
        self._answers.all += status < 400
        # At a rate, those that were due within the time; otherwise those that were answered.
        at = self._began if self._interval else now
        if self._counts_from <= at < self._end:
            self._answers.statuses[status] += 1
            if status < 400:
                self._answers.latencies.append((now - self._began) * 1000)
        self._next()

    def _next(self) -> None:
        now = perf_counter()
        if max(now, self._due if self._interval else now) >= self._end:
            self.ended.set_result(None)
            self._transport.close()
        elif not self._interval:
            self._began = now
            self._ask()
        else:
            self._began = max(self._due, self._start)
            self._due += self._interval
            asyncio.get_running_loop().call_later(max(0.0, self._began - now), self._ask)

    def _ask(self) -> None:
        self._transport.write(self._head + uuid.uuid4().hex.encode().join(self._parts))


def _request(load: Load) -> tuple[bytes, list[bytes]]:
    """The head, and the parts of the body between which the user is."""
    parts = load.body.encode().split(USER.encode())
    length = sum(map(len, parts)) + (len(parts) - 1) * 32
    lines = {"Host": ports.HOST, "Content-Type": "application/json", "Content-Length": str(length)}
    headers = "".join(f"{name}: {value}\r\n" for name, value in (lines | load.headers).items())
    return f"POST {load.path} HTTP/1.1\r\n{headers}\r\n".encode(), parts


async def ask(load: Load) -> Answers:
    """Ask for so long. Raises OSError if a connection fails."""
    loop = asyncio.get_running_loop()
    answers, clients = Answers(), []
    start = perf_counter()
    for number in range(load.clients):
        offset = number / load.rate if load.rate else 0.0

        def client(offset: float = offset) -> _Client:
            return _Client(load, start, offset, answers)

        _, made = await loop.create_connection(client, ports.HOST, load.port)
        clients.append(made)
    await asyncio.gather(*(made.ended for made in clients))
    return answers


def main() -> None:
    load = TypeAdapter(Load).validate_json(sys.stdin.read())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers = runner.run(ask(load))
    # Not with sys.stdout: if PYTHONUNBUFFERED is set, it loses what a pipe does not take at once.
    left = memoryview(TypeAdapter(Answers).dump_json(answers))
    while left:
        left = left[os.write(sys.stdout.fileno(), left) :]


if __name__ == "__main__":
    main()
