"""One connection's part in the control plane: what it publishes, and what it hears."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.planes import plane_for
from sqs_broker.errors import ConfigurationError, NoThread, PublishError
from sqs_broker.machine.inbox import Inbox
from sqs_broker.options import ControlOptions, Kind

if TYPE_CHECKING:
    from sqs_broker.control.plane import Plane
    from sqs_broker.control.writer import Writer

logger = logging.getLogger(__name__)

#: The only type of content. Nothing from the wire is ever unpickled.
JSON = "application/json"

#: Messages that wait for this connection to be delivered, at the most: the reader waits for it,
#: and where that takes too long, it is events that are overwritten.
MOST_WAITING = 10_000


class Mailbox:
    """Publishes to the control plane, and hears what this connection's queues are bound to.

    What arrives is decoded on the reader's thread and put into `inbox`, as `(queue, message)`;
    whoever empties the inbox gives it to `deliver`.
    """

    def __init__(self, options: ControlOptions, inbox: Callable[[], Inbox]) -> None:
        self.options = options
        self._inbox = inbox
        self._callbacks: dict[str, Callable[[Any], Any]] = {}
        self._listeners: dict[str, list[_Bound]] = {}
        #: By queue, what cannot be heard yet: there was no room for its reader's thread.
        self._unheard: dict[str, list[_Bound]] = {}
        self._has_published = False
        self._waiting = 0
        self._changed = threading.Condition()
        #: Called on a reader's thread when this connection's commands are heard, for the first
        #: time and after each outage.
        self.on_commands_heard: Callable[[], None] = lambda: None

    @property
    def lost(self) -> int:
        """Events of this process that were never written."""
        writer = self._writer()
        return writer.lost if writer else 0

    # Publishing

    def publish(self, message: dict[str, Any], exchange: str, routing_key: str) -> bool:
        """Publish what belongs to the control plane; False, and nothing done, for all else.

        Events and replies go to a thread, and are lost where there is no MongoDB. A command is
        written here: raises ConfigurationError or ControlPlaneDown.
        """
        kind = self.options.kind(exchange)
        if kind is None:
            return False
        if message["content-type"] != JSON:
            raise PublishError(f"The control plane takes JSON only, not {message['content-type']}.")
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
        # A producer that lacks pymongo has sent its message already; a worker stops at its start.
        with suppress(ConfigurationError):
            return plane_for(self.options).writer
        return None

    # Hearing

    def owns(self, queue: str) -> bool:
        """Whether a queue is the control plane's."""
        return self.options.owns_queue(queue)

    def consume(self, channel: Any, queue: str, callback: Callable[[Any], Any]) -> None:
        """Hear what is published to a queue's bindings from now on.

        Raises ConfigurationError where there is no MongoDB, and NoThread where there is no room to
        read; but a worker, which only waits for commands, goes on without them, in the second case
        until `hear_all` hears them.
        """
        bindings = [
            (exchange, routing_key, arguments, kind)
            for exchange, routing_key, arguments in channel.state.queue_bindings(queue)
            if (kind := self.options.kind(exchange))
        ]
        if self.options.uri is None and all(kind is Kind.COMMANDS for *_, kind in bindings):
            return
        plane = plane_for(self.options)
        # Made here, before any thread could make another.
        inbox = self._inbox()
        self._callbacks[queue] = callback
        self._listeners[queue] = []
        for exchange, routing_key, arguments, kind in bindings:
            bound = _Bound(
                self, plane, inbox, channel, queue, exchange, routing_key, arguments, kind
            )
            try:
                self._listen(queue, bound)
            except NoThread:
                if kind is not Kind.COMMANDS:
                    self.cancel(queue)
                    raise
                self._unheard.setdefault(queue, []).append(bound)

    def hear_all(self) -> None:
        """Hear what could not be heard so far, if there is room for it now. For a loop, now and
        then."""
        for queue, bounds in tuple(self._unheard.items()):
            with suppress(NoThread):
                while bounds:
                    self._listen(queue, bounds[0])
                    del bounds[0]
                del self._unheard[queue]

    def _listen(self, queue: str, bound: "_Bound") -> None:
        is_open = bound.listen()
        self._listeners[queue].append(bound)
        if is_open:
            bound.catch_up()

    def cancel(self, queue: str) -> None:
        """Hear no more."""
        self._unheard.pop(queue, None)
        with self._changed:
            self._callbacks.pop(queue, None)
            self._changed.notify_all()
        for bound in self._listeners.pop(queue, ()):
            bound.leave()

    def deliver(self, queue: str, message: Any) -> None:
        """Give a message to its consumer; to nobody, where that has gone."""
        with self._changed:
            self._waiting -= 1
            self._changed.notify_all()
        if callback := self._callbacks.get(queue):
            callback(message)

    def hold(self, queue: str) -> bool:
        """Wait until one more may wait for delivery; False where nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting < MOST_WAITING or queue not in self._callbacks
            )
            is_wanted = queue in self._callbacks
            self._waiting += is_wanted
            return is_wanted

    def delete(self, channel: Any, queue: str, exchange: str, routing_key: str, *_: object) -> None:
        """Forget a binding of a queue, and the replies that nobody waits for any more."""
        table = channel.get_table(exchange)
        table[:] = [entry for entry in table if entry[-1] != queue]
        if self.options.kind(exchange) is Kind.REPLIES and self.options.uri is not None:
            plane_for(self.options).forget_replies(exchange, routing_key)

    def close(self) -> None:
        """Hear no more, and wait a little until what was published is written."""
        for queue in tuple(self._listeners):
            self.cancel(queue)
        if self._has_published:
            plane_for(self.options).writer.flush()


class _Bound:
    """One binding of one queue."""

    def __init__(
        self,
        mailbox: Mailbox,
        plane: "Plane",
        inbox: Inbox,
        channel: Any,
        queue: str,
        exchange: str,
        routing_key: str,
        arguments: Any,
        kind: Kind,
    ) -> None:
        self.exchange = exchange
        self._mailbox = mailbox
        self._plane = plane
        self._inbox = inbox
        self._channel = channel
        self._queue = queue
        self._routing_key = routing_key
        self._kind = kind
        self._type = channel.typeof(exchange)
        self._table = [self._type.prepare_bind(queue, exchange, routing_key, arguments)]

    def opened(self) -> None:
        """Take what came before the reader did."""
        self.catch_up()
        if self._kind is Kind.COMMANDS:
            self._mailbox.on_commands_heard()

    def catch_up(self) -> None:
        """Take the replies that have come already."""
        while self._kind is Kind.REPLIES and (reply := self._take_reply(self._routing_key)):
            self._hand_over(reply)

    def arrived(self, document: dict[str, Any]) -> None:
        """Take a message, if this queue is bound to its routing key."""
        routing_key = document["routing_key"]
        if not self._type.lookup(self._table, self.exchange, routing_key, None):
            return
        if self._kind is not Kind.REPLIES:
            self._hand_over(document)
        elif reply := self._take_reply(routing_key):
            self._hand_over(reply)

    def listen(self) -> bool:
        """Hear from now on; whether somebody reads already. Raises NoThread."""
        return self._plane.listen(self)

    def leave(self) -> None:
        """Hear no more."""
        self._plane.leave(self)

    def _take_reply(self, routing_key: str) -> dict[str, Any] | None:
        return self._plane.store.take_reply(self.exchange, routing_key)

    def _hand_over(self, document: dict[str, Any]) -> None:
        try:
            message = self._message(document)
        except Exception as exc:
            # Broad on purpose: whoever may write there could otherwise make everybody deaf.
            logger.warning(
                "A message of the control plane cannot be read (%s); it is left out.",
                type(exc).__name__,
                extra={"event": "control.unreadable", "error": type(exc).__name__},
            )
            return
        if self._mailbox.hold(self._queue):
            self._inbox.put([(self._queue, message)])

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
