"""A small HTTP client for load: as many connections as clients, each with one request at a time."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

#: Most bytes of the headers of an answer.
LIMIT = 1 << 20


@dataclass
class Answers:
    """The answers of a run."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Requests that were answered each second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """The time within which this share of the requests was answered, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def post(path: str, body: bytes, host: str, headers: str = "") -> bytes:
    """A request with a body in JSON. `headers` has one in each line, which ends in CR and LF."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


async def load(
    host: str, port: int, clients: int, requests: int, make: Callable[[int], bytes]
) -> Answers:
    """Make this many requests, `make(number)`, with so many clients. Raises OSError."""
    answers = Answers()
    numbers = iter(range(requests))
    began = perf_counter()
    await asyncio.gather(*(_client(host, port, numbers, make, answers) for _ in range(clients)))
    answers.seconds = perf_counter() - began
    return answers


async def _client(
    host: str,
    port: int,
    numbers: Iterator[int],
    make: Callable[[int], bytes],
    answers: Answers,
) -> None:
    reader, writer = await asyncio.open_connection(host, port, limit=LIMIT)
    for number in numbers:
        began = perf_counter()
        writer.write(make(number))
        answers.statuses[await _status(reader)] += 1
        answers.latencies.append(perf_counter() - began)
    writer.close()
    await writer.wait_closed()


async def _status(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(head[9:12])
