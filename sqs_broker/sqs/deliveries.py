"""All that one channel has in flight, and the threads that bring, keep and settle it.

    receiver -> admission.arrive -> inbox …… the worker …… end -> outcomes.decide -> settler
                    leases <- heartbeat

Every delivery that a receiver brings ends here, once: settled, handed back, or lost with its lease.
"""

import logging
import math
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from sqs_broker.errors import NoThread
from sqs_broker.machine.inbox import Inbox
from sqs_broker.observers.observer import Observer, facts_of
from sqs_broker.options import Options
from sqs_broker.rules import admission, outcomes
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.rules.outcomes import Happened, decide
from sqs_broker.rules.policy import Policy
from sqs_broker.rules.suspicion import Suspicion
from sqs_broker.sqs.boto import driver_for
from sqs_broker.sqs.extension import OVER
from sqs_broker.sqs.heartbeat import Heartbeat
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.receiver import ANSWER_MARGIN, Receiver
from sqs_broker.sqs.settler import Settler

logger = logging.getLogger(__name__)

#: Why nothing is received while the event loop is silent.
LOOP_HANGS = "the event loop hangs"

#: Seconds that closing waits for SQS to be told the last outcomes.
FLUSH_TIMEOUT = 10

#: Seconds a forced stop gives an open long poll: time for an answer that is on its way already.
LAST_POLL = 1


class Taken(Protocol):
    """A message that the worker has taken, with what was noted on it."""

    @property
    def headers(self) -> dict[str, Any]: ...

    happened: Happened | None
    policy: Policy | None


class Deliveries:
    """The deliveries of one channel. Thread-safe, but for what Celery's consumer alone calls.

    `message_of` gives the message of a delivery that the worker has taken, `silence` the seconds
    since the event loop was last seen to turn. Threads start with the first queue and not before:
    one worker makes several channels, and every producer makes one.
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
        self._receivers: dict[str, Receiver] = {}
        self._leaving: list[Receiver] = []
        self._settler: Settler | None = None
        self._inbox: Inbox | None = None
        self._heartbeat: Heartbeat | None = None
        #: Called with the tag of a delivery whose lease was lost, on the heartbeat's thread.
        self.on_lease_lost: Callable[[str], None] = lambda tag: None
        #: Called with a failure that an outage may have caused; it says later whether one has.
        self.on_suspicion: Callable[[Suspicion], None] = Suspicion.dismiss
        self._release_after = 0
        #: Whether the pool hands a task to another process, which nothing keeps from starting it.
        self.pool_has_processes = False
        self._poll_patience: float = options.wait_time_seconds + ANSWER_MARGIN

    # Receiving

    def resize(self, concurrency: int) -> None:
        """Set how many tasks the pool runs at a time; what is held is a little more, see Leases."""
        self._leases.resize(concurrency)

    def receive(self, queue: str, inbox: Inbox) -> None:
        """Bring what comes in a configured queue to the inbox, decoded.

        Raises NoThread; what is there then goes on, and the next call tries for the rest.
        """
        self._start_threads(inbox)
        if queue not in self._receivers:
            wait = self._options.wait_time_seconds
            # One try: the receiver itself tries again, and says so.
            driver = driver_for(self._options, read_timeout=wait + ANSWER_MARGIN, tries=1)
            driver.open()
            receiver = Receiver(
                queue, self._options, driver, self._leases, self._on_received, clock=self._clock
            )
            self._receivers[queue] = receiver
            self._leases.share_among(len(self._receivers))
            try:
                receiver.start()
            except NoThread:
                del self._receivers[queue]
                self._leases.share_among(len(self._receivers))
                raise

    def leave(self, queue: str) -> None:
        """Receive no more from a queue. What an open poll still brings is released."""
        if receiver := self._receivers.pop(queue, None):
            receiver.stop()
            # Its open poll is awaited when the channel closes: SQS may answer it with a message.
            self._leaving.append(receiver)
            self._leases.share_among(len(self._receivers))

    def _start_threads(self, inbox: Inbox) -> None:
        self._inbox = inbox
        # Each is kept once it runs, so that the next call tries for what does not.
        if self._settler is None:
            driver = driver_for(self._options)
            driver.open()
            settler = Settler(
                self._options,
                driver,
                lambda told: self._leases.telling(-told),
                clock=self._clock,
            )
            settler.start()
            self._settler = settler
        if self._heartbeat is None and self._options.policy.heartbeat:
            driver = driver_for(self._options, tries=1)
            driver.open()
            heartbeat = Heartbeat(
                self._options,
                driver,
                self._leases,
                self._on_lost,
                self._watch_the_loop,
                self._on_waited,
                clock=self._clock,
            )
            heartbeat.start()
            self._heartbeat = heartbeat

    def _on_received(self, deliveries: list[Delivery]) -> None:
        """Runs on a receiver's thread: decode there, deliver on the loop."""
        assert self._inbox is not None
        try:
            arrived = [
                (delivery.queue, payload)
                for delivery in deliveries
                if (payload := self._arrived_or_ended(delivery))
            ]
            self._inbox.put(arrived)
        except Exception as exc:
            # Broad on purpose, here and below: what was not handed over is handed back, and what
            # cannot even be handed back is held no longer, so that SQS delivers it again.
            for delivery in deliveries:
                self._give_back(delivery, exc)

    def _arrived_or_ended(self, delivery: Delivery) -> dict[str, Any] | None:
        try:
            return self._arrived(delivery)
        except Exception as exc:
            self._give_back(delivery, exc)
            return None

    def _give_back(self, delivery: Delivery, exc: Exception) -> None:
        try:
            self.end_unstarted(delivery.tag, untaken(exc))
        except Exception:
            self._leases.take(delivery.tag)
            logger.exception(
                "A message could not be handed back; SQS delivers it again.",
                extra={"event": "receive.broken", "queue": delivery.queue, "count": 1},
            )

    def _arrived(self, delivery: Delivery) -> dict[str, Any] | None:
        """The payload for the worker; None where the delivery has ended on arrival."""
        if delivery.queue not in self._receivers or self._leases.pauses:
            self.end(delivery.tag, outcomes.NotStarted(self._release_after))
        elif self._settler and self._settler.copies.are_sent(delivery):
            self.end(delivery.tag, outcomes.Copied())
        else:
            arrival = admission.arrive(delivery, self._options.decode_json)
            if arrival.ended is None:
                return arrival.content
            self.end(delivery.tag, arrival.ended, arrival.headers)
        return None

    # Ending

    def hand_over(self, tag: str) -> bool:
        """A task goes to the pool; False where it may not, since its delivery has ended."""
        return self._leases.promise(tag) if self.pool_has_processes else self.holds(tag)

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
        if self._settler is None:
            return
        if lease.expires_at <= self._clock():
            self._observers.lost(facts_of(lease.delivery, headers), OVER)
            return
        delivery = lease.delivery
        outcome = decide(happened, delivery.count, policy or self._options.policy)
        task, id_ = (headers["task"], headers["id"]) if headers else (None, None)
        self._leases.telling(1)
        self._settler.settle(lease, outcome, task, id_)
        self._observers.ended(facts_of(delivery, headers), happened, outcome)

    def _watch_the_loop(self) -> None:
        """Hand back what waits behind an event loop that hangs, and receive no more until it beats.

        It hangs where it was silent for a lease's time and no task is running within its limits:
        in the solo pool a running task keeps the loop silent, and rightly so.
        """
        leases = self._leases.all()
        hangs = self._silence() > self._options.policy.visibility_timeout
        hangs = hangs and not any(lease.is_running for lease in leases)
        if self._leases.pause(LOOP_HANGS, hangs):
            text = "The event loop hangs; nothing is received." if hangs else "It beats again."
            logger.error(text, extra={"event": "loop.hangs" if hangs else "loop.beats"})
            self._observers.paused(self._leases.pauses)
        if hangs:
            for lease in leases:
                self.end(lease.delivery.tag, outcomes.NotStarted())

    def _on_waited(self, lease: Lease) -> None:
        """Hand back a message that has waited for as long as it may. No process of the pool takes
        it at this instant: the table gives it to the one or to the other."""
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
            self.on_lease_lost(lease.delivery.tag)

    @property
    def leases(self) -> Leases:
        """What is in flight."""
        return self._leases

    @property
    def receivers(self) -> tuple[Receiver, ...]:
        """One for each queue that is received from."""
        return tuple(self._receivers.values())

    @property
    def settler(self) -> Settler | None:
        """What tells SQS; None before the first queue."""
        return self._settler

    @property
    def heartbeat(self) -> Heartbeat | None:
        """What extends leases; None before the first queue, or where none is to."""
        return self._heartbeat

    # Pausing

    def pause(self, reason: str, release_after: float) -> None:
        """Receive nothing until `resume`, and hand back what has not started.

        That is shown to other workers `release_after` seconds later, and not before every poll of
        this worker that is open now has ended: else it would come back to it, and a delivery would
        be spent. Pauses for other reasons, and what is running, are left alone. Thread-safe.
        """
        longest_poll = self._options.wait_time_seconds + ANSWER_MARGIN
        self._release_after = max(math.ceil(release_after), longest_poll)
        if self._leases.pause(reason):
            self._observers.paused(self._leases.pauses)
        for lease in self._leases.take_waiting():
            self._hand_back(lease)

    def resume(self, reason: str) -> None:
        """End the pause for this reason. Thread-safe."""
        if self._leases.pause(reason, False):
            self._observers.paused(self._leases.pauses)
        if not self._leases.pauses:
            self._release_after = 0

    @property
    def release_after(self) -> int:
        """Seconds until what is handed back now is shown to other workers: 0 but in a pause."""
        return self._release_after

    @property
    def pauses(self) -> frozenset[str]:
        """Why nothing is received now."""
        return self._leases.pauses

    # Stopping, from any thread

    def stop_receiving(self) -> None:
        """Ask SQS no more. What open polls still bring is released."""
        while self._receivers:
            receiver = self._receivers.popitem()[1]
            receiver.stop()
            self._leaving.append(receiver)

    def release(self, *, running: bool) -> int:
        """Hand back at once what has not started; with `running`, what runs too. How many."""
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
        """Close without waiting for open polls, but for answers that are on their way."""
        self._poll_patience = LAST_POLL

    def on_empty(self, callback: Callable[[], None]) -> None:
        """Call this, on any thread, when nothing is in flight and no poll is open."""
        self._leases.on_empty = callback

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in flight, and no poll is open."""
        return self._leases.is_empty

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Wait until SQS was told every outcome; False where `timeout` seconds were too few."""
        return self._settler is None or self._settler.flush(timeout)

    def await_polls(self) -> None:
        """Wait for the open polls: the long poll's time, or less once they are given up."""
        deadline = monotonic() + self._poll_patience
        for receiver in self._leaving:
            receiver.join(max(0.0, deadline - monotonic()))

    def close(self) -> None:
        """Stop receiving, release what was not settled, tell SQS all of it, end the threads."""
        self.stop_receiving()
        self.await_polls()
        self.release(running=True)
        if self._settler is not None:
            self._settler.stop(FLUSH_TIMEOUT)
        if self._heartbeat is not None:
            self._heartbeat.stop(FLUSH_TIMEOUT)


def _cut_off(lease: Lease) -> Happened:
    return outcomes.Interrupted("WorkerShutdown", 0) if lease.is_running else outcomes.NotStarted()
