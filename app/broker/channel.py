"""SQS behind kombu's channel: which queue lives where, deliver, settle."""

import logging
import math
from collections.abc import Callable
from time import monotonic
from typing import Any

from kombu.transport import virtual

from app.broker import journal, outcomes
from app.broker.clients import new_client
from app.broker.decoding import decode
from app.broker.errors import PublishError, Undecodable
from app.broker.heartbeat import Heartbeat
from app.broker.inbox import Inbox
from app.broker.leases import Delivery, Lease, Leases
from app.broker.message import Message
from app.broker.outcomes import Happened, decide
from app.broker.policy import Policy
from app.broker.publisher import Batch, publish, seconds_until_due
from app.broker.receiver import ANSWER_MARGIN, Receiver
from app.broker.settler import Settler
from app.broker.suspicion import Suspicion

logger = logging.getLogger(__name__)

#: Why nothing is received while the event loop is silent.
LOOP_HANGS = "the event loop hangs"

#: Seconds by which clocks may differ before a message counts as not due.
CLOCK_TOLERANCE = 2

#: Seconds that closing waits for SQS to be told the last outcomes.
FLUSH_TIMEOUT = 10

#: Seconds a forced stop gives an open long poll: time for an answer that is on its way already.
LAST_POLL = 1


class QoS(virtual.QoS):
    """kombu's table of unacknowledged messages, which here never restores anything: the leases
    know what is in flight, and the channel releases it."""

    restore_at_shutdown = False


class Channel(virtual.Channel):
    """Delivers what receivers bring and hands outcomes to the settler.

    Threads start with the first consumer of a queue and not before: one worker makes several
    channels, and every producer makes one. `basic_ack` and `basic_reject` may be called from any
    thread, which Celery does while a pool drains (celery 5.7 concurrency/prefork.py).
    """

    Message = Message
    QoS = QoS
    do_restore = False
    body_encoding = None
    supports_fanout = True

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._options = connection.options
        self._client = connection.sqs
        self._mailbox = connection.mailbox
        #: Where messages are collected instead of sent one by one (`publish_many`).
        self.batch: Batch | None = None
        self._leases = Leases(self._options.policy.visibility_timeout)
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
        self._poll_patience: float = self._options.wait_time_seconds + ANSWER_MARGIN

    # Publishing

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> None:
        """Send a task message. Raises UnknownQueue, and PublishError for what SQS would refuse.

        What belongs to the control plane goes there, and may raise what `Mailbox.publish` does.
        """
        if self._mailbox.publish(message, exchange, routing_key):
            return
        super().basic_publish(message, exchange, routing_key, **kwargs)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        send = self.batch.add if self.batch else publish
        send(self._client(), self._options.queue(queue), message, self._options.max_message_bytes)

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        # Where kombu would drop a message without a route, the caller is told.
        queues: list[str] = super()._lookup(exchange, routing_key, default)
        if not queues:
            raise PublishError(f"No queue is bound to {exchange!r} with key {routing_key!r}.")
        return queues

    # Queues

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        if not self._mailbox.owns(queue):
            self._options.queue(queue)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return queue in self._options.queues or self._mailbox.owns(queue)

    def _queue_bind(self, *binding: Any) -> None:
        """Nothing: bindings belong to a process, and each reader knows its own."""

    def _size(self, queue: str) -> int:
        # Asked at each publish (kombu 5.7 `queue_declare`), where a producer may only send.
        return 0

    def _purge(self, queue: str) -> int:
        self._client().purge_queue(QueueUrl=self._options.queue(queue).url)
        return 0

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        if self._mailbox.owns(queue):
            self._mailbox.delete(self, queue, *args)
            return
        raise PublishError(f"Queue {queue!r} is not deleted at run time; do it where it is made.")

    # Consuming

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Set how many tasks run at a time; the window is a little wider, see Leases."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self._leases.resize(prefetch_count)

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any
    ) -> None:
        """Start receiving from a configured queue, or hearing the control plane."""
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        if self._mailbox.owns(queue):
            self._mailbox.consume(self, queue, callback)
            return
        self._start_threads()
        if queue not in self._receivers:
            wait = self._options.wait_time_seconds
            # One try: the receiver itself tries again, and says so.
            client = new_client(self._options, read_timeout=wait + ANSWER_MARGIN, tries=1)
            receiver = Receiver(queue, self._options, client, self._leases, self._on_received)
            self._receivers[queue] = receiver
            self._leases.share_among(len(self._receivers))
            receiver.start()

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop receiving. What an open poll still brings is released."""
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None and self._mailbox.owns(queue):
            self._mailbox.cancel(queue)
        if receiver := self._receivers.pop(queue, None):
            receiver.stop()
            # Its open poll is awaited when the channel closes: SQS may answer it with a message.
            self._leaving.append(receiver)
            self._leases.share_among(len(self._receivers))

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Unused: the transport drains its one inbox for all channels."""
        raise NotImplementedError

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        raise NotImplementedError("SQS messages are consumed, not fetched one at a time.")

    def _start_threads(self) -> None:
        if self._settler is not None:
            return
        # Made here, before any thread could make another: from Python 3.12 on a cached property
        # has no lock.
        self._inbox = self.connection.inbox
        self._settler = Settler(
            self._options, new_client(self._options), lambda told: self._leases.telling(-told)
        )
        self._settler.start()
        if self._options.policy.heartbeat:
            self._heartbeat = Heartbeat(
                self._options,
                new_client(self._options, tries=1),
                self._leases,
                self._on_lost,
                self._watch_the_loop,
            )
            self._heartbeat.start()

    def _on_received(self, deliveries: list[Delivery]) -> None:
        """Runs on a receiver's thread: decode there, deliver on the loop."""
        assert self._inbox is not None
        self._inbox.put(
            [arrived for delivery in deliveries if (arrived := self._decoded(delivery))]
        )

    def _decoded(self, delivery: Delivery) -> tuple[str, dict[str, Any]] | None:
        if delivery.queue not in self._receivers or self._leases.pauses:
            self.end(delivery.tag, outcomes.NotStarted(self._release_after))
            return None
        if self._settler and self._settler.copies.are_sent(delivery):
            self.end(delivery.tag, outcomes.Copied())
            return None
        try:
            payload = decode(delivery, self._options.decode_json)
            due_in = seconds_until_due(payload["headers"])
        except Undecodable as exc:
            self.end(delivery.tag, outcomes.Refused(exc.reason, "Undecodable"))
            return None
        except Exception as exc:
            # Broad on purpose: no body may stop a receiver. A person has to see this message.
            reason = "the broker cannot decode the body"
            self.end(delivery.tag, outcomes.Refused(reason, type(exc).__name__))
            return None
        if due_in > CLOCK_TOLERANCE:
            self.end(delivery.tag, outcomes.NotDue(due_in), payload["headers"])
            return None
        # Celery would hold a task with an eta in memory (celery 5.7 worker/strategy.py).
        payload["headers"]["eta"] = None
        return delivery.queue, payload

    # Settling

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """End a delivery with what happened to it; without a word, it succeeded."""
        self._end_message(delivery_tag, outcomes.Succeeded())
        super().basic_ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """End a delivery with what happened to it; without a word, it is released or refused."""
        refused = outcomes.Refused("the message was rejected")
        self._end_message(delivery_tag, outcomes.NotStarted() if requeue else refused)
        self.qos.ack(delivery_tag)

    def _end_message(self, tag: str, unsaid: Happened) -> None:
        message = self.qos._delivered.get(tag)
        if message is None:
            return
        self.end(tag, message.happened or unsaid, message.headers, message.policy)

    def hand_over(self, tag: str) -> bool:
        """A task goes to the pool; False where it may not, since its delivery has ended."""
        return self._leases.promise(tag) if self.pool_has_processes else self.holds(tag)

    def started(self, tag: str, time_limit: float | None) -> Lease | None:
        """The task of a delivery runs now, for `time_limit` seconds at the most; None where the
        delivery has ended before: its message may be another worker's by now."""
        return self._leases.started(tag, time_limit)

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

    def _conclude(
        self,
        lease: Lease,
        happened: Happened,
        headers: dict[str, Any] | None = None,
        policy: Policy | None = None,
    ) -> None:
        if self._settler is None:
            return
        if lease.expires_at <= monotonic():
            journal.lease_lost(lease, "its time ran out")
            return
        delivery = lease.delivery
        outcome = decide(happened, delivery.count, policy or self._options.policy)
        task, id_ = (headers["task"], headers["id"]) if headers else (None, None)
        self._leases.telling(1)
        self._settler.settle(lease, outcome, task, id_)
        journal.ended(delivery, outcome, task, id_)

    def holds(self, tag: str) -> bool:
        """Whether this delivery is in flight here, with its lease."""
        return self._leases.holds(tag)

    def _watch_the_loop(self) -> None:
        """Hand back what waits behind an event loop that hangs, and receive no more until it beats.

        It hangs where it was silent for a lease's time and no task is running within its limits:
        in the solo pool a running task keeps the loop silent, and rightly so.
        """
        leases = self._leases.all()
        hangs = self.connection.silence() > self._options.policy.visibility_timeout
        hangs = hangs and not any(lease.is_running for lease in leases)
        if self._leases.pause(LOOP_HANGS, hangs):
            text = "The event loop hangs; nothing is received." if hangs else "It beats again."
            logger.error(text, extra={"event": "loop.hangs" if hangs else "loop.beats"})
        if hangs:
            for lease in leases:
                self.end(lease.delivery.tag, outcomes.NotStarted())

    def _on_lost(self, lease: Lease, why: str) -> None:
        if self._leases.take(lease.delivery.tag) is not None:
            journal.lease_lost(lease, why)
            self.on_lease_lost(lease.delivery.tag)

    # Pausing

    def pause(self, reason: str, release_after: float) -> None:
        """Receive nothing until `resume`, and hand back what has not started.

        That is shown to other workers `release_after` seconds later, and not before every poll of
        this worker that is open now has ended: else it would come back to it, and a delivery would
        be spent. Pauses for other reasons, and what is running, are left alone. Thread-safe.
        """
        longest_poll = self._options.wait_time_seconds + ANSWER_MARGIN
        self._release_after = max(math.ceil(release_after), longest_poll)
        self._leases.pause(reason)
        for lease in self._leases.take_waiting():
            message = self.qos._delivered.get(lease.delivery.tag)
            headers = message.headers if message else None
            self._conclude(lease, outcomes.NotStarted(self._release_after), headers)

    def resume(self, reason: str) -> None:
        """End the pause for this reason. Thread-safe."""
        self._leases.pause(reason, False)
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
            message = self.qos._delivered.get(lease.delivery.tag)
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
        if self.closed:
            return
        self.stop_receiving()
        self.await_polls()
        self.release(running=True)
        if self._settler is not None:
            self._settler.stop(FLUSH_TIMEOUT)
        if self._heartbeat is not None:
            self._heartbeat.stop(FLUSH_TIMEOUT)
        super().close()


def _cut_off(lease: Lease) -> Happened:
    return outcomes.Interrupted("WorkerShutdown", 0) if lease.is_running else outcomes.NotStarted()
