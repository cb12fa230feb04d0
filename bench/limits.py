"""What the proxy can carry, and how long an upsert takes, measured before anything else.

The proxy must not be the bottleneck; the upsert is what each process of a worker waits for.
"""

import http.client
import threading
import time
from statistics import median

from bench import processes
from bench.database import Client
from bench.lab import Lab
from bench.results import Limits
from bench.sender import call
from devstack import ports

#: Seconds of each measurement.
SECONDS = 1.0
CLIENTS = 8
UPSERTS = 100


def measure(lab: Lab) -> Limits:
    """Ask for the list of queues, through the proxy and past it."""
    with lab.proxy(0) as proxy:
        direct = lab.server.sqs.port
        added = median(_latencies(proxy.port)) - median(_latencies(direct))
        before = processes.cpu_below(proxy.process.guard_pid)
        started = time.monotonic()
        calls = _calls_of_all(proxy.port)
        seconds = time.monotonic() - started
        after = processes.cpu_below(proxy.process.guard_pid)
    used = None if before is None or after is None else after - before
    return Limits(
        calls / seconds, calls / used if used else None, added * 1000, _upsert_ms(lab.mongo)
    )


def _upsert_ms(client: Client) -> float:
    """The median of many, one after the other."""
    users = client["bench-limits"]["users"]
    taken = []
    for number in range(UPSERTS):
        started = time.monotonic()
        users.update_one({"_id": number}, {"$setOnInsert": {"money": 0}}, upsert=True)
        taken.append(time.monotonic() - started)
    client.drop_database("bench-limits")
    return median(taken) * 1000


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
        call(connection, "ListQueues", {})
        taken.append(time.monotonic() - started)
    connection.close()
    return taken
