"""One worker on one full queue: what it does in a window of time."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from bench import backlog, cpu, traffic
from bench.candidates import Candidate, Place
from bench.errors import BenchError
from bench.traffic import ROOT, Progress, Traffic
from devstack import sqs
from devstack.mongo import MongoServer
from devstack.process import Process
from devstack.waiting import wait_until

DATABASE = "bench"
#: Seconds from a worker's start to its first deleted message.
FIRST_SECONDS = 60
#: Seconds after it that are not counted: connections are made, processes warm up.
WARM_UP = 0.7
#: Seconds between two looks.
LOOK = 0.1
#: The window ends early where less than this share of the backlog is left: an end is not a rate.
LEFT_OVER = 0.05


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    candidate: Candidate
    task: str
    delay_ms: float


@dataclass(frozen=True)
class Effort:
    """How long and how much."""

    backlog: int
    """Messages."""
    window: float
    """Seconds."""


@dataclass(frozen=True)
class Measured:
    """What happened in the window."""

    seconds: float
    deleted: int
    calls: dict[str, int]
    """By API action."""
    worker_cpu: float | None
    """CPU seconds of the worker and its pool."""
    proxy_cpu: float | None
    server_cpu: float | None

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.deleted / self.seconds

    def calls_a_message(self, word: str = "") -> float:
        """Calls whose action starts so, for each deleted message."""
        calls = sum(n for action, n in self.calls.items() if action.startswith(word))
        return calls / self.deleted if self.deleted else float("nan")


def measure(cell: Cell, effort: Effort, mongo: MongoServer, logs: Path) -> Measured:
    """Start everything but MongoDB anew, measure, stop it.

    Raises BenchError where the worker does not work, or deletes what it did not store.
    """
    users = MongoClient[dict[str, Any]](mongo.uri(DATABASE))
    try:
        users.drop_database(DATABASE)
        with sqs.running(log=logs / "sqs.log") as server:
            queues = backlog.fill(server, cell.task, effort.backlog)
            delay = cell.delay_ms / 1000
            with traffic.running(server.port, delay, logs / "proxy.log") as proxy:
                place = Place(proxy.endpoint_url, queues, mongo.uri(DATABASE))
                with _worker(cell.candidate, place, logs) as worker:
                    measured = _watched(worker, proxy, server.process, effort)
                    deleted = proxy.progress().deleted
        if cell.task == "upsert" and users[DATABASE]["bench"].count_documents({}) < deleted:
            raise BenchError(f"{cell.candidate.name} deleted messages that it had not stored")
        return measured
    finally:
        users.close()


@contextmanager
def _worker(candidate: Candidate, place: Place, logs: Path) -> Iterator[Process]:
    # Nothing of this user's own: a WORKER_CONCURRENCY would be no default.
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-m", "celery", "-A", candidate.app, "worker"]
    with Process(
        f"the worker of {candidate.name}",
        [*command, *candidate.arguments],
        log=logs / "worker.log",
        # It would wait for its long poll, and nobody needs what it holds.
        grace=0.2,
        environment=inherited | candidate.environment(place) | {"PYTHONPATH": str(ROOT)},
        # Away from a `.env`.
        directory=logs,
    ) as worker:
        yield worker


def _watched(worker: Process, proxy: Traffic, server: Process, effort: Effort) -> Measured:
    processes = (worker, proxy.process, server)
    time.sleep(max(_first_delete(worker, proxy) + WARM_UP - time.monotonic(), 0))
    start, used = time.monotonic(), [cpu.seconds_below(p.guard_pid) for p in processes]
    enough = effort.backlog * (1 - LEFT_OVER)
    while time.monotonic() < start + effort.window and proxy.progress().deleted < enough:
        worker.check()
        time.sleep(min(LOOK, max(start + effort.window - time.monotonic(), 0)))
    end, used_then = time.monotonic(), [cpu.seconds_below(p.guard_pid) for p in processes]

    within = [call for call in proxy.calls() if start <= call[0] < end]
    deleted = sum(messages for _, action, messages in within if action.startswith("Delete"))
    if not deleted:
        raise BenchError(f"nothing was deleted in the window (log: {worker.log})")
    worker_cpu, proxy_cpu, server_cpu = (
        None if before is None or after is None else after - before
        for before, after in zip(used, used_then, strict=True)
    )
    calls = dict(Counter(action for _, action, _ in within))
    return Measured(end - start, deleted, calls, worker_cpu, proxy_cpu, server_cpu)


def _first_delete(worker: Process, proxy: Traffic) -> float:
    def first() -> Progress | None:
        worker.check()
        progress = proxy.progress()
        return progress if progress.first_delete else None

    try:
        progress = wait_until(first, FIRST_SECONDS, "a first deleted message")
    except TimeoutError as exc:
        raise BenchError(f"{exc} (log: {worker.log}): {worker.last_words()}") from None
    assert progress is not None
    assert progress.first_delete is not None
    return progress.first_delete
