"""The control plane of one kombu connection: what it publishes and what its queues receive."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.planes import plane_for
from sqs_broker.control.waiting import Read, Waiting
from sqs_broker.errors import ConfigurationError, NoThread, PublishError
from sqs_broker.machine.inbox import Inbox
from sqs_broker.options import ControlOptions, Kind, Options

if TYPE_CHECKING:
    from sqs_broker.control.plane import Plane
    from sqs_broker.control.writer import Writer

logger = logging.getLogger(__name__)

#: The only content type. No message is ever unpickled.
JSON = "application/json"


class ControlConnection:
    """Publishes to the control plane, and receives the messages for this connection's queues.

    The reader's thread decodes a message and puts it into `inbox` as `(queue, read)`. The code that
    empties the inbox passes both to `deliver`.
    """

    def __init__(
        self,
        options: Options,
        inbox: Callable[[], Inbox],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._given = options
        self._inbox = inbox
        self._callbacks: dict[str, Callable[[Any], Any]] = {}
        self._listeners: dict[str, list[_Bound]] = {}
        #: By queue, the bindings whose reader's thread could not start yet.
        self._unread: dict[str, list[_Bound]] = {}
        self._has_published = False
        self._waiting = Waiting(clock)
        #: Called on a reader's thread when it begins to read this connection's commands: at the
        #: start and after each outage.
        self.on_commands_open: Callable[[], None] = lambda: None

    @cached_property
    def options(self) -> ControlOptions:
        """Where the control plane is stored. Read when it is first needed: a producer does not need
        it."""
        return self._given.control_options()

    @property
    def lost(self) -> int:
        """Number of events of this process that were never written."""
        writer = self._writer()
        return writer.lost if writer else 0

    # Publishing

    def publish(self, message: dict[str, Any], exchange: str, routing_key: str) -> bool:
        """Publish a message of the control plane. Return False, and do nothing, for any other.

        A thread writes events and replies; without a MongoDB they are lost. A command is written
        before this returns: raises ConfigurationError or ControlPlaneDown. Raises PublishError if
        the content is not JSON.
        """
        # The default exchange is that of task messages.
        kind = self.options.kind(exchange) if exchange else None
        if kind is None:
            return False
        if message["content-type"] != JSON:
            raise PublishError(f"The control plane takes only JSON, not {message['content-type']}.")
        self.send(kind, Broadcast(exchange, routing_key, message["headers"], message["body"]))
        return True

    def send(self, kind: Kind, message: Broadcast) -> None:
        """Publish a message of the control plane."""
        if kind is Kind.COMMANDS:
            plane_for(self.options).command(message)
        elif writer := self._writer():
            self._has_published = True
            put = writer.put_events if kind is Kind.EVENTS else writer.put_reply
            put(message)

    def _writer(self) -> "Writer | None":
        if self.options.uri is None:
            return None
        # Without pymongo a worker does not start. A producer has already sent its task message, so
        # a missing event must not raise.
        with suppress(ConfigurationError):
            return plane_for(self.options).writer
        return None

    # Receiving

    def owns(self, queue: str) -> bool:
        """Whether a queue belongs to the control plane."""
        return queue not in self._given.queues and self.options.owns_queue(queue)

    def consume(self, channel: Any, queue: str, callback: Callable[[Any], Any]) -> None:
        """Receive from now on what is published to a queue's bindings.

        Raises ConfigurationError if no MongoDB is configured, and NoThread if a reader's thread
        cannot start. For commands neither is raised, because a worker can run without them; in the
        second case `retry_readers` tries again.
        """
        bindings = [
            (exchange, routing_key, arguments, kind)
            for exchange, routing_key, arguments in channel.state.queue_bindings(queue)
            if (kind := self.options.kind(exchange))
        ]
        if self.options.uri is None and all(kind is Kind.COMMANDS for *_, kind in bindings):
            return
        plane = plane_for(self.options)
        # Created here, before a thread could create a second one.
        self._inbox()
        self._callbacks[queue] = callback
        self._listeners[queue] = []
        for exchange, routing_key, arguments, kind in bindings:
            bound = _Bound(self, plane, channel, queue, exchange, routing_key, arguments, kind)
            try:
                self._listen(queue, bound)
            except NoThread:
                if kind is not Kind.COMMANDS:
                    self.cancel(queue)
                    raise
                self._unread.setdefault(queue, []).append(bound)

    def retry_readers(self) -> None:
        """Try again to start the readers' threads that could not start. Called regularly by the
        event loop."""
        for queue, bounds in tuple(self._unread.items()):
            with suppress(NoThread):
                while bounds:
                    self._listen(queue, bounds[0])
                    del bounds[0]
                del self._unread[queue]

    def _listen(self, queue: str, bound: "_Bound") -> None:
        is_open = bound.listen()
        self._listeners[queue].append(bound)
        if is_open:
            bound.catch_up()

    def cancel(self, queue: str) -> None:
        """Stop receiving for a queue."""
        self._unread.pop(queue, None)
        self._callbacks.pop(queue, None)
        self._waiting.unwanted()
        for bound in self._listeners.pop(queue, ()):
            bound.leave()

    def deliver(self, queue: str, read: Read) -> None:
        """Pass a message to its consumer; drop it if that consumer was cancelled, or if it is an
        event that has waited for too long."""
        is_due = self._waiting.leave(read)
        if is_due and (callback := self._callbacks.get(queue)):
            callback(read.message)

    def put(self, queue: str, message: Any, events: int) -> None:
        """Put a message with so many events into the inbox, unless it is dropped. Called on a
        reader's thread, which waits here if too many commands or replies do."""
        read = self._waiting.enter(message, events, lambda: queue in self._callbacks)
        if read is not None:
            self._inbox().put([(queue, read)])

    def delete(self, channel: Any, queue: str, exchange: str, routing_key: str, *_: object) -> None:
        """Remove a binding of a queue, and delete the replies that no client waits for any more."""
        table = channel.get_table(exchange)
        table[:] = [entry for entry in table if entry[-1] != queue]
        if self.options.kind(exchange) is Kind.REPLIES and self.options.uri is not None:
            plane_for(self.options).delete_replies(exchange, routing_key)

    def close(self) -> None:
        """Stop receiving, and wait up to two seconds until published messages are written."""
        for queue in tuple(self._listeners):
            self.cancel(queue)
        if self._has_published:
            plane_for(self.options).writer.flush()


class _Bound:
    """One binding of one queue."""

    def __init__(
        self,
        connection: ControlConnection,
        plane: "Plane",
        channel: Any,
        queue: str,
        exchange: str,
        routing_key: str,
        arguments: Any,
        kind: Kind,
    ) -> None:
        self.exchange = exchange
        self._connection = connection
        self._plane = plane
        self._channel = channel
        self._queue = queue
        self._routing_key = routing_key
        self._kind = kind
        self._type = channel.typeof(exchange)
        self._table = [self._type.prepare_bind(queue, exchange, routing_key, arguments)]

    def opened(self) -> None:
        """Take the replies that were written before the reader began."""
        self.catch_up()
        if self._kind is Kind.COMMANDS:
            self._connection.on_commands_open()

    def catch_up(self) -> None:
        """Take the replies that are already stored."""
        while self._kind is Kind.REPLIES and (reply := self._take_reply(self._routing_key)):
            self._put(reply)

    def arrived(self, document: dict[str, Any]) -> None:
        """Take a message if this queue is bound to its routing key."""
        routing_key = document.get("routing_key")
        if not isinstance(routing_key, str):
            _log_unreadable(KeyError())
            return
        if not self._type.lookup(self._table, self.exchange, routing_key, None):
            return
        if self._kind is not Kind.REPLIES:
            self._put(document)
        elif reply := self._take_reply(routing_key):
            self._put(reply)

    def listen(self) -> bool:
        """Start to receive. Return whether the exchange is already being read. Raises NoThread."""
        return self._plane.listen(self)

    def leave(self) -> None:
        """Stop receiving."""
        self._plane.leave(self)

    def _take_reply(self, routing_key: str) -> dict[str, Any] | None:
        return self._plane.store.take_reply(self.exchange, routing_key)

    def _put(self, document: dict[str, Any]) -> None:
        try:
            message = self._message(document)
        except Exception as exc:
            # Broad on purpose: one bad document must not end the readers of all processes.
            _log_unreadable(exc)
            return
        self._connection.put(self._queue, message, self._events(message))

    def _events(self, message: Any) -> int:
        if self._kind is not Kind.EVENTS:
            return 0
        return len(message.payload) or 1 if isinstance(message.payload, list) else 1

    def _message(self, document: dict[str, Any]) -> Any:
        about = {"exchange": self.exchange, "routing_key": document["routing_key"]}
        payload = {
            "body": document["body"],
            "headers": document["headers"],
            "content-type": JSON,
            "content-encoding": "utf-8",
            "properties": {"delivery_tag": str(document["_id"]), "delivery_info": about},
        }
        message = self._channel.Message(payload, channel=self._channel)
        message.accept = {JSON}
        message.decode()
        return message


def _log_unreadable(exc: Exception) -> None:
    logger.warning(
        "A message of the control plane cannot be read (%s); it is skipped.",
        type(exc).__name__,
        extra={"event": "control.unreadable", "error": type(exc).__name__},
    )
