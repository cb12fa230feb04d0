"""The deliveries of one channel. Each received delivery ends here exactly once: it is settled or
released, or it is lost with its lease.

    receiver -> admission.arrive -> inbox …… the worker …… end -> outcomes.decide -> settler
                       leases <- heartbeat
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

from sqs_broker.machine.inbox import Inbox
from sqs_broker.machine.textless import textless
from sqs_broker.observers.observer import Observer, Observers
from sqs_broker.options import Options
from sqs_broker.rules import admission, outcomes
from sqs_broker.rules.attempts import AttemptStore
from sqs_broker.rules.facts import Facts, facts_of
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.lease import LIMIT_MARGIN, Delivery, Lease
from sqs_broker.rules.outcomes import Happened, Outcome, decide
from sqs_broker.rules.pause import pause_text
from sqs_broker.rules.policy import Policy
from sqs_broker.rules.suspicion import Suspicion
from sqs_broker.sqs.copies import can_carry
from sqs_broker.sqs.engine import FLUSH_TIMEOUT, Engine
from sqs_broker.sqs.extension import OVER
from sqs_broker.sqs.in_flight import InFlight
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.receiver import ANSWER_MARGIN, Receiver
from sqs_broker.sqs.settler import Settled

logger = logging.getLogger(__name__)

#: Seconds after the end of a long poll in which its answer may still be on its way.
POLL_MARGIN = 2

#: The reason of the pause while the event loop hangs.
LOOP_HANGS = "the event loop hangs"

#: The reason of the pause while no task can start, because others do not end.
POOL_HANGS = "each process of the pool runs a task past its hard time limit"

#: The reasons of pauses that begin here, and not with a call of `pause`.
OWN_PAUSES = frozenset({LOOP_HANGS, POOL_HANGS})


#: The end of a delivery: what happened, and the outcome.
End = tuple[Lease, Facts, Happened, Outcome]


class Taken(Protocol):
    """A message that the worker has accepted, and what has happened to it so far."""

    @property
    def headers(self) -> dict[str, Any]: ...

    happened: Happened | None
    policy: Policy | None
    is_suspect: bool
    """Whether an outage may be the cause if the task exceeds its hard time limit."""


class Deliveries:
    """The deliveries of one channel. Thread-safe, except for `receive`, `leave` and `attach`.

    `message_of` returns the message of a delivery that the worker has accepted. `silence` returns
    the seconds since the last heartbeat of the event loop. `attempts` returns the store of failed
    runs, if there is one. It is called, and threads start, with the first queue, because a worker
    creates several channels and every producer creates one.
    """

    def __init__(
        self,
        options: Options,
        message_of: Callable[[str], Taken | None],
        silence: Callable[[], float],
        observers: Observer,
        clock: Callable[[], float] = monotonic,
        attempts: Callable[[], AttemptStore | None] = lambda: None,
    ) -> None:
        self._options = options
        self._message_of = message_of
        self._silence = silence
        self._observers = observers if isinstance(observers, Observers) else Observers([observers])
        self._clock = clock
        self._attempts = attempts
        self._in_flight = InFlight(options.most_in_flight, clock)
        policy = options.policy
        self._leases = Leases(policy.visibility_timeout, policy.longest_wait, clock)
        self._engine: Engine | None = None
        #: The queues to receive from, and why some of them are paused.
        self._queues: set[str] = set()
        self._paused_queues: dict[str, str] = {}
        #: Called with a failure that an outage may have caused. The function decides later whether
        #: one did.
        self.on_suspicion: Callable[[Suspicion], None] = Suspicion.dismiss
        self._on_lease_lost: Callable[[str], None] = lambda tag: None
        self._on_given_up: Callable[[str, Happened], None] = lambda tag, happened: None
        self._pool_has_processes = False
        self._release_after = 0

    def attach(
        self,
        *,
        pool_has_processes: bool,
        on_lease_lost: Callable[[str], None],
        on_given_up: Callable[[str, Happened], None] = lambda tag, happened: None,
    ) -> None:
        """Connect the worker. `pool_has_processes`: whether its pool hands a task to another
        process; nothing can prevent that process from starting it. `on_lease_lost`: called, on the
        heartbeat's thread, with the tag of a delivery whose lease was lost, or that has ended while
        its task hangs. `on_given_up`: called before that, on any thread, for the latter, with what
        has happened."""
        self._pool_has_processes = pool_has_processes
        self._on_lease_lost = on_lease_lost
        self._on_given_up = on_given_up

    # State

    @property
    def leases(self) -> Leases:
        """The leases of all deliveries in flight."""
        return self._leases

    @property
    def engine(self) -> Engine | None:
        """The threads; None until the first queue."""
        return self._engine

    @property
    def receivers(self) -> Sequence[Receiver]:
        """One for each queue that this channel receives from."""
        return self._engine.receivers if self._engine else ()

    @property
    def pool_has_processes(self) -> bool:
        """Whether the pool hands a task to another process."""
        return self._pool_has_processes

    @property
    def is_traced(self) -> bool:
        """Whether deliveries have spans."""
        return self._options.tracing is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in flight, and no receive call is open."""
        return self._leases.is_empty

    def on_empty(self, callback: Callable[[], None]) -> None:
        """Call this, on any thread, when nothing is in flight and no receive call is open."""
        self._leases.on_empty = callback

    # Receiving

    def resize(self, concurrency: int) -> None:
        """Set how many tasks the pool runs at a time. A few more messages are held, see Leases."""
        self._leases.resize(concurrency)

    def limit(self, multiplier: int) -> None:
        """Limit the messages held to so many times what the pool runs at a time; 0: see Leases."""
        self._leases.limit(multiplier)

    def receive(self, queue: str, inbox: Inbox) -> None:
        """Receive from a configured queue, and put the decoded messages into the inbox; from a
        paused queue, only once its pause ends. Raises NoThread; then the next call tries again."""
        if self._engine is None:
            self._engine = Engine(
                self._options,
                self._leases,
                on_received=lambda received: self._on_received(received, inbox),
                on_missed=lambda delivery, why: self._observers.lost(facts_of(delivery, None), why),
                on_lost=self._on_lost,
                on_waited=self._on_waited,
                on_hung=self._on_hung,
                on_beat=self._on_beat,
                on_settled=self._on_settled,
                on_polled=self._observers.polled,
                on_called=self._observers.called,
                attempts=self._attempts(),
                in_flight=self._in_flight,
                clock=self._clock,
            )
        if queue not in self._paused_queues:
            self._engine.receive(queue)
        is_new = queue not in self._queues
        self._queues.add(queue)
        self._report_pauses(is_new and queue in self._paused_queues)

    def consumes(self, queue: str) -> bool:
        """Whether messages of a queue are wanted here."""
        return queue in self._queues

    def leave(self, queue: str) -> None:
        """Stop receiving from a queue. Messages that an open receive call returns are released."""
        self._queues.discard(queue)
        if self._engine is not None:
            self._engine.leave(queue)

    def _on_received(self, received: list[Delivery], inbox: Inbox) -> None:
        """Decode on the receiver's thread, so that the event loop only has to deliver."""
        try:
            # They are held already, so a pause that begins from now on ends them itself.
            is_paused = bool(self._leases.pauses)
            arrived = [
                (delivery.queue, content)
                for delivery in received
                if (content := self._arrived_or_ended(delivery, is_paused))
            ]
            inbox.put(arrived)
        except Exception as exc:
            # Broad on purpose, here and below. If a message cannot be handed over, it is released.
            # If it cannot be released either, its slot is freed, and SQS delivers it again.
            for delivery in received:
                self._give_back(delivery, exc)

    def _arrived_or_ended(self, delivery: Delivery, is_paused: bool) -> dict[str, Any] | None:
        try:
            return self._arrived(delivery, is_paused)
        except Exception as exc:
            self._give_back(delivery, exc)
            return None

    def _arrived(self, delivery: Delivery, is_paused: bool) -> dict[str, Any] | None:
        """The message for the worker; None if the delivery ends on arrival."""
        engine = self._engine
        if engine is None or not engine.receives(delivery.queue) or is_paused:
            self.end(delivery.tag, outcomes.NotStarted(self._delay_of(delivery)))
        elif engine.copies.are_sent(delivery):
            self.end(delivery.tag, outcomes.Copied())
        else:
            arrival = admission.arrive(delivery, self._options.decode_json, self._options.eta_max)
            if arrival.ended is None:
                return arrival.content
            self.end(delivery.tag, arrival.ended, arrival.headers)
        return None

    def _give_back(self, delivery: Delivery, exc: Exception) -> None:
        try:
            self.end_unstarted(delivery.tag, untaken(exc))
        except Exception as broken:
            self._leases.take(delivery.tag)
            logger.error(
                "Could not release a message; SQS delivers it again.",
                exc_info=textless(broken),
                extra={"event": "receive.broken", "queue": delivery.queue, "count": 1},
            )

    # Ending

    def hand_over(self, tag: str) -> bool:
        """Note that a task goes to the pool. False if its delivery has ended, so it must not."""
        return self._leases.promise(tag) if self._pool_has_processes else self.holds(tag)

    def started(self, tag: str, time_limit: float | None, job: Job | None = None) -> Lease | None:
        """Note that the task of a delivery runs now, for at most `time_limit` seconds. None if the
        delivery has ended: another worker may have its message. Without a job, the task runs
        alone."""
        lease = self._leases.started(tag, time_limit, job)
        if lease is not None:
            self._observers.started(_facts_of(lease, self._headers_of(lease)))
        return lease

    def hand_over_many(self, tags: Iterable[str]) -> list[bool]:
        """Note that the tasks of a job go to the pool: see `hand_over`."""
        if self._pool_has_processes:
            return self._leases.promise_many(tags)
        return [self.holds(tag) for tag in tags]

    def started_many(
        self, tags: Sequence[str], time_limit: float | None, job: Job
    ) -> list[Lease | None]:
        """Note that a job runs now: see `started`."""
        leases = self._leases.started_many(tags, time_limit, job)
        self._observers.started_all(
            [_facts_of(lease, self._headers_of(lease)) for lease in leases if lease is not None]
        )
        return leases

    def run_ended(self, tag: str) -> None:
        """Note that the task of a delivery does not run any more. Its outcome is decided later."""
        self._leases.run_ended(tag)

    def admitted(self, tag: str, headers: dict[str, Any]) -> None:
        """Note that a task of this worker will run the message. With tracing, its headers then name
        the span of the delivery."""
        if (lease := self._leases.get(tag)) is not None:
            if self._options.tracing is not None:
                self._options.tracing.delivered(facts_of(lease.delivery, headers), headers)
            self._observers.received(facts_of(lease.delivery, headers))

    def admitted_many(self, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Note that tasks of this worker will run these messages: see `admitted`. Not for a worker
        that traces them."""
        found = [(self._leases.get(tag), headers) for tag, headers in messages]
        self._observers.received_all(
            [facts_of(lease.delivery, headers) for lease, headers in found if lease is not None]
        )

    def may_share(self, tag: str) -> bool:
        """Whether a message may run together with others."""
        lease = self._leases.get(tag)
        return lease is not None and lease.delivery.may_share

    def has_grace(self, tag: str) -> bool:
        """Whether a message is released, not dead-lettered, if its task is unknown."""
        if (lease := self._leases.get(tag)) is None:
            return False
        delivery, policy = lease.delivery, self._options.policy
        return policy.grace(delivery.age, delivery.deliveries) is not None

    def holds(self, tag: str) -> bool:
        """Whether this delivery is in flight here."""
        return self._leases.holds(tag)

    def end_message(self, tag: str, default: Happened) -> None:
        """End the delivery of a message that the worker has accepted, with what has happened to it.
        If nothing is noted on the message, that is `default`."""
        if (message := self._message_of(tag)) is not None:
            self.end(tag, message.happened or default, message.headers, message.policy)

    def end(
        self,
        tag: str,
        happened: Happened,
        headers: dict[str, Any] | None = None,
        policy: Policy | None = None,
    ) -> None:
        """End a delivery: free its slot, decide its outcome, and give that to the settler.

        Does nothing if the delivery has ended, or belongs to another channel. If its lease is lost,
        nothing is reported to SQS, because another worker may have the message.
        """
        if (lease := self._leases.take(tag)) is not None:
            self._conclude(lease, happened, headers, policy)

    def end_messages(self, tags: Sequence[str]) -> None:
        """End the deliveries of messages that the worker has accepted, and that succeeded, all at
        once. Their results are noted on the messages."""
        messages = [self._message_of(tag) for tag in tags]
        ended: list[End] = []
        now = self._clock()
        try:
            for lease, message in zip(self._leases.take_many(tags), messages, strict=True):
                if lease is None or message is None:
                    continue
                happened = message.happened or outcomes.Succeeded()
                if end := self._end_of(lease, happened, message.headers, message.policy, now):
                    ended.append(end)
        finally:
            self._settle(ended)

    def end_unstarted(
        self,
        tag: str,
        happened: Happened,
        headers: dict[str, Any] | None = None,
        policy: Policy | None = None,
    ) -> bool:
        """End a delivery unless its task has started. Returns whether it did end."""
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
        if end := self._end_of(lease, happened, headers, policy, self._clock()):
            self._settle([end])

    def _end_of(
        self,
        lease: Lease,
        happened: Happened,
        headers: dict[str, Any] | None,
        policy: Policy | None,
        now: float,
    ) -> End | None:
        """How a delivery ends; None if its lease is over."""
        delivery, message = lease.delivery, _facts_of(lease, headers)
        if lease.expires_at <= now:
            self._observers.lost(message, OVER)
            return None
        outcome = decide(
            happened,
            delivery,
            policy or self._options.policy,
            # Only a message that comes again needs to know, and most do not.
            is_crowded=type(happened) is not outcomes.Succeeded and self._is_crowded(delivery),
        )
        return lease, message, happened, outcome

    def _settle(self, ended: Sequence[End]) -> None:
        if self._engine is None:
            return
        self._observers.ended_all([end[1:] for end in ended])
        self._engine.settle_all([(lease, message, outcome) for lease, message, _, outcome in ended])

    def _is_crowded(self, delivery: Delivery) -> bool:
        """Whether retries should wait as copies. A copy that cannot carry the number of attempts
        would be retried without end."""
        return self._in_flight.is_crowded(delivery.queue) and can_carry(
            delivery, self._options.max_message_bytes
        )

    def _on_settled(self, settled: Sequence[Settled]) -> None:
        self._leases.count_unreported(-len(settled))
        self._observers.settled_all(
            [
                (settlement.message, settlement.outcome, None if error is None else error.code)
                for settlement, error in settled
            ]
        )

    def _on_waited(self, lease: Lease) -> None:
        """Release a message that has reached its longest wait, unless a process of the pool takes
        it at the same time: the table decides which."""
        if (taken := self._leases.keep_back(lease.delivery.tag)) is not None:
            self._hand_back(taken)

    def _hand_back(self, lease: Lease) -> None:
        self._conclude(lease, outcomes.NotStarted(self._release_after), self._headers_of(lease))

    def _headers_of(self, lease: Lease) -> dict[str, Any] | None:
        """The headers of a message that the worker has accepted."""
        message = self._message_of(lease.delivery.tag)
        return message.headers if message else None

    def _on_hung(self, lease: Lease) -> None:
        """End the delivery of a task that runs beyond its hard time limit as a failed attempt. What
        the task still does or returns has no effect on it."""
        tag = lease.delivery.tag
        message = self._message_of(tag)
        if message is None or not self._is_hung(lease) or not self._leases.claim_hung(tag):
            return
        if message.happened is not None:
            # The run has ended, but the event loop, which reports that, does not respond.
            self.end(tag, message.happened, message.headers, message.policy)
            return
        if not message.is_suspect:
            self._end_hung(tag, message, outcomes.HUNG)
            return
        assert lease.started_at is not None
        self.on_suspicion(
            Suspicion(
                error=outcomes.HUNG.error,
                started_at=lease.started_at,
                retry_after=(message.policy or self._options.policy).backoff(
                    lease.delivery.attempt
                ),
                otherwise=outcomes.HUNG,
                conclude=lambda what: self._end_hung(tag, message, what),
            )
        )

    def _is_hung(self, lease: Lease) -> bool:
        """Whether a task runs beyond its hard time limit. In a pool of processes the event loop
        ends it, and learns of each end. So if the loop does not respond, the task may have
        ended."""
        overrun = lease.overrun(self._clock())
        if self._pool_has_processes:
            return overrun >= LIMIT_MARGIN + self._silence()
        return overrun >= 0

    def _end_hung(self, tag: str, message: Taken, what: Happened) -> None:
        if (lease := self._leases.take_hung(tag)) is not None:
            self._conclude(lease, what, message.headers, message.policy)
            self._on_given_up(tag, what)
            self._on_lease_lost(tag)

    def _on_lost(self, lease: Lease, why: str) -> None:
        if self._leases.take(lease.delivery.tag) is not None:
            self._observers.lost(facts_of(lease.delivery, self._headers_of(lease)), why)
            self._on_lease_lost(lease.delivery.tag)

    # Pausing

    @property
    def pauses(self) -> frozenset[str]:
        """Why nothing is received now, or nothing from a queue that would be received from."""
        paused = self._paused_queues.copy().items()
        of_queues = (pause_text(queue, why) for queue, why in paused if queue in self._queues)
        return self._leases.pauses | frozenset(of_queues)

    @property
    def paused_queues(self) -> Mapping[str, str]:
        """Why each paused queue is paused."""
        return dict(self._paused_queues)

    @property
    def release_after(self) -> int:
        """Seconds until other workers can receive what is released now: 0 without a pause."""
        return self._release_after

    def pause(self, reason: str, release_after: float) -> None:
        """Receive nothing until `resume`, and release messages that have not started.

        Other workers can receive these after `release_after` seconds, but not before every open
        receive call of this worker has ended. Otherwise a message could come back to this worker,
        and a delivery would be wasted. Pauses for other reasons and running tasks are not affected.
        """
        self._release_after = max(math.ceil(release_after), self._longest_poll)
        self._report_pauses(self._leases.pause(reason))
        for lease in self._leases.take_waiting():
            self._hand_back(lease)

    def resume(self, reason: str) -> None:
        """End the pause for this reason."""
        self._report_pauses(self._leases.resume(reason))
        if self._leases.pauses <= OWN_PAUSES:
            self._release_after = 0

    def pause_queue(self, queue: str, reason: str) -> None:
        """Receive nothing from a queue until `resume_queue`, and release its messages that have not
        started.

        Other workers can receive these messages once their own receive calls that are open now have
        ended. Other queues and running tasks are not affected. Not thread-safe, as `receive`.
        """
        is_new = self._paused_queues.get(queue) != reason
        self._paused_queues[queue] = reason
        if self._engine is not None:
            self._engine.leave(queue)
        for lease in self._leases.take_waiting(queue):
            happened = outcomes.NotStarted(self._delay_of(lease.delivery))
            self._conclude(lease, happened, self._headers_of(lease))
        self._report_pauses(is_new and queue in self._queues)

    def resume_queue(self, queue: str) -> None:
        """End the pause of a queue. Raises NoThread; then it still is paused. Not thread-safe, as
        `receive`."""
        if queue not in self._paused_queues:
            return
        if queue in self._queues and self._engine is not None:
            self._engine.receive(queue)
        del self._paused_queues[queue]
        self._report_pauses(queue in self._queues)

    def _on_beat(self) -> None:
        self._watch_the_loop()
        self._watch_the_pool()

    def _watch_the_pool(self) -> None:
        """If each process of the pool runs a task past its hard time limit, release the messages
        that wait for one, and receive nothing until a task ends."""
        if not self._leases.all_hang:
            if self._leases.resume(POOL_HANGS):
                logger.info(
                    "A task that ran past its hard time limit has ended; receiving resumes.",
                    extra={"event": "pool.works"},
                )
                self._report_pauses(True)
            return
        if self._leases.pause(POOL_HANGS):
            logger.error(
                "Each process or thread of the pool runs a task past its hard time limit; nothing "
                "is received.",
                extra={"event": "pool.hangs"},
            )
            self._report_pauses(True)
        for lease in self._leases.take_waiting():
            self._conclude(
                lease,
                outcomes.NotStarted(self._delay_of(lease.delivery)),
                self._headers_of(lease),
            )

    def _watch_the_loop(self) -> None:
        """If the event loop hangs, release the messages that wait for it, and receive nothing until
        it responds.

        It hangs if it had no heartbeat for a visibility timeout and no task runs within its limits:
        in the solo pool, the loop always stops for a running task.
        """
        leases = self._leases.all()
        is_silent = self._silence() > self._options.policy.visibility_timeout
        if not is_silent or any(lease.is_running for lease in leases):
            if self._leases.resume(LOOP_HANGS):
                logger.info(
                    "The event loop responds again; receiving resumes.",
                    extra={"event": "loop.beats"},
                )
                self._report_pauses(True)
            return
        if self._leases.pause(LOOP_HANGS):
            logger.error(
                "The event loop hangs; nothing is received.", extra={"event": "loop.hangs"}
            )
            self._report_pauses(True)
        for lease in leases:
            self.end(lease.delivery.tag, outcomes.NotStarted(self._delay_of(lease.delivery)))

    def _report_pauses(self, has_changed: bool) -> None:
        if has_changed:
            self._observers.paused(self.pauses)

    # Stopping, from any thread

    def stop_receiving(self) -> None:
        """Make no more receive calls. If open ones return messages, these are released."""
        # Otherwise the end of a pause would begin to receive again.
        self._queues.clear()
        if self._engine is not None:
            self._engine.leave_all()

    def release(self, *, running: bool) -> int:
        """Release messages that have not started; with `running`, also those that run. Returns how
        many. They become visible once no open receive call of this worker can return them."""
        released = self._leases.take_all() if running else self._leases.take_waiting()
        for lease in released:
            message = self._message_of(lease.delivery.tag)
            if message is None:
                self._conclude(lease, outcomes.NotStarted(self._delay_of(lease.delivery)))
            else:
                happened = message.happened or self._cut_off(lease, message)
                self._conclude(lease, happened, message.headers, message.policy)
        return len(released)

    def give_up_polls(self) -> None:
        """From now on, wait only for answers that are on their way, not for open receive calls."""
        if self._engine is not None:
            self._engine.give_up_polls()

    def await_polls(self) -> None:
        """Wait for open receive calls: the time of a long poll, or less after `give_up_polls`."""
        if self._engine is not None:
            self._engine.await_polls()

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Wait until every outcome is reported; False if `timeout` seconds are not enough."""
        return self._engine is None or self._engine.flush(timeout)

    def close(self) -> None:
        """Stop receiving, release what is in flight, report all outcomes, and end the threads."""
        self.stop_receiving()
        self.await_polls()
        self.release(running=True)
        if self._engine is not None:
            self._engine.stop()

    def _cut_off(self, lease: Lease, message: Taken) -> Happened:
        delay = self._delay_of(lease.delivery)
        if not lease.is_running:
            return outcomes.NotStarted(delay)
        may_be_outage = message.is_suspect and self._release_after > 0
        if self._is_hung(lease) and not may_be_outage:
            return outcomes.HUNG
        return outcomes.Interrupted("WorkerShutdown", delay)

    def _delay_of(self, delivery: Delivery) -> int:
        """Seconds until other workers can receive a message that is released now. Until the long
        polls of this worker are over, SQS might return it here, and a delivery would be wasted."""
        left = self._engine.poll_left(delivery.queue) if self._engine else None
        # Each worker pauses the queue, and each of them may have an open long poll.
        others = self._longest_poll if delivery.queue in self._paused_queues else 0
        own = 0 if left is None else math.ceil(left) + POLL_MARGIN
        return max(self._release_after, own, others)

    @property
    def _longest_poll(self) -> int:
        """Seconds until every receive call that is open now has ended."""
        return self._options.wait_time_seconds + ANSWER_MARGIN


def _facts_of(lease: Lease, headers: dict[str, Any] | None) -> Facts:
    """The facts of a message: those that its lease has, if they are the same."""
    known: Facts | None = lease.facts
    if known is None or known.context is not headers or known.started_at != lease.started_at:
        known = lease.facts = facts_of(lease.delivery, headers, lease.started_at)
    return known
