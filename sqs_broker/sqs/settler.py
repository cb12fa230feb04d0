"""Reports the outcome of each delivery to SQS: deletes and visibility changes, ten per call. The
settler has its own threads, so neither the event loop nor a task ever waits for SQS.

A slot is free as soon as `settle_all` has the outcome. If a report fails, it is tried again until
the lease ends. After that, SQS delivers the message again.
"""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import NamedTuple

from sqs_broker.limits import BATCH
from sqs_broker.machine import threads
from sqs_broker.machine.textless import textless
from sqs_broker.options import Options
from sqs_broker.rules.attempts import AttemptStore
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import Lease
from sqs_broker.rules.outcomes import Outcome
from sqs_broker.sqs.copies import Copies
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import Errors, SqsError
from sqs_broker.sqs.in_flight import InFlight
from sqs_broker.sqs.settlement import VISIBLE, Reporter, Settlement

logger = logging.getLogger(__name__)

#: Seconds that a settlement waits for others that can share its call: with a hundred messages a
#: second or more, each call reports ten. A worker that is killed meanwhile has not reported these
#: few; SQS delivers them again.
LINGER = 0.1

#: Calls at a time. One alone would limit the worker to ten messages per round trip.
THREADS = 3

#: Seconds until the next try to start a thread, if this machine had no resources for it.
GROW_PAUSE = 5.0

#: Seconds between two tries of a report. The lease limits their number.
RETRY_PAUSE = 1.0


class Settled(NamedTuple):
    """A settlement that is over: it was reported, or it never will be, because of `error`."""

    settlement: Settlement
    error: SqsError | None


class Settler:
    """The threads and their queue of work. Any other thread may call `settle_all`.

    The threads call `on_settled` with the settlements that are over after each batch, and
    `before_report` with the tags of the deliveries that they are about to make visible.
    """

    def __init__(
        self,
        options: Options,
        driver: Driver,
        on_settled: Callable[[Sequence[Settled]], None] = lambda _: None,
        before_report: Callable[[Sequence[str]], None] = lambda _: None,
        *,
        attempts: AttemptStore | None = None,
        in_flight: InFlight | None = None,
        clock: Callable[[], float] = monotonic,
        retry_pause: float | None = None,
        linger: float = LINGER,
        grow_pause: float = GROW_PAUSE,
    ) -> None:
        self._clock = clock
        self._retry_pause = RETRY_PAUSE if retry_pause is None else retry_pause
        self._linger = linger
        self._grow_pause = grow_pause
        self._reporter = Reporter(options, driver, clock, attempts=attempts, in_flight=in_flight)
        self._lock = threading.Lock()
        #: Notified if there is more to report, or at a stop.
        self._changed = threading.Condition(self._lock)
        #: Notified if there is less to report: `flush` waits for it.
        self._less = threading.Condition(self._lock)
        #: Only one thread at a time waits for a batch, because waking the others too would take CPU
        #: from the event loop.
        self._gathering = threading.Lock()
        self._waiting: deque[Settlement] = deque()
        self._waiting_since = 0.0
        self._again: list[Settlement] = []
        self._on_settled = on_settled
        self._before_report = before_report
        self._at_work = 0
        self._flushes = 0
        self._stopping = False
        # No subclass of Thread, because Thread has its own private names, such as `_delete`.
        self._threads: list[threading.Thread] = []
        self._grows_at = math.inf

    @property
    def copies(self) -> Copies:
        """The copies that were sent."""
        return self._reporter.copies

    def start(self) -> None:
        """Start the threads. One is enough. Raises NoThread if none can start."""
        self._threads = [threads.insist(self._run, "sqs-settler-0")]
        self._grow()

    def settle_all(self, ended: Iterable[tuple[Lease, Facts, Outcome]]) -> None:
        """Report outcomes soon, and try again until the leases end. Returns at once; never
        raises."""
        settlements = [
            Settlement(message, outcome, lease.expires_at) for lease, message, outcome in ended
        ]
        with self._changed:
            before = len(self._waiting)
            self._waiting.extend(settlements)
            if not before:
                self._waiting_since = self._clock()
            # The first settlement starts the wait for a batch, and each tenth ends one. The others
            # change nothing.
            if settlements and not before:
                self._changed.notify()
            if len(self._waiting) // BATCH > before // BATCH:
                self._changed.notify(len(self._waiting) // BATCH - before // BATCH)

    def report_next(self) -> bool:
        """Report the next ten that are due, on this thread, without waiting for others. False if
        nothing is due."""
        with self._changed:
            self._requeue()
            batch = self._take_batch() if self._waiting else []
        if batch:
            self._work(batch)
        return bool(batch)

    def flush(self, timeout: float) -> bool:
        """Wait until nothing is left to report; False if `timeout` seconds are not enough.
        Meanwhile no settlement waits for others."""
        with self._less:
            self._flushes += 1
            self._changed.notify_all()
            try:
                return self._less.wait_for(
                    lambda: not (self._waiting or self._again or self._at_work), timeout
                )
            finally:
                self._flushes -= 1

    def stop(self, timeout: float) -> None:
        """Report what is left, then end the threads. Each step takes at most `timeout` seconds."""
        alive = any(thread.is_alive() for thread in self._threads)
        flushed = not alive or self.flush(timeout)
        if not flushed:
            logger.warning(
                "Stopped before every outcome was reported; SQS delivers those messages again.",
                extra={"event": "settle.unfinished", "count": len(self._waiting)},
            )
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)

    def _run(self) -> None:
        while batch := self._next_batch():
            self._work(batch)
            if len(self._threads) < THREADS and self._grows_at <= self._clock():
                self._grow()

    def _grow(self) -> None:
        """Start the missing threads. If this machine has no resources for one, try again later."""
        with self._lock:
            self._grows_at = self._clock() + self._grow_pause
            while len(self._threads) < THREADS and not self._stopping:
                thread = threads.start(self._run, f"sqs-settler-{len(self._threads)}")
                if thread is None:
                    return
                self._threads.append(thread)

    def _work(self, batch: Sequence[Settlement]) -> None:
        settled: list[Settled] = []
        try:
            for settlement, error in zip(batch, self._report(batch), strict=True):
                if error is None or self._is_final(settlement, error):
                    settled.append(Settled(settlement, error))
                else:
                    self._try_again(settlement)
        finally:
            self._on_settled(settled)
            with self._less:
                self._at_work -= 1
                self._less.notify_all()

    def _report(self, batch: Sequence[Settlement]) -> Errors:
        try:
            self._before_report(
                [s.message.delivery.tag for s in batch if isinstance(s.outcome, VISIBLE)]
            )
            return self._reporter.tell(batch)
        except Exception as exc:
            # Broad on purpose: if this thread ended, no message would be settled any more.
            logger.error(
                "Could not report outcomes to SQS; trying again.",
                exc_info=textless(exc),
                extra={"event": "settle.broken"},
            )
            return [SqsError.of(exc)] * len(batch)

    def _next_batch(self) -> list[Settlement]:
        with self._gathering, self._changed:
            while not self._stopping:
                self._requeue()
                if not self._waiting:
                    self._changed.wait(self._retry_pause if self._again else None)
                elif (left := self._linger_left()) > 0:
                    self._changed.wait_for(self._is_batch_ready, left)
                else:
                    return self._take_batch()
        return []

    def _linger_left(self) -> float:
        """Seconds that the settlements may still wait for others."""
        if self._is_batch_ready():
            return 0.0
        return self._linger - (self._clock() - self._waiting_since)

    def _take_batch(self) -> list[Settlement]:
        self._at_work += 1
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        self._waiting_since = self._clock()
        return batch

    def _is_batch_ready(self) -> bool:
        return len(self._waiting) >= BATCH or self._stopping or self._flushes > 0

    def _requeue(self) -> None:
        if not self._again:
            return
        now = self._clock()
        due = [settlement for settlement in self._again if settlement.not_before <= now]
        self._again = [settlement for settlement in self._again if settlement.not_before > now]
        if due and not self._waiting:
            self._waiting_since = now
        self._waiting.extend(due)

    def _is_final(self, settlement: Settlement, error: SqsError) -> bool:
        """Whether a second try cannot succeed."""
        return error.is_final or self._clock() + self._retry_pause >= settlement.expires_at

    def _try_again(self, settlement: Settlement) -> None:
        message, outcome, expires_at, _ = settlement
        not_before = self._clock() + self._retry_pause
        with self._changed:
            self._again.append(Settlement(message, outcome, expires_at, not_before))
            self._changed.notify()
