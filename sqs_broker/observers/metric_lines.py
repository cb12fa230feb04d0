"""Writes what a worker does as metric lines, which CloudWatch reads from the log of a container."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from time import time

from sqs_broker.machine import threads
from sqs_broker.observers.metrics import Metrics
from sqs_broker.observers.observer import Observer
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import Happened, Outcome
from sqs_broker.rules.pause import is_paused


class MetricLines(Observer):
    """Writes one line for each queue and period in which something happened. Thread-safe.

    Its thread starts with the first message, and ends with the first period without any.
    """

    def __init__(
        self,
        period: float,
        queues: Iterable[str] = (),
        away: Collection[str] = (),
        *,
        write: Callable[[str], object] | None = None,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        """`period`: seconds. `queues`: of these the calls to SQS are counted. They have a line
        while receiving is paused for one of the reasons `away`, with `ServiceAway`; and each of
        them while it is paused itself, with `Paused`. `write`: writes a line; by default to
        stdout."""
        self._period = period
        self._queues = tuple(queues)
        self._reasons = frozenset(away)
        self._write = write or _to_stdout
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._metrics: dict[str, Metrics] = {}
        self._calls: Counter[str] = Counter()
        """The calls to SQS since the last line of each queue."""
        self._is_away = False
        self._paused: tuple[str, ...] = ()
        self._is_running = False
        self._stopping = threading.Event()

    def received(self, message: Facts) -> None:
        """Note the age of a message."""
        with self._lock:
            self._of(message.delivery.queue).received(message, self._wall_clock())
        self._begin()

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        """Count an outcome."""
        with self._lock:
            self._of(message.delivery.queue).ended(message, happened, outcome, self._wall_clock())
        self._begin()

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        """Count an outcome that SQS did not accept."""
        if error is not None:
            with self._lock:
                self._of(message.delivery.queue).count("SettleFailures")
            self._begin()

    def lost(self, message: Facts, why: str) -> None:
        """Count a lease that was lost."""
        with self._lock:
            self._of(message.delivery.queue).count("LostLeases")
        self._begin()

    def called(self, action: str, queue: str, seconds: float, error: str | None) -> None:
        """Count a call for the next line. It is no reason for a line, because an idle worker makes
        calls too."""
        if queue in self._queues:
            with self._lock:
                self._calls[queue] += 1

    def paused(self, reasons: frozenset[str]) -> None:
        """Note whether a service is away, and which queues are paused."""
        with self._lock:
            self._is_away = bool(reasons & self._reasons)
            self._paused = tuple(queue for queue in self._queues if is_paused(queue, reasons))
            self._note_pauses()
        if self._is_away or self._paused:
            self._begin()

    def flush(self) -> None:
        """Write what there is, and end the thread. For the end of the process."""
        self._stopping.set()
        self._write_lines()

    def _of(self, queue: str) -> Metrics:
        return self._metrics.setdefault(queue, Metrics(queue))

    def _note_pauses(self) -> None:
        away = self._queues if self._is_away else ()
        for name, queues in (("ServiceAway", away), ("Paused", self._paused)):
            for queue in queues:
                if not self._of(queue).has(name):
                    self._of(queue).count(name)

    def _begin(self) -> None:
        with self._lock:
            if self._is_running or self._stopping.is_set():
                return
            self._is_running = True
        # Without resources for a thread, the next message tries again.
        if threads.start(self._run, "metric-lines") is None:
            self._is_running = False

    def _run(self) -> None:
        while not self._stopping.wait(self._period):
            self._write_lines()
            with self._lock:
                self._note_pauses()
                if not self._metrics:
                    self._is_running = False
                    return

    def _write_lines(self) -> None:
        with self._lock:
            metrics, self._metrics = self._metrics, {}
            for queue, each in metrics.items():
                each.count("Calls", self._calls.pop(queue, 0))
        # Outside the lock: stdout may be slow, and messages wait for the lock.
        for each in metrics.values():
            self._write(each.line(self._wall_clock()))


def _to_stdout(line: str) -> None:
    # Not sys.stdout, of which Celery makes lines of the log.
    with suppress(OSError, ValueError):
        if sys.__stdout__ is not None:
            sys.__stdout__.write(line + "\n")
            sys.__stdout__.flush()
