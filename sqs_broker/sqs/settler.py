"""Tells SQS the outcome of each delivery: deletes and visibility changes, ten a call, on a thread
of its own, so that neither the event loop nor a task ever waits for SQS.

A slot is freed when its outcome is handed over here; what SQS then refuses is tried again for as
long as the lease lasts, and then given up. SQS delivers such a message again.
"""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic

from sqs_broker.limits import BATCH
from sqs_broker.machine import threads
from sqs_broker.options import Options
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import Lease
from sqs_broker.rules.outcomes import Outcome
from sqs_broker.sqs.copies import Copies
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import Errors, SqsError
from sqs_broker.sqs.settlement import Reporter, Settlement

logger = logging.getLogger(__name__)

#: Seconds a settlement waits for others to share its call.
LINGER = 0.02

#: The same while a call for others is under way.
LONGEST_LINGER = 0.1

#: Calls at a time: one alone would bound the worker at ten messages a round trip.
THREADS = 3

#: Seconds after which a thread is tried again that this machine had no room for.
GROW_PAUSE = 5.0

#: Seconds between two tries of what failed; the lease bounds how many there are.
RETRY_PAUSE = 1.0


@dataclass(frozen=True)
class Settled:
    """A settlement that is over: SQS has it, or will never have it, for the reason `error`."""

    settlement: Settlement
    error: SqsError | None


class Settler:
    """The threads and their queue of work. `settle` may be called from any other thread.

    `on_settled` is called on these threads, with the settlements that each batch has ended.
    """

    def __init__(
        self,
        options: Options,
        driver: Driver,
        on_settled: Callable[[Sequence[Settled]], None] = lambda _: None,
        *,
        clock: Callable[[], float] = monotonic,
        retry_pause: float | None = None,
        linger: float = LINGER,
        longest_linger: float = LONGEST_LINGER,
        grow_pause: float = GROW_PAUSE,
    ) -> None:
        self._clock = clock
        self._retry_pause = RETRY_PAUSE if retry_pause is None else retry_pause
        self._linger = linger
        self._longest_linger = longest_linger
        self._grow_pause = grow_pause
        self._reporter = Reporter(options, driver, clock)
        self._lock = threading.Lock()
        #: There is more to tell, or it is time to stop.
        self._changed = threading.Condition(self._lock)
        #: There is less to tell: for whoever waits in `flush`.
        self._less = threading.Condition(self._lock)
        #: One thread at a time waits for a batch: to wake the others for it as well would take time
        #: from the event loop.
        self._gathering = threading.Lock()
        self._waiting: deque[Settlement] = deque()
        self._waiting_since = 0.0
        self._again: list[Settlement] = []
        self._on_settled = on_settled
        self._at_work = 0
        self._stopping = False
        # Held, not inherited: Thread has private names of its own, `_delete` among them.
        self._threads: list[threading.Thread] = []
        self._grows_at = math.inf

    @property
    def copies(self) -> Copies:
        """The copies that were sent."""
        return self._reporter.copies

    def start(self) -> None:
        """Start the threads. One is enough to go on with; raises NoThread where there is none."""
        self._threads = [threads.insist(self._run, "sqs-settler-0")]
        self._grow()

    def settle(self, lease: Lease, message: Facts, outcome: Outcome) -> None:
        """Report an outcome soon, and try again for as long as the lease lasts. Returns at once;
        never raises."""
        settlement = Settlement(message, outcome, lease.expires_at)
        with self._changed:
            self._waiting.append(settlement)
            if len(self._waiting) == 1:
                self._waiting_since = self._clock()
            # The first starts the linger of a batch and the tenth ends it; those between say
            # nothing new.
            if len(self._waiting) == 1 or len(self._waiting) % BATCH == 0:
                self._changed.notify()

    def tell_next(self) -> bool:
        """Tell the next ten that are due, on this thread, without waiting for others; False where
        nothing is."""
        with self._changed:
            self._requeue()
            batch = self._take_batch() if self._waiting else []
        if batch:
            self._work(batch)
        return bool(batch)

    def flush(self, timeout: float) -> bool:
        """Wait until nothing is left to tell; False where `timeout` seconds were not enough."""
        with self._less:
            return self._less.wait_for(
                lambda: not (self._waiting or self._again or self._at_work), timeout
            )

    def stop(self, timeout: float) -> None:
        """Tell what is left, then end the thread; give up after `timeout` seconds."""
        alive = any(thread.is_alive() for thread in self._threads)
        flushed = not alive or self.flush(timeout)
        if not flushed:
            logger.warning(
                "Stopped before SQS was told every outcome; it delivers those messages again.",
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
        """Start the threads that are still missing; what there is no room for is tried again."""
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
            for settlement, error in zip(batch, self._tell(batch), strict=True):
                if error is None or self._is_final(settlement, error):
                    settled.append(Settled(settlement, error))
                else:
                    self._try_again(settlement)
        finally:
            self._on_settled(settled)
            with self._less:
                self._at_work -= 1
                self._less.notify_all()

    def _tell(self, batch: Sequence[Settlement]) -> Errors:
        try:
            return self._reporter.tell(batch)
        except Exception as exc:
            # Broad on purpose: without this thread no message would ever be settled again.
            logger.exception(
                "Reporting outcomes to SQS failed; trying again.", extra={"event": "settle.broken"}
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
        """Seconds the waiting settlements may still wait for others."""
        if self._is_batch_ready():
            return 0.0
        # While a call is under way there is time to fill the next one.
        linger = self._longest_linger if self._at_work else self._linger
        return linger - (self._clock() - self._waiting_since)

    def _take_batch(self) -> list[Settlement]:
        self._at_work += 1
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        self._waiting_since = self._clock()
        return batch

    def _is_batch_ready(self) -> bool:
        return len(self._waiting) >= BATCH or self._stopping

    def _requeue(self) -> None:
        now = self._clock()
        due = [settlement for settlement in self._again if settlement.not_before <= now]
        self._again = [settlement for settlement in self._again if settlement.not_before > now]
        if due and not self._waiting:
            self._waiting_since = now
        self._waiting.extend(due)

    def _is_final(self, settlement: Settlement, error: SqsError) -> bool:
        """Whether no second try can report it."""
        return error.is_final or self._clock() + self._retry_pause >= settlement.expires_at

    def _try_again(self, settlement: Settlement) -> None:
        again = replace(settlement, not_before=self._clock() + self._retry_pause)
        with self._changed:
            self._again.append(again)
            self._changed.notify()
