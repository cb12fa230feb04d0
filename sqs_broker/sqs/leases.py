"""The one table of deliveries in flight, keyed by delivery tag, and the window they fit in.

Keyed by tag and never by message id: one worker can hold two deliveries of one message.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from time import monotonic

from sqs_broker.limits import BATCH
from sqs_broker.rules.forecast import Forecast, Job
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.rules.policy import LONGEST_WAIT

#: Messages held beyond what the pool runs, at the most: one batch to work on while the next is on
#: its way. Fewer if the pool would not start them within a second (rules/forecast.py).
AHEAD = 2 * BATCH

#: Seconds: where messages are short, so much work is held ahead as was done in the last of these
#: spans, since a receive takes as long as several of them. Long tasks never widen the window.
SPAN = 0.1

#: Messages held ahead at the most, however short they are.
MOST_AHEAD = 10 * BATCH

#: The part of what is held ahead that is worth a receive: the pool works on the rest meanwhile.
WORTH = 0.75

#: Finished deliveries that may wait for their report to SQS before less is received.
MOST_UNREPORTED = 4 * BATCH


class Pace:
    """How many deliveries ended in the last whole span. Used under the lock of its owner."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._span = 0
        self._ends = 0
        self._before = 0

    def count(self) -> None:
        """One more ended, now."""
        self._turn()
        self._ends += 1

    def __call__(self) -> int:
        """Deliveries that ended in the last whole span."""
        self._turn()
        return self._before

    def _turn(self) -> None:
        span = int(self._clock() / SPAN)
        if span != self._span:
            self._before = self._ends if span == self._span + 1 else 0
            self._span, self._ends = span, 0


class Leases:
    """Deliveries in flight. Thread-safe.

    A receiver reserves slots before it asks SQS, so that no more messages come than there is room
    for, and waits here, not in a sleep, for a settlement to make room.
    """

    def __init__(
        self,
        visibility_timeout: int,
        longest_wait: float = LONGEST_WAIT,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.visibility_timeout = visibility_timeout
        self._longest_wait = longest_wait
        self._changed = threading.Condition()
        self._held: dict[str, Lease] = {}
        self._reserved = 0
        #: Receives that have reserved slots.
        self._polls = 0
        #: Threads that wait for room.
        self._asking = 0
        self._concurrency = 0
        self._queues = 1
        #: Why nothing is received. Each reason ends by itself and undoes no other.
        self._pauses: set[str] = set()
        self._unreported = 0
        self._clock = clock
        self._pace = Pace(clock)
        self._forecast = Forecast(clock)
        #: Called when nothing is in flight, and no receive is open. It may be called at any time,
        #: from any thread, under the lock of this table.
        self.on_empty: Callable[[], None] = lambda: None

    # The window

    def resize(self, concurrency: int) -> None:
        """Set how many tasks the pool runs at a time. The window is that and what the pool is
        likely to start within a second: two batches at the most, or more of short messages."""
        with self._changed:
            self._concurrency = concurrency
            self._changed.notify_all()

    def share_among(self, queues: int) -> None:
        """Set how many queues share the window, so that a busy one leaves room for others."""
        with self._changed:
            self._queues = max(queues, 1)
            self._changed.notify_all()

    def pause(self, reason: str) -> bool:
        """Let no receiver ask, for this reason; whether that is new. A call that is under way may
        still bring messages."""
        with self._changed:
            is_new = reason not in self._pauses
            self._pauses.add(reason)
            return is_new

    def resume(self, reason: str) -> bool:
        """End the pause for this reason; whether there was one."""
        with self._changed:
            was_paused = reason in self._pauses
            self._pauses.discard(reason)
            self._changed.notify_all()
            return was_paused

    @property
    def pauses(self) -> frozenset[str]:
        """Why nothing is received now."""
        with self._changed:
            return frozenset(self._pauses)

    def reserve(self, stopping: threading.Event, timeout: float | None = None) -> int:
        """Wait until a receive is worth its call, and reserve 1 to 10 slots for it.

        Worth it: a full batch fits (a queue's share of the window, where several share it; fewer
        where less is held ahead), or the pool would idle. Returns 0 once `stopping` is set and
        `wake` was called, or where `timeout` seconds passed first.
        """
        with self._changed:
            self._asking += 1
            worth_it = self._changed.wait_for(
                lambda: stopping.is_set() or self._is_worth_a_receive(), timeout
            )
            self._asking -= 1
            slots = self._reserve() if worth_it and not stopping.is_set() else 0
            # One receiver is woken at a time; where there is room for another, or this one stops,
            # it is the next one's turn.
            self._wake_if_worth_it()
            return slots

    def is_worth_a_receive(self) -> bool:
        """Whether a receiver has reason to ask now."""
        with self._changed:
            return self._is_worth_a_receive()

    def try_reserve(self) -> int:
        """Reserve slots where a receive is worth its call now; else 0."""
        with self._changed:
            return self._reserve()

    def wake(self) -> None:
        """Let whoever waits in `reserve` look again."""
        with self._changed:
            self._changed.notify_all()

    def fill(
        self, slots: int, deliveries: Iterable[Delivery], until: Mapping[str, float] | None = None
    ) -> None:
        """Give `slots` reserved ones back and hold the deliveries that came.

        `until` has the end of each lease, by its tag; without it they count from the receive call.
        """
        with self._changed:
            self._reserved -= slots
            self._polls -= slots > 0
            for delivery in deliveries:
                expires_at = delivery.asked_at + self.visibility_timeout
                if until is not None:
                    expires_at = until[delivery.tag]
                self._held[delivery.tag] = Lease(delivery, expires_at, self._longest_wait)
            self._wake_if_worth_it()
            self._tell_if_empty()

    # The table

    def take(self, tag: str) -> Lease | None:
        """End a delivery and free its slot; None where it ended before."""
        with self._changed:
            if (lease := self._pop(tag)) is not None:
                self._pace.count()
            self._wake_if_worth_it()
            self._tell_if_empty()
            return lease

    def keep_back(self, tag: str) -> Lease | None:
        """End a delivery whose task can still be kept from starting; None where it cannot."""
        with self._changed:
            lease = self._held.get(tag)
            if lease is None or not lease.can_be_kept_back:
                return None
            self._pop(tag)
            self._wake_if_worth_it()
            self._tell_if_empty()
            return lease

    def take_unstarted(self, tag: str) -> Lease | None:
        """End a delivery whose task does not run yet; None where it does, or has ended before."""
        with self._changed:
            lease = self._held.get(tag)
            return None if lease is None or lease.is_running else self.take(tag)

    def take_waiting(self) -> list[Lease]:
        """End every delivery whose task can still be kept from starting."""
        with self._changed:
            waiting = [lease for lease in self._held.values() if lease.can_be_kept_back]
            for lease in waiting:
                self._pop(lease.delivery.tag)
            self._wake_if_worth_it()
            self._tell_if_empty()
            return waiting

    def take_all(self) -> list[Lease]:
        """End every delivery."""
        with self._changed:
            held = list(self._held.values())
            for lease in held:
                self._pop(lease.delivery.tag)
            self._tell_if_empty()
            return held

    def promise(self, tag: str) -> bool:
        """A task goes to a process, which starts it; False where its delivery has ended before."""
        with self._changed:
            if lease := self._held.get(tag):
                lease.is_promised = True
            return lease is not None

    def started(self, tag: str, time_limit: float | None, job: Job | None = None) -> Lease | None:
        """The task of a delivery runs now, for `time_limit` seconds at the most; None where the
        delivery has ended before. Without a job it runs alone."""
        with self._changed:
            if lease := self._held.get(tag):
                if lease.job is None:
                    lease.job = job or Job(tag)
                    self._forecast.started(lease.job)
                lease.started(time_limit, self._clock())
                if lease.job.takes > 1:
                    # Messages that share a job leave room: they wait no more, for one process.
                    self._wake_if_worth_it()
            return lease

    def extended(self, tag: str, until: float) -> None:
        """SQS extended a lease, as counted from when the call was sent, in monotonic seconds."""
        with self._changed:
            if lease := self._held.get(tag):
                lease.expires_at = until

    def get(self, tag: str) -> Lease | None:
        """The lease of a delivery in flight."""
        return self._held.get(tag)

    def holds(self, tag: str) -> bool:
        """Whether a delivery is in flight, with its lease."""
        return tag in self._held

    def count_unreported(self, change: int) -> None:
        """Adjust the number of finished deliveries that are not yet reported to SQS. Receiving
        slows down while it is high, so that all can be reported within their leases."""
        with self._changed:
            self._unreported += change
            if change < 0:
                self._wake_if_worth_it()

    def all(self) -> list[Lease]:
        """Every lease in flight."""
        with self._changed:
            return list(self._held.values())

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in flight, and no receive is open that could bring something."""
        return not (self._held or self._reserved)

    @property
    def unreported(self) -> int:
        """Finished deliveries that are not yet reported to SQS."""
        return self._unreported

    def __len__(self) -> int:
        return len(self._held)

    def _pop(self, tag: str) -> Lease | None:
        lease = self._held.pop(tag, None)
        if lease is not None and lease.job is not None:
            self._forecast.ended(lease.job)
        return lease

    @property
    def _window(self) -> int:
        # One slot for each queue at the least: their receivers mostly wait in a long poll.
        return self._concurrency + max(AHEAD, self._queues, min(self._pace(), MOST_AHEAD))

    @property
    def _ahead(self) -> int:
        """Messages to hold for processes that are not free yet."""
        most = max(AHEAD, min(self._pace(), MOST_AHEAD))
        if not self._concurrency:
            return most  # Nobody says that anything starts.
        soon = self._forecast.soon(self._concurrency)
        # What never ran for a known time counts as long, but for what ended all the same.
        return min(self._pace() if soon is None else soon, most)

    def _is_worth_a_receive(self) -> bool:
        return self._slots() > 0

    def _slots(self) -> int:
        """Slots to reserve for a receive that is made now; 0 where it is not worth its call."""
        room = self._room()
        if self._pauses or room <= 0:
            return 0
        ahead = self._ahead
        share = self._share(ahead)
        if self._concurrency:
            # A poll that was open before less was held ahead counts as one of now.
            reserved = min(self._reserved, self._polls * share)
            room = min(room, self._wanted(ahead) - reserved)
        # What the long polls of other queues have reserved may never come, so a pool that has less
        # than it could run does not wait for a full batch.
        would_idle = len(self._held) < self._concurrency
        is_worth_it = would_idle or room >= min(share, math.ceil(ahead * WORTH))
        return max(min(share, room), 0) if is_worth_it else 0

    def _room(self) -> int:
        unreported = max(self._unreported - MOST_UNREPORTED, 0)
        return self._window - len(self._held) - self._reserved - unreported

    def _share(self, ahead: int) -> int:
        """Slots for one receive: what others have reserved may not keep the pool from its work."""
        others = self._queues - 1
        return max(1, min(BATCH, ahead // others)) if others else BATCH

    def _wanted(self, ahead: int) -> int:
        """Messages that the pool is likely to start soon, beyond those that wait for it."""
        waiting = len(self._held) - self._forecast.running
        wanted = self._forecast.at_once(self._concurrency) + ahead - waiting
        # One slot more for each other queue: its poll may bring nothing.
        return wanted + self._queues - 1 if wanted > 0 else 0

    def _wake_if_worth_it(self) -> None:
        # Not at each message, and one of them: who is woken for nothing takes time from the loop.
        if self._asking and self._is_worth_a_receive():
            self._changed.notify()

    def _tell_if_empty(self) -> None:
        if self.is_empty:
            self.on_empty()

    def _reserve(self) -> int:
        slots = self._slots()
        self._reserved += slots
        self._polls += slots > 0
        return slots
