"""Extends the leases of all deliveries in flight, also of messages that wait for a process.

It runs on its own thread in the main process, so a blocked event loop or a busy pool loses no
lease. Each lease has a bound (sqs_broker/rules/lease.py). Without it, a hung task, a pool that
cannot enforce time limits, or a stuck worker could hold a message for 12 hours. Before its bound, a
message that only waits is released, and a run that hangs is ended as a failed attempt. If the lease
ran out instead, a delivery would be wasted, and after the last delivery SQS would dead-letter the
message without a reason.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from time import monotonic

from sqs_broker.machine import threads
from sqs_broker.machine.textless import textless
from sqs_broker.options import Options
from sqs_broker.rules.lease import HUNG_MARGIN, LIMIT_MARGIN, Lease
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.extension import OVER, REFUSED, extend
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import tens

logger = logging.getLogger(__name__)

#: A lease is extended when this part of its time has passed.
BEATS_PER_LEASE = 3


class Heartbeat:
    """The thread. It calls `on_lost` once for each lost lease, `on_waited` for the lease of a
    message that has reached its longest wait, and `on_beat` after each beat. At each beat it calls
    `on_hung` for the lease of a task that runs beyond its hard time limit."""

    def __init__(
        self,
        options: Options,
        driver: Driver,
        leases: Leases,
        on_lost: Callable[[Lease, str], None],
        on_beat: Callable[[], None],
        on_waited: Callable[[Lease], None] = lambda _: None,
        on_hung: Callable[[Lease], None] = lambda _: None,
        *,
        clock: Callable[[], float] = monotonic,
        beats_per_lease: float | None = None,
    ) -> None:
        self._options = options
        self._driver = driver
        self._leases = leases
        self._on_lost = on_lost
        self._on_beat = on_beat
        self._on_waited = on_waited
        self._on_hung = on_hung
        self._clock = clock
        self._extends = options.policy.heartbeat
        beats = beats_per_lease or BEATS_PER_LEASE
        self._interval = options.policy.visibility_timeout / beats
        # Half an interval, so that a lease that is a little too young at one beat is not too old at
        # the next.
        #: Seconds between two beats.
        self.pause = min(self._interval, options.policy.longest_wait / beats, HUNG_MARGIN) / 2
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Raises NoThread."""
        self._thread = threads.insist(self._run, "sqs-heartbeat")

    def stop(self, timeout: float) -> None:
        """End the thread. Wait at most `timeout` seconds for it."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.wait(self.pause):
            try:
                self.beat()
                self._on_beat()
            except Exception as exc:
                # Broad on purpose: if this thread ended, every long task would run twice.
                logger.error(
                    "Could not extend leases; trying again.",
                    exc_info=textless(exc),
                    extra={"event": "lease.broken"},
                )

    def beat(self) -> None:
        """Extend leases that are due, release messages that reach their longest wait, end runs that
        hang, and report leases that are lost."""
        now = self._clock()
        due: list[Lease] = []
        for lease in self._leases.all():
            if lease.expires_at <= now:
                self._on_lost(lease, OVER)
            elif lease.can_be_kept_back and lease.waits_until <= now + 2 * self.pause:
                # The next two beats may be too late.
                self._on_waited(lease)
            else:
                if self._hangs(lease, now):
                    self._on_hung(lease)
                if self._extends and self._is_due(lease, now):
                    due.append(lease)
        by_queue: dict[str, list[Lease]] = {}
        for lease in due:
            by_queue.setdefault(lease.delivery.queue, []).append(lease)
        for queue, leases in by_queue.items():
            asked = Queue(self._options.queue(queue).url, self._driver)
            for some in tens(leases):
                self._extend(asked, some)

    def _hangs(self, lease: Lease, now: float) -> bool:
        """Whether a run hangs; or has exceeded its hard time limit, and its lease ends too soon to
        wait for longer."""
        ends_soon = lease.expires_at <= now + 2 * self.pause
        return lease.overrun(now) >= (0 if ends_soon else LIMIT_MARGIN)

    def _is_due(self, lease: Lease, now: float) -> bool:
        age = now - (lease.expires_at - self._leases.visibility_timeout)
        reaches_further = seconds_for(lease, now, self._leases.visibility_timeout) + now
        return age >= self._interval / 2 and reaches_further > lease.expires_at

    def _extend(self, queue: Queue, leases: Sequence[Lease]) -> None:
        now, timeout = self._clock(), self._leases.visibility_timeout
        due = [lease for lease in leases if self._is_due(lease, now)]
        # A delivery may have ended while others were extended. To extend it now would hide its
        # message for a whole lease.
        with self._leases.extending(lease.delivery.tag for lease in due) as held:
            due = [lease for lease in due if lease.delivery.tag in held]
            if not due:
                return
            wanted = [(lease.delivery, seconds_for(lease, now, timeout)) for lease in due]
            extension = extend(queue, wanted, self._clock)
        for tag, until in extension.until.items():
            self._leases.extended(tag, until)
        for lease in due:
            if lease.delivery.tag in extension.lost:
                self._on_lost(lease, REFUSED)


def seconds_for(lease: Lease, now: float, visibility_timeout: int) -> int:
    """The seconds of an extension: the visibility timeout, or less if the lease's bound is nearer.
    The bound is within SQS's limit of 12 hours after the receive."""
    return max(0, min(visibility_timeout, int(lease.may_last_until - now)))
