"""What one process has of the control plane: a client, a writer, and a reader for each exchange."""

import json
import threading
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

from pymongo.errors import PyMongoError

from sqs_broker.control import revokes
from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.store import Store
from sqs_broker.control.tail import Tail
from sqs_broker.control.writer import Writer
from sqs_broker.errors import ControlPlaneDown
from sqs_broker.options import ControlOptions

#: Seconds that a reader stays for the next listener: one command often follows another.
LINGER = 30.0


class Listener(Protocol):
    """Who hears what is broadcast to one exchange. Called on the reader's thread."""

    exchange: str

    def opened(self) -> None:
        """From now on nothing is missed."""

    def arrived(self, document: dict[str, Any]) -> None:
        """A message was broadcast; whether it is for this listener, it decides itself."""


class Plane:
    """Shared by all connections of a process. Thread-safe. Threads start when first needed."""

    def __init__(self, options: ControlOptions) -> None:
        self._options = options
        self.store = Store(options)
        self.writer = Writer(self.store)
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Listener]] = {}
        self._tails: dict[str, Tail] = {}
        self._open: set[str] = set()
        self._unheard_since: dict[str, float] = {}
        self._is_closed = False

    def command(self, message: Broadcast) -> None:
        """Write a command, before this returns. Raises ControlPlaneDown."""
        try:
            # First, so that a worker that starts in between hears of it either way.
            revokes.keep(self.store, json.loads(message.body))
            self.store.broadcast([message])
        except PyMongoError as exc:
            raise ControlPlaneDown(
                f"MongoDB does not take the command ({type(exc).__name__}). Check that it runs, "
                f"and that this user may write to the database {self._options.database!r}."
            ) from exc

    def forget_replies(self, exchange: str, routing_key: str) -> None:
        """Delete the replies that a client does not wait for any more; else they expire."""
        with suppress(PyMongoError):
            self.store.forget_replies(exchange, routing_key)

    def listen(self, listener: Listener) -> bool:
        """Add a listener; whether its exchange is being read already.

        Raises NoThread where nobody can read it; then it is no listener.
        """
        exchange = listener.exchange
        with self._lock:
            if exchange not in self._tails:
                tail = self._new_tail(exchange)
                tail.start()
                self._tails[exchange] = tail
            self._listeners.setdefault(exchange, []).append(listener)
            return exchange in self._open

    def leave(self, listener: Listener) -> None:
        """Take a listener away; its reader ends a little later, unless another one comes."""
        with self._lock:
            self._listeners[listener.exchange].remove(listener)
            self._unheard_since[listener.exchange] = monotonic()

    def close(self) -> None:
        """Write what waits, and end the readers within a second."""
        self.writer.flush()
        self._is_closed = True
        self.store.close()

    def _new_tail(self, exchange: str) -> Tail:
        def opened() -> None:
            with self._lock:
                self._open.add(exchange)
            for listener in self._heard_by(exchange):
                listener.opened()

        def arrived(document: dict[str, Any]) -> None:
            for listener in self._heard_by(exchange):
                listener.arrived(document)

        return Tail(self.store, exchange, opened, arrived, lambda: self._is_wanted(exchange))

    def _heard_by(self, exchange: str) -> list[Listener]:
        with self._lock:
            return list(self._listeners.get(exchange, ()))

    def _is_wanted(self, exchange: str) -> bool:
        with self._lock:
            if self._is_closed:
                return False
            if self._listeners[exchange] or monotonic() - self._unheard_since[exchange] < LINGER:
                return True
            del self._tails[exchange]
            self._open.discard(exchange)
            return False
