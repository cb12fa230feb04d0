"""The table of all deliveries in flight, and the window that limits their number.

Its key is the delivery tag, not the message id, because one worker can have two deliveries of one
message.
"""

import math
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

from sqs_broker.limits import BATCH
from sqs_broker.rules.forecast import Forecast, Job
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.rules.policy import LONGEST_WAIT

#: Most messages held ahead, that is in addition to those that the pool runs: one batch to work on
#: while the next one arrives. Fewer if the pool would not start them within a second
#: (rules/forecast.py).
AHEAD = 2 * BATCH

#: Seconds of a span. If tasks are short, as many messages are held ahead as ended in the last span,
#: because a receive takes as long as several spans. Long tasks never widen the window.
SPAN = 0.1

#: Most messages held ahead if tasks are short.
MOST_AHEAD = 10 * BATCH

#: The free part of the room for messages held ahead that makes a receive worth its call. Meanwhile
#: the pool works on the rest.
WORTH = 0.75

#: Longest wait for an extension, in seconds. It ends earlier, at the deadline of its call.
LONGEST_EXTENSION = 30

#: Finished deliveries that may wait for their report to SQS. If there are more, the worker receives
#: less.
MOST_UNREPORTED = 4 * BATCH


class Pace:
    """Counts the deliveries that ended in the last whole span. Its owner holds a lock around it."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._span = 0
        self._ends = 0
        self._before = 0

    def count(self, ends: int = 1) -> None:
        """Count deliveries that have ended now."""
        self._turn()
        self._ends += ends

    def __call__(self) -> int:
        """Return how many ended in the last whole span."""
        self._turn()
        return self._before

    def _turn(self) -> None:
        span = int(self._clock() / SPAN)
        if span != self._span:
            self._before = self._ends if span == self._span + 1 else 0
            self._span, self._ends = span, 0


class Leases:
    """Deliveries in flight. Thread-safe.

    A receiver reserves slots before it calls SQS, so it never receives more messages than there is
    room for. It waits here until there is room.
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
        #: Receive calls that have reserved slots.
        self._polls = 0
        #: Those of them that are for a busy queue, beside others, and their slots.
        self._busy_polls = 0
        self._busy_reserved = 0
        #: Threads that wait for room, for a busy queue (True) or another one.
        self._waiting_threads = {True: 0, False: 0}
        self._concurrency = 0
        #: Most messages held for each process, by how many it takes at one time; 0: no limit.
        self._multiplier = 0
        self._queues = 1
        #: Why nothing is received. Each reason begins and ends independently of the others.
        self._pauses: set[str] = set()
        self._unreported = 0
        #: Deliveries whose extension is on its way to SQS.
        self._extending: set[str] = set()
        self._clock = clock
        self._pace = Pace(clock)
        self._forecast = Forecast(clock)
        #: The jobs of ended deliveries whose tasks still run, by tag. Each of them takes a process.
        self._hung: dict[str, Job | None] = {}
        #: Called when nothing is in flight and no receive call is open: at any time, on any thread,
        #: and under the lock of this table.
        self.on_empty: Callable[[], None] = lambda: None

    # The window

    def resize(self, concurrency: int) -> None:
        """Set how many tasks the pool runs at a time. The window is this number, plus the messages
        that the pool will probably start within a second: at most two batches, or more if tasks are
        short."""
        with self._changed:
            self._concurrency = concurrency
            self._changed.notify_all()

    def limit(self, multiplier: int) -> None:
        """Set how many times as many messages as the pool runs at a time are held at most. One more
        may be held for each further queue. 0: only the forecast limits them."""
        with self._changed:
            self._multiplier = multiplier
            self._changed.notify_all()

    def share_among(self, queues: int) -> None:
        """Set how many queues share the window. A busy queue leaves room for the others."""
        with self._changed:
            self._queues = max(queues, 1)
            self._changed.notify_all()

    def pause(self, reason: str) -> bool:
        """Stop new receive calls, for this reason. Returns whether the reason is new. An open call
        may still return messages."""
        with self._changed:
            is_new = reason not in self._pauses
            self._pauses.add(reason)
            return is_new

    def resume(self, reason: str) -> bool:
        """End the pause for this reason. Returns whether there was one."""
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

    def reserve(
        self, stopping: threading.Event, timeout: float | None = None, *, is_busy: bool = False
    ) -> int:
        """Wait until a receive is worth its call, and reserve 1 to 10 slots for it.

        It is worth its call if there is room for a full batch, or if the pool would idle. If
        several queues share the window, room for a queue's share is enough. If fewer messages are
        held ahead, less room is enough. Returns 0 if `stopping` is set and `wake` was called, or
        after `timeout` seconds.

        `is_busy`: whether the queue has more messages than its share. It may then use the whole
        window, as if the others were empty. Each of the others can still receive one message.
        """
        slots = 0

        def is_over() -> bool:
            nonlocal slots
            # What is reserved is what was seen: looked up again, it may be 0 a moment later.
            slots = self._slots(is_busy)
            return slots > 0 or stopping.is_set()

        with self._changed:
            self._waiting_threads[is_busy] += 1
            self._changed.wait_for(is_over, timeout)
            self._waiting_threads[is_busy] -= 1
            slots = 0 if stopping.is_set() else self._reserve(slots, is_busy)
            # Only one receiver is woken at a time. So this one wakes the next one, if there is
            # still room or if this one stops.
            self._wake_if_worth_it()
            return slots

    def is_worth_a_receive(self) -> bool:
        """Whether a receive is worth its call now."""
        with self._changed:
            return self._is_worth_a_receive()

    def try_reserve(self, *, is_busy: bool = False) -> int:
        """Reserve slots if a receive is worth its call now; otherwise return 0."""
        with self._changed:
            return self._reserve(self._slots(is_busy), is_busy)

    @property
    def is_shared(self) -> bool:
        """Whether several queues share the window."""
        return self._queues > 1

    def wake(self) -> None:
        """Wake all threads that wait in `reserve`, so that they check their conditions."""
        with self._changed:
            self._changed.notify_all()

    def fill(
        self,
        slots: int,
        deliveries: Iterable[Delivery],
        until: Mapping[str, float] | None = None,
        *,
        is_busy: bool = False,
    ) -> None:
        """Return `slots` slots, reserved with `is_busy`, and add the deliveries that arrived.

        `until` has the end of each lease, by tag. Without it, leases count from the receive call.
        """
        with self._changed:
            self._reserved -= slots
            self._polls -= slots > 0
            if is_busy:
                self._busy_reserved -= slots
                self._busy_polls -= slots > 0
            for delivery in deliveries:
                expires_at = delivery.asked_at + self.visibility_timeout
                if until is not None:
                    expires_at = until[delivery.tag]
                self._held[delivery.tag] = Lease(delivery, expires_at, self._longest_wait)
            self._wake_if_worth_it()
            self._report_if_empty()

    # The table

    def take(self, tag: str) -> Lease | None:
        """End a delivery and free its slot; None if it has ended before."""
        return self.take_many([tag])[0]

    def take_many(self, tags: Iterable[str]) -> list[Lease | None]:
        """End the deliveries of a job at once: see `take`."""
        with self._changed:
            leases = []
            for tag in tags:
                self._hung.pop(tag, None)
                leases.append(self._pop(tag))
            self._pace.count(len(leases) - leases.count(None))
            self._wake_if_worth_it()
            self._report_if_empty()
            return leases

    def keep_back(self, tag: str) -> Lease | None:
        """End a delivery whose task can still be prevented from starting; None if it cannot."""
        with self._changed:
            lease = self._held.get(tag)
            if lease is None or not lease.can_be_kept_back:
                return None
            self._pop(tag)
            self._wake_if_worth_it()
            self._report_if_empty()
            return lease

    def claim_hung(self, tag: str) -> bool:
        """Whether this call is the first to find that the run of a delivery hangs. False if the run
        has ended."""
        with self._changed:
            lease = self._held.get(tag)
            is_first = lease is not None and lease.limit_at is not None
            if lease is not None:
                lease.limit_at = None
            return is_first

    def take_hung(self, tag: str) -> Lease | None:
        """End a delivery whose task still runs; None if it has ended before. Its process is taken
        until the run ends and `take` is called."""
        with self._changed:
            if (lease := self._pop(tag)) is not None:
                self._hung[tag] = lease.job
            self._report_if_empty()
            return lease

    def take_unstarted(self, tag: str) -> Lease | None:
        """End a delivery whose task does not run yet; None if it runs, or has ended before."""
        with self._changed:
            lease = self._held.get(tag)
            return None if lease is None or lease.is_running else self.take(tag)

    def take_waiting(self, queue: str | None = None) -> list[Lease]:
        """End every delivery whose task can still be prevented from starting; with a queue, only
        its deliveries."""
        with self._changed:
            waiting = [
                lease
                for lease in self._held.values()
                if lease.can_be_kept_back and queue in (None, lease.delivery.queue)
            ]
            for lease in waiting:
                self._pop(lease.delivery.tag)
            self._wake_if_worth_it()
            self._report_if_empty()
            return waiting

    def take_all(self) -> list[Lease]:
        """End every delivery."""
        with self._changed:
            held = list(self._held.values())
            for lease in held:
                self._pop(lease.delivery.tag)
            self._report_if_empty()
            return held

    def promise(self, tag: str) -> bool:
        """Note that a task goes to a process, which starts it. False if its delivery has ended."""
        return self.promise_many([tag])[0]

    def promise_many(self, tags: Iterable[str]) -> list[bool]:
        """Note that the tasks of a job go to a process: see `promise`."""
        with self._changed:
            leases = [self._held.get(tag) for tag in tags]
            for lease in leases:
                if lease is not None:
                    lease.is_promised = True
            return [lease is not None for lease in leases]

    def started(self, tag: str, time_limit: float | None, job: Job | None = None) -> Lease | None:
        """Note that the task of a delivery runs now, for at most `time_limit` seconds. None if the
        delivery has ended. Without a job, the task runs alone."""
        return self.started_many([tag], time_limit, job or Job(tag))[0]

    def started_many(
        self, tags: Iterable[str], time_limit: float | None, job: Job
    ) -> list[Lease | None]:
        """Note that a job runs now: see `started`."""
        with self._changed:
            now, leases = self._clock(), [self._held.get(tag) for tag in tags]
            for lease in leases:
                if lease is None:
                    continue
                if lease.job is None:
                    lease.job = job
                    self._forecast.started(lease.job)
                lease.started(time_limit, now)
            if job.takes > 1:
                # Messages that share a job use one process together, so there is more room.
                self._wake_if_worth_it()
            return leases

    @contextmanager
    def extending(self, tags: Iterable[str]) -> Iterator[Container[str]]:
        """Extend leases in this context: those of the given deliveries that are in flight.

        A delivery may end meanwhile. If its message becomes visible before the extension arrives at
        SQS, it is hidden for a whole lease. So its report waits: see `await_extensions`.
        """
        with self._changed:
            held = {tag for tag in tags if tag in self._held}
            self._extending |= held
        try:
            yield held
        finally:
            with self._changed:
                self._extending -= held
                self._changed.notify_all()

    def await_extensions(self, tags: Iterable[str]) -> None:
        """Wait until no lease of these deliveries is being extended, for at most LONGEST_EXTENSION
        seconds."""
        wanted = frozenset(tags)
        with self._changed:
            if not self._extending.isdisjoint(wanted):
                self._changed.wait_for(
                    lambda: self._extending.isdisjoint(wanted), LONGEST_EXTENSION
                )

    def run_ended(self, tag: str) -> None:
        """Note that the task of a delivery does not run any more. Its outcome is decided later."""
        with self._changed:
            if lease := self._held.get(tag):
                lease.limit_at = None

    def extended(self, tag: str, until: float) -> None:
        """Set the new end of a lease that SQS has extended, in monotonic seconds."""
        with self._changed:
            if lease := self._held.get(tag):
                lease.expires_at = until

    def get(self, tag: str) -> Lease | None:
        """The lease of a delivery in flight."""
        return self._held.get(tag)

    def holds(self, tag: str) -> bool:
        """Whether a delivery is in flight."""
        return tag in self._held

    def count_unreported(self, change: int) -> None:
        """Adjust the number of finished deliveries that are not yet reported to SQS. Receiving
        slows down while it is high, so that all can be reported within their leases."""
        with self._changed:
            was_high = self._unreported > MOST_UNREPORTED
            self._unreported += change
            if change < 0 and was_high:
                self._wake_if_worth_it()

    def all(self) -> list[Lease]:
        """Every lease in flight."""
        with self._changed:
            return list(self._held.values())

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in flight, and no open receive call can return a message."""
        return not (self._held or self._reserved)

    @property
    def unreported(self) -> int:
        """Finished deliveries that are not yet reported to SQS."""
        return self._unreported

    @property
    def concurrency(self) -> int:
        """How many tasks the pool runs at a time; 0 if that is not known."""
        return self._concurrency

    @property
    def busy(self) -> int:
        """How many processes of the pool have a job, also one whose delivery has ended."""
        with self._changed:
            return self._forecast.runs + len(set(self._hung.values()))

    @property
    def window(self) -> int:
        """The most deliveries that may be in flight."""
        with self._changed:
            return self._window

    @property
    def ended_lately(self) -> int:
        """How many deliveries ended in the last whole span."""
        with self._changed:
            return self._pace()

    @property
    def all_hang(self) -> bool:
        """Whether each process of the pool is taken by a task whose delivery has ended."""
        return bool(self._hung) and not self._processes

    def __len__(self) -> int:
        return len(self._held)

    def _pop(self, tag: str) -> Lease | None:
        lease = self._held.pop(tag, None)
        if lease is not None and lease.job is not None:
            self._forecast.ended(lease.job)
        return lease

    @property
    def _processes(self) -> int:
        """How many tasks the pool can run at a time, without those that hang."""
        if not self._hung:  # Asked several times for each message.
            return self._concurrency
        return max(self._concurrency - len(set(self._hung.values())), 0)

    @property
    def _window(self) -> int:
        # At least one slot for each queue, because its receiver mostly waits in a long poll.
        return self._processes + max(AHEAD, self._queues, min(self._pace(), MOST_AHEAD))

    @property
    def _ahead(self) -> int:
        """Messages to hold for processes that are not free yet."""
        most = max(AHEAD, min(self._pace(), MOST_AHEAD))
        if not self._concurrency:
            return most  # It is not known how many tasks the pool runs.
        if self._multiplier:
            per_turn = self._processes * self._forecast.takes
            most = min(most, int((self._multiplier - 1) * per_turn))
        soon = self._forecast.soon(self._processes)
        # A task of unknown duration counts as long, except for as many as have just ended.
        return min(self._pace() if soon is None else soon, most)

    def _is_worth_a_receive(self, is_busy: bool = False) -> bool:
        return self._slots(is_busy) > 0

    def _slots(self, is_busy: bool) -> int:
        """The slots to reserve for a receive now; 0 if it is not worth its call."""
        if self._pauses:
            return 0
        if is_busy and self._queues > 1:
            return self._slots_of_a_busy_queue()
        return self._slots_of_a_share() or int(self._may_look())

    def _slots_of_a_share(self) -> int:
        room = self._room()
        if room <= 0:
            return 0
        ahead = self._ahead
        share = self._share(ahead)
        if self._concurrency:
            # If the share has become smaller since a poll began, the poll counts with the new one.
            reserved = min(self._reserved, self._polls * share)
            room = min(room, self._wanted(ahead) - reserved)
        return self._worth(room, share, ahead)

    def _slots_of_a_busy_queue(self) -> int:
        """The slots if the polls of the other queues return nothing, as they mostly do."""
        ahead = self._ahead
        room = self._room() + self._reserved - self._busy_reserved
        if self._concurrency:
            room = min(room, self._wanted_alone(ahead) - self._busy_reserved)
        return self._worth(room, BATCH, ahead)

    def _worth(self, room: int, share: int, ahead: int) -> int:
        # The long polls of other queues may return fewer messages than they have reserved. So a
        # pool that has fewer messages than it can run does not wait for room for a full batch.
        would_idle = len(self._held) < self._processes
        is_worth_it = would_idle or room >= min(share, math.ceil(ahead * WORTH))
        return max(min(share, room), 0) if is_worth_it else 0

    def _may_look(self) -> bool:
        """Whether a queue that shares the window may poll for one message although others fill it.
        The pool must start messages soon: otherwise the message waits here, while another worker
        could run it."""
        further, quiet = self._queues - 1, self._polls - self._busy_polls
        return (
            further > 0
            and quiet <= further
            and len(self._held) + self._busy_reserved + quiet < self._most_held + further
            and self._unreported <= MOST_UNREPORTED
            and bool(self._forecast.soon(self._processes))
        )

    @property
    def _most_held(self) -> int:
        if not self._multiplier:
            return self._window
        per_turn = self._processes * self._forecast.takes
        return min(self._window, int(self._multiplier * per_turn))

    def _room(self) -> int:
        unreported = max(self._unreported - MOST_UNREPORTED, 0)
        return self._window - len(self._held) - self._reserved - unreported

    def _share(self, ahead: int) -> int:
        """The slots of one receive. What other queues have reserved must not make the pool idle."""
        others = self._queues - 1
        return max(1, min(BATCH, ahead // others)) if others else BATCH

    def _wanted(self, ahead: int) -> int:
        """The messages that the pool will probably start soon, without those that already wait."""
        wanted = self._wanted_alone(ahead)
        # One slot more for each other queue, because its poll may return nothing.
        return wanted + self._queues - 1 if wanted > 0 else 0

    def _wanted_alone(self, ahead: int) -> int:
        """The same for a worker that receives from one queue."""
        waiting = len(self._held) - self._forecast.running
        return self._forecast.at_once(self._processes) + ahead - waiting

    def _wake_if_worth_it(self) -> None:
        # Wake one receiver, and only if it can receive: a needless wake-up takes CPU from the loop.
        kinds = [busy for busy, threads in self._waiting_threads.items() if threads]
        if any(self._is_worth_a_receive(is_busy) for is_busy in kinds):
            # The thread that is woken may be of the other kind, and then the call would be lost.
            self._changed.notify(1 if len(kinds) == 1 else sum(self._waiting_threads.values()))

    def _report_if_empty(self) -> None:
        if self.is_empty:
            self.on_empty()

    def _reserve(self, slots: int, is_busy: bool) -> int:
        self._reserved += slots
        self._polls += slots > 0
        if is_busy:
            self._busy_reserved += slots
            self._busy_polls += slots > 0
        return slots
