"""The control plane of one process: a MongoDB client, a writer, and a reader for each exchange."""

import json
import threading
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

from pymongo.errors import PyMongoError

from sqs_broker.control import revokes
from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.faults import Refused
from sqs_broker.control.store import Store
from sqs_broker.control.tail import Tail
from sqs_broker.control.writer import Writer
from sqs_broker.errors import ControlPlaneDown
from sqs_broker.options import ControlOptions

#: Seconds that a reader without listeners keeps running: one command often follows another.
IDLE_SECONDS = 30.0


class Listener(Protocol):
    """Receives the messages that are broadcast to one exchange. Called on the reader's thread."""

    exchange: str

    def opened(self) -> None:
        """Called when the reader begins: from now on no message is missed."""

    def arrived(self, document: dict[str, Any]) -> None:
        """Called for each message of the exchange. The listener filters by its own binding."""


class Plane:
    """The control plane, shared by all connections of a process. Thread-safe. Its threads start
    when they are first needed."""

    def __init__(self, options: ControlOptions) -> None:
        self._options = options
        self.store = Store(options)
        self.writer = Writer(self.store)
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Listener]] = {}
        self._tails: dict[str, Tail] = {}
        self._open: set[str] = set()
        self._unused_since: dict[str, float] = {}
        self._is_closed = False

    def command(self, message: Broadcast) -> None:
        """Write a command before this returns. Raises ControlPlaneDown, which says what part of it
        was written."""
        try:
            self._write(message)
        except Refused as exc:
            raise ControlPlaneDown(f"MongoDB did not accept the command: {exc.fault}") from exc
        except PyMongoError as exc:
            raise ControlPlaneDown(
                f"MongoDB did not accept the command ({type(exc).__name__}). Check that it runs, "
                f"and that this user may write to the database {self._options.database!r}."
            ) from exc

    def _write(self, message: Broadcast) -> None:
        not_kept: Refused | None = None
        is_revoke = False
        try:
            # The revoke is stored first, so that a worker that starts in between still reads it.
            is_revoke = revokes.keep(self.store, json.loads(message.body))
        except Refused as exc:
            not_kept = exc
        try:
            self.store.broadcast([message])
        except Refused as exc:
            if not is_revoke:
                raise
            raise ControlPlaneDown(
                "The revoke is stored for the workers that start later, but not sent to those that "
                f"run: {exc.fault}"
            ) from exc
        if not_kept is not None:
            raise ControlPlaneDown(
                "The running workers receive this revoke, but it is not stored for those that "
                f"start later: {not_kept.fault}"
            ) from not_kept

    def delete_replies(self, exchange: str, routing_key: str) -> None:
        """Delete replies that a client no longer waits for. If this fails, they expire."""
        with suppress(PyMongoError):
            self.store.delete_replies(exchange, routing_key)

    def listen(self, listener: Listener) -> bool:
        """Add a listener. Return whether its exchange is already being read.

        Raises NoThread if no reader can start; then the listener is not added.
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
        """Remove a listener. Its reader ends after IDLE_SECONDS if no listener is left."""
        with self._lock:
            self._listeners[listener.exchange].remove(listener)
            self._unused_since[listener.exchange] = monotonic()

    def close(self) -> None:
        """Write the waiting messages, and end the readers within a second."""
        self.writer.flush()
        self._is_closed = True
        self.store.close()

    def _new_tail(self, exchange: str) -> Tail:
        def opened() -> None:
            with self._lock:
                self._open.add(exchange)
            for listener in self._listeners_of(exchange):
                listener.opened()

        def arrived(document: dict[str, Any]) -> None:
            for listener in self._listeners_of(exchange):
                listener.arrived(document)

        stream = self.store.stream(exchange)
        return Tail(stream, exchange, opened, arrived, lambda: self._is_wanted(exchange))

    def _listeners_of(self, exchange: str) -> list[Listener]:
        with self._lock:
            return list(self._listeners.get(exchange, ()))

    def _is_wanted(self, exchange: str) -> bool:
        with self._lock:
            if self._is_closed:
                return False
            if self._listeners[exchange]:
                return True
            if monotonic() - self._unused_since[exchange] < IDLE_SECONDS:
                return True
            del self._tails[exchange]
            self._open.discard(exchange)
            return False
