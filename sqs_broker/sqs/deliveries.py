"""All that one channel has in flight. Every delivery that a receiver brings ends here, once:
settled, released, or lost with its lease.

    receiver -> admission.arrive -> inbox …… the worker …… end -> outcomes.decide -> settler
                       leases <- heartbeat
"""

import logging
import math
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

from sqs_broker.machine.inbox import Inbox
from sqs_broker.observers.observer import Observer
from sqs_broker.options import Options
from sqs_broker.rules import admission, outcomes
from sqs_broker.rules.facts import facts_of
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.rules.outcomes import Happened, decide
from sqs_broker.rules.policy import Policy
from sqs_broker.rules.suspicion import Suspicion
from sqs_broker.sqs.engine import FLUSH_TIMEOUT, Engine
from sqs_broker.sqs.extension import OVER
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.receiver import ANSWER_MARGIN, Receiver
from sqs_broker.sqs.settler import Settled

logger = logging.getLogger(__name__)

#: Why nothing is received while the event loop is silent.
LOOP_HANGS = "the event loop hangs"


class Taken(Protocol):
    """A message that the worker has taken, with what was noted on it."""

    @property
    def headers(self) -> dict[str, Any]: ...

    happened: Happened | None
    policy: Policy | None


class Deliveries:
    """The deliveries of one channel. Thread-safe, except for `receive`, `leave` and `attach`.

    `message_of` gives the message of a delivery that the worker has taken, and `silence` the
    seconds since the event loop was last seen to turn. Threads start with the first queue: one
    worker makes several channels, and every producer makes one.
    """

    def __init__(
        self,
        options: Options,
        message_of: Callable[[str], Taken | None],
        silence: Callable[[], float],
        observers: Observer,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._options = options
        self._message_of = message_of
        self._silence = silence
        self._observers = observers
        self._clock = clock
        policy = options.policy
        self._leases = Leases(policy.visibility_timeout, policy.longest_wait, clock)
        self._engine: Engine | None = None
        #: Called with a failure that an outage may have caused; it says later whether one has.
        self.on_suspicion: Callable[[Suspicion], None] = Suspicion.dismiss
        self._on_lease_lost: Callable[[str], None] = lambda tag: None
        self._pool_has_processes = False
        self._release_after = 0

    def attach(self, *, pool_has_processes: bool, on_lease_lost: Callable[[str], None]) -> None:
        """Take the worker's side of it: whether its pool hands a task to another process, which
        nothing can keep from starting it, and what to call, on the heartbeat's thread, with the tag
        of a delivery whose lease was lost."""
        self._pool_has_processes = pool_has_processes
        self._on_lease_lost = on_lease_lost

    # What is here

    @property
    def leases(self) -> Leases:
        """What is in flight."""
        return self._leases

    @property
    def engine(self) -> Engine | None:
        """The threads; None before the first queue."""
        return self._engine

    @property
    def receivers(self) -> Sequence[Receiver]:
        """One for each queue that is received from."""
        return self._engine.receivers if self._engine else ()

    @property
    def pool_has_processes(self) -> bool:
        """Whether the pool hands a task to another process."""
        return self._pool_has_processes

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in flight, and no receive call is open."""
        return self._leases.is_empty

    def on_empty(self, callback: Callable[[], None]) -> None:
        """Call this, on any thread, when nothing is in flight and no receive call is open."""
        self._leases.on_empty = callback

    # Receiving

    def resize(self, concurrency: int) -> None:
        """Set how many tasks the pool runs at a time; a little more is held, see Leases."""
        self._leases.resize(concurrency)

    def receive(self, queue: str, inbox: Inbox) -> None:
        """Bring what comes in a configured queue to the inbox, decoded. Raises NoThread; the next
        call tries again."""
        if self._engine is None:
            self._engine = Engine(
                self._options,
                self._leases,
                on_received=lambda received: self._on_received(received, inbox),
                on_missed=lambda delivery, why: self._observers.lost(facts_of(delivery, None), why),
                on_lost=self._on_lost,
                on_waited=self._on_waited,
                on_beat=self._watch_the_loop,
                on_settled=self._on_settled,
                clock=self._clock,
            )
        self._engine.receive(queue)

    def leave(self, queue: str) -> None:
        """Receive no more from a queue. What an open receive call still brings is released."""
        if self._engine is not None:
            self._engine.leave(queue)

    def _on_received(self, received: list[Delivery], inbox: Inbox) -> None:
        """Decode on the receiver's thread, for the event loop to deliver."""
        try:
            arrived = [
                (delivery.queue, content)
                for delivery in received
                if (content := self._arrived_or_ended(delivery))
            ]
            inbox.put(arrived)
        except Exception as exc:
            # Broad on purpose, here and below: what was not handed over is released, and what
            # cannot even be released is held no longer, so that SQS delivers it again.
            for delivery in received:
                self._give_back(delivery, exc)

    def _arrived_or_ended(self, delivery: Delivery) -> dict[str, Any] | None:
        try:
            return self._arrived(delivery)
        except Exception as exc:
            self._give_back(delivery, exc)
            return None

    def _arrived(self, delivery: Delivery) -> dict[str, Any] | None:
        """The message for the worker; None if the delivery has ended on arrival."""
        engine = self._engine
        if engine is None or not engine.receives(delivery.queue) or self._leases.pauses:
            self.end(delivery.tag, outcomes.NotStarted(self._release_after))
        elif engine.copies.are_sent(delivery):
            self.end(delivery.tag, outcomes.Copied())
        else:
            arrival = admission.arrive(delivery, self._options.decode_json)
            if arrival.ended is None:
                return arrival.content
            self.end(delivery.tag, arrival.ended, arrival.headers)
        return None

    def _give_back(self, delivery: Delivery, exc: Exception) -> None:
        try:
            self.end_unstarted(delivery.tag, untaken(exc))
        except Exception:
            self._leases.take(delivery.tag)
            logger.exception(
                "A message could not be released; SQS delivers it again.",
                extra={"event": "receive.broken", "queue": delivery.queue, "count": 1},
            )

    # Ending

    def hand_over(self, tag: str) -> bool:
        """A task goes to the pool; False where it may not, since its delivery has ended."""
        return self._leases.promise(tag) if self._pool_has_processes else self.holds(tag)

    def started(self, tag: str, time_limit: float | None, job: Job | None = None) -> Lease | None:
        """The task of a delivery runs now, for `time_limit` seconds at the most; None where the
        delivery has ended before: its message may be another worker's by now. Without a job it
        runs alone."""
        lease = self._leases.started(tag, time_limit, job)
        if lease is not None:
            self._observers.started(facts_of(lease.delivery, self._headers_of(lease)))
        return lease

    def admitted(self, tag: str, headers: dict[str, Any]) -> None:
        """A task of this worker will run the message."""
        if (lease := self._leases.get(tag)) is not None:
            self._observers.received(facts_of(lease.delivery, headers))

    def holds(self, tag: str) -> bool:
        """Whether this delivery is in flight here, with its lease."""
        return self._leases.holds(tag)

    def end_message(self, tag: str, unsaid: Happened) -> None:
        """End the delivery of a message that the worker has taken, with what was noted on it, or
        else with `unsaid`."""
        if (message := self._message_of(tag)) is not None:
            self.end(tag, message.happened or unsaid, message.headers, message.policy)

    def end(
        self,
        tag: str,
        happened: Happened,
        headers: dict[str, Any] | None = None,
        policy: Policy | None = None,
    ) -> None:
        """The one place where a delivery ends: decide, free the slot, tell the settler.

        A delivery that ended before, or that is another channel's, is left alone; so is one whose
        lease was lost, for its message may be another worker's by now.
        """
        if (lease := self._leases.take(tag)) is not None:
            self._conclude(lease, happened, headers, policy)

    def end_unstarted(
        self,
        tag: str,
        happened: Happened,
        headers: dict[str, Any] | None = None,
        policy: Policy | None = None,
    ) -> bool:
        """End a delivery unless its task has started; whether it ended now."""
        lease = self._leases.take_unstarted(tag)
        if lease is not None:
            self._conclude(lease, happened, headers, policy)
        return lease is not None

    def _conclude(
        self,
        lease: Lease,
        happened: Happened,
        headers: dict[str, Any] | None = None,
        policy: Policy | None = None,
    ) -> None:
        if self._engine is None:
            return
        message = facts_of(lease.delivery, headers)
        if lease.expires_at <= self._clock():
            self._observers.lost(message, OVER)
            return
        outcome = decide(happened, lease.delivery.count, policy or self._options.policy)
        self._observers.ended(message, happened, outcome)
        self._engine.settle(lease, message, outcome)

    def _on_settled(self, settled: Sequence[Settled]) -> None:
        self._leases.count_unreported(-len(settled))
        for each in settled:
            code = None if each.error is None else each.error.code
            self._observers.settled(each.settlement.message, each.settlement.outcome, code)

    def _on_waited(self, lease: Lease) -> None:
        """Release a message that has waited for as long as it may, unless a process of the pool
        takes it at this instant: the table gives it to one of both."""
        if (taken := self._leases.keep_back(lease.delivery.tag)) is not None:
            self._hand_back(taken)

    def _hand_back(self, lease: Lease) -> None:
        self._conclude(lease, outcomes.NotStarted(self._release_after), self._headers_of(lease))

    def _headers_of(self, lease: Lease) -> dict[str, Any] | None:
        """The headers of a message that the worker has taken."""
        message = self._message_of(lease.delivery.tag)
        return message.headers if message else None

    def _on_lost(self, lease: Lease, why: str) -> None:
        if self._leases.take(lease.delivery.tag) is not None:
            self._observers.lost(facts_of(lease.delivery, self._headers_of(lease)), why)
            self._on_lease_lost(lease.delivery.tag)

    # Pausing

    @property
    def pauses(self) -> frozenset[str]:
        """Why nothing is received now."""
        return self._leases.pauses

    @property
    def release_after(self) -> int:
        """Seconds until other workers may have what is released now: 0 unless there is a pause."""
        return self._release_after

    def pause(self, reason: str, release_after: float) -> None:
        """Receive nothing until `resume`, and release what has not started.

        Other workers may have that `release_after` seconds later, and not before every receive call
        of this worker that is open now has ended: otherwise it would come back to this one, and a
        delivery would be spent. Pauses for other reasons, and what is running, are left alone.
        """
        longest_poll = self._options.wait_time_seconds + ANSWER_MARGIN
        self._release_after = max(math.ceil(release_after), longest_poll)
        self._say_paused(self._leases.pause(reason))
        for lease in self._leases.take_waiting():
            self._hand_back(lease)

    def resume(self, reason: str) -> None:
        """End the pause for this reason."""
        self._say_paused(self._leases.resume(reason))
        if not self._leases.pauses:
            self._release_after = 0

    def _watch_the_loop(self) -> None:
        """Release what waits behind an event loop that hangs, and receive nothing until it turns.

        It hangs if it was silent for a lease's time and no task is running within its limits: in
        the solo pool a running task keeps the loop silent, as it should.
        """
        leases = self._leases.all()
        is_silent = self._silence() > self._options.policy.visibility_timeout
        if not is_silent or any(lease.is_running for lease in leases):
            if self._leases.resume(LOOP_HANGS):
                logger.info(
                    "The event loop responds again; receiving resumes.",
                    extra={"event": "loop.beats"},
                )
                self._say_paused(True)
            return
        if self._leases.pause(LOOP_HANGS):
            logger.error(
                "The event loop hangs; nothing is received.", extra={"event": "loop.hangs"}
            )
            self._say_paused(True)
        for lease in leases:
            self.end(lease.delivery.tag, outcomes.NotStarted())

    def _say_paused(self, has_changed: bool) -> None:
        if has_changed:
            self._observers.paused(self._leases.pauses)

    # Stopping, from any thread

    def stop_receiving(self) -> None:
        """Make no more receive calls. What open ones still bring is released."""
        if self._engine is not None:
            self._engine.leave_all()

    def release(self, *, running: bool) -> int:
        """Release at once what has not started; with `running`, what runs too. How many."""
        released = self._leases.take_all() if running else self._leases.take_waiting()
        for lease in released:
            message = self._message_of(lease.delivery.tag)
            if message is None:
                self._conclude(lease, outcomes.NotStarted())
            else:
                happened = message.happened or _cut_off(lease)
                self._conclude(lease, happened, message.headers, message.policy)
        return len(released)

    def give_up_polls(self) -> None:
        """Close without waiting for open receive calls, but for answers that are on their way."""
        if self._engine is not None:
            self._engine.give_up_polls()

    def await_polls(self) -> None:
        """Wait for open receive calls: a long poll's time, or less once they are given up."""
        if self._engine is not None:
            self._engine.await_polls()

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Wait until SQS has every outcome; False if `timeout` seconds were too few."""
        return self._engine is None or self._engine.flush(timeout)

    def close(self) -> None:
        """Stop receiving, release what was not settled, report all of it, end the threads."""
        self.stop_receiving()
        self.await_polls()
        self.release(running=True)
        if self._engine is not None:
            self._engine.stop()


def _cut_off(lease: Lease) -> Happened:
    return outcomes.Interrupted("WorkerShutdown", 0) if lease.is_running else outcomes.NotStarted()
