"""What the proxy itself can carry, measured before anything else: it must not be the bottleneck."""

import http.client
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import cpu, traffic
from devstack import ports, sqs

#: Seconds of each measurement.
SECONDS = 1.0
CLIENTS = 8
HEADERS = {
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Target": "AmazonSQS.ListQueues",
    # The server asks for credentials and believes any.
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sqs/aws4_request, "
    "SignedHeaders=host, Signature=0",
    "X-Amz-Date": "20260101T000000Z",
}


@dataclass(frozen=True)
class Limits:
    """Of the proxy, with no delay."""

    calls_a_second: float
    """What eight clients got through it, sharing the machine with it."""
    calls_a_cpu_second: float | None
    """What one core that does nothing else could carry."""
    added_ms: float
    """What one call takes longer through it."""


def measure(logs: Path) -> Limits:
    """Ask for the list of queues, through the proxy and past it."""
    with (
        sqs.running(log=logs / "sqs.log") as server,
        traffic.running(server.port, 0, logs / "proxy.log") as proxy,
    ):
        added = median(_latencies(proxy.port)) - median(_latencies(server.port))
        before = cpu.seconds_below(proxy.process.guard_pid)
        started = time.monotonic()
        calls = _calls_of_all(proxy.port)
        seconds = time.monotonic() - started
        after = cpu.seconds_below(proxy.process.guard_pid)
    used = None if before is None or after is None else after - before
    return Limits(calls / seconds, calls / used if used else None, added * 1000)


def _calls_of_all(port: int) -> int:
    counts: list[int] = []
    clients = [
        threading.Thread(target=lambda: counts.append(len(_latencies(port))))
        for _ in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return sum(counts)


def _latencies(port: int) -> list[float]:
    """Seconds of each call of one client that asks again and again."""
    connection = http.client.HTTPConnection(ports.HOST, port, timeout=10)
    taken: list[float] = []
    end = time.monotonic() + SECONDS
    while (started := time.monotonic()) < end:
        connection.request("POST", "/", b"{}", HEADERS)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        taken.append(time.monotonic() - started)
    connection.close()
    return taken
