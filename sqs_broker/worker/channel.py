"""kombu's channel on SQS: queues, publishing, consuming, ack and reject."""

from collections.abc import Callable
from time import monotonic
from typing import Any

from kombu.transport import virtual

from sqs_broker.errors import ConfigurationError, PublishError
from sqs_broker.rules import outcomes
from sqs_broker.rules.outcomes import Happened
from sqs_broker.rules.policy import Policy
from sqs_broker.sqs.batching import Collected, collect, current
from sqs_broker.sqs.deliveries import Deliveries
from sqs_broker.sqs.publisher import Batch, check_arguments, check_readable, message_for
from sqs_broker.sqs.queue import Queue


class Message(virtual.Message):
    """One delivery of a task message. It records what happened to it.

    Celery calls only `ack` or `reject` on a channel, without a reason (kombu 5.7 `basic_reject`).
    So the worker records on the message what happened, and the channel reads it when it settles.
    """

    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        super().__init__(payload, channel=channel, **kwargs)
        #: What happened, as recorded first. If None, ack means success, and reject means released
        #: (with requeue) or refused.
        self.happened: Happened | None = None
        #: The policy of the message's task; if None, the queue's.
        self.policy: Policy | None = None
        #: Whether an outage may be the cause if the task exceeds its hard time limit.
        self.is_suspect = False

    @property
    def deliveries(self) -> int:
        """How often SQS has delivered the message, this one included."""
        return int(self.headers["delivery"].deliveries)

    @property
    def attempt(self) -> int:
        """The number of this attempt: one more than the runs that failed before."""
        return int(self.headers["delivery"].attempt)

    @property
    def may_share(self) -> bool:
        """Whether the message may run together with others."""
        return bool(self.channel.deliveries.may_share(self.delivery_tag))

    @property
    def has_grace(self) -> bool:
        """Whether the message is released, not dead-lettered, if its task is unknown."""
        return bool(self.channel.deliveries.has_grace(self.delivery_tag))

    def note(self, happened: Happened, policy: Policy | None = None) -> None:
        """Record what happened, before ack or reject. Only the first call counts."""
        if self.happened is None:
            self.happened, self.policy = happened, policy


class QoS(virtual.QoS):
    """kombu's table of unacknowledged messages. It never restores one: the leases know the messages
    in flight, and the channel releases them."""

    restore_at_shutdown = False


class Channel(virtual.Channel):
    """The channel that Celery and kombu call. Its `deliveries` manage the messages in flight.

    `basic_ack` and `basic_reject` may be called from any thread: Celery does so while a pool drains
    (celery 5.7 concurrency/prefork.py).
    """

    Message = Message
    QoS = QoS
    do_restore = False
    body_encoding = None
    supports_fanout = True
    #: The clock by which leases are measured, in seconds.
    clock: Callable[[], float] = staticmethod(monotonic)

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._options = connection.options
        self._driver = connection.sqs
        self._control = connection.control
        self._observers = connection.observers
        #: The plain messages, by their delivery tags (sqs_broker/worker/plain.py).
        self.plain: dict[str, Any] = {}
        #: If set, it collects the messages instead of sending them one by one (`publish_many`).
        self.batch: Batch | None = None
        #: The messages in flight. Consumers, requests and the code that stops or pauses a worker
        #: use it.
        self.deliveries = Deliveries(
            self._options,
            message_of=lambda tag: self.plain.get(tag) or self.qos._delivered.get(tag),
            silence=connection.silence,
            observers=connection.observers,
            clock=self.clock,
            attempts=connection.attempts,
        )

    # Publishing

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> None:
        """Send a task message. Raises UnknownQueue, PublishError if SQS would refuse it, and
        SendError if SQS does not confirm it within `publish_timeout`. Celery does not publish again
        after these: all tries are within that time. In a block `with batching()` the message is
        only collected.

        A message of the control plane goes there instead, and raises what
        `ControlConnection.publish` raises.
        """
        if self._control.publish(message, exchange, routing_key):
            return
        super().basic_publish(message, exchange, routing_key, **kwargs)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        check_arguments(message, self._options.schemas)
        if (tracing := self._options.tracing) is None:
            self._send(queue, message)
            return
        is_collected = self.batch is not None or current() is not None
        with tracing.sending(queue, message["headers"], is_collected=is_collected):
            self._send(queue, message)

    def _send(self, queue: str, message: dict[str, Any]) -> None:
        limit, sender = self._options.max_message_bytes, self.connection.sender
        to = Queue(self._options.queue(queue).url, sender.driver)
        outgoing = message_for(message, limit, self._options.eta_max)
        id_ = str(message["headers"].get("id"))
        check_readable(message, self._options.canvas)
        if self.batch:
            self.batch.add(to, outgoing, limit)
        elif not collect(Collected(sender, self._observers, queue, to, outgoing, id_, limit)):
            sender.send(queue, outgoing, id_)
            self._observers.published(queue, 1)

    def _put_fanout(self, exchange: str, message: Any, routing_key: str, **kwargs: Any) -> None:
        # Only the control plane has such an exchange, and its messages do not come here.
        raise PublishError(
            f"The exchange {exchange!r} is of the type fanout, which SQS does not have. Send the "
            "message to each queue, or let an SNS topic do it."
        )

    def published(self, url: str, count: int) -> None:
        """SQS took so many messages that `batch` collected for the queue with this URL."""
        names = (name for name, address in self._options.queues.items() if address.url == url)
        self._observers.published(next(names, url), count)

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        # kombu drops a message without a route; here the caller gets an error.
        queues: list[str] = super()._lookup(exchange, routing_key, default)
        if not queues:
            raise PublishError(f"No queue is bound to {exchange!r} with key {routing_key!r}.")
        return queues

    # Queues

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        if not self._control.owns(queue):
            self._options.queue(queue)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return queue in self._options.queues or self._control.owns(queue)

    def _queue_bind(self, *binding: Any) -> None:
        """Do nothing: bindings belong to a process, and each reader knows its own."""

    def _size(self, queue: str) -> int:
        # kombu asks this at each publish (5.7 `queue_declare`), and a producer may only send.
        return 0

    def _purge(self, queue: str) -> int:
        purged = self._sqs_queue(queue)
        count = purged.size()
        purged.purge()
        return count

    def _sqs_queue(self, name: str) -> Queue:
        return Queue(self._options.queue(name).url, self._driver)

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        if self._control.owns(queue):
            self._control.delete(self, queue, *args)
            return
        raise PublishError(
            f"Queue {queue!r} is not deleted at run time. Delete it with the tool that created it."
        )

    # Consuming

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Set how many tasks run at a time. The window of held messages is a little larger: see
        Leases."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self.deliveries.resize(prefetch_count)

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any
    ) -> None:
        """Start receiving from a configured queue, or from the control plane. Raises
        ConfigurationError for a configured queue with `no_ack`."""
        is_control = self._control.owns(queue)
        if no_ack and not is_control:
            raise ConfigurationError(
                f"Queue {queue!r}: no_ack=True is not supported, because SQS keeps a message until "
                "it is acknowledged. Remove it."
            )
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        if is_control:
            self._control.consume(self, queue, callback)
            return
        # The inbox is created here, before a thread could create a second one: from Python 3.12 on
        # a cached property has no lock.
        self.deliveries.receive(queue, self.connection.inbox)

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop receiving. Messages that an open receive call still returns are released."""
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None and self._control.owns(queue):
            self._control.cancel(queue)
        elif queue is not None:
            self.deliveries.leave(queue)

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Unused: the transport drains its one inbox for all channels."""
        raise NotImplementedError

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        raise NotImplementedError("SQS messages are consumed, not fetched one at a time.")

    # Settling

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """End a delivery with what its message recorded; without a record, it succeeded."""
        self.deliveries.end_message(delivery_tag, outcomes.Succeeded())
        super().basic_ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """End a delivery with what its message recorded; without a record, it is released if
        `requeue`, and refused if not."""
        refused = outcomes.Refused("the message was rejected")
        self.deliveries.end_message(delivery_tag, outcomes.NotStarted() if requeue else refused)
        self.qos.ack(delivery_tag)

    # Closing

    def close(self) -> None:
        """Release and settle the messages in flight, then close the channel."""
        if not self.closed:
            self.deliveries.close()
            super().close()
