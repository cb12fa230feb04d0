"""What one process has of the control plane: a client, a writer, and a reader for each exchange."""

import atexit
import os
import threading
from time import monotonic
from typing import Any, Protocol

from sqs_broker.control.store import Store
from sqs_broker.control.tail import Tail
from sqs_broker.control.writer import Writer
from sqs_broker.options import ControlOptions

#: Seconds that a reader stays for the next listener: one command often follows another.
LINGER = 30.0

#: Seconds that the end of a process waits until its last events are written.
FLUSH_TIMEOUT = 2.0


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
        self.store = Store(options)
        self.writer = Writer(self.store)
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Listener]] = {}
        self._tails: dict[str, Tail] = {}
        self._open: set[str] = set()
        self._unheard_since: dict[str, float] = {}
        self._is_closed = False

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
        self.writer.flush(FLUSH_TIMEOUT)
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


_planes: dict[ControlOptions, Plane] = {}
_lock = threading.Lock()

#: Those of the parents of this process: never used, and never closed, for the sockets are theirs.
_left_behind: list[Plane] = []


def plane_for(options: ControlOptions) -> Plane:
    """This process's plane. Raises ConfigurationError where the options name no MongoDB."""
    with _lock:
        if options not in _planes:
            _planes[options] = Plane(options)
        return _planes[options]


def _start_anew() -> None:
    global _lock
    # Another thread may have held it at the fork.
    _lock = threading.Lock()
    _left_behind.extend(_planes.values())
    _planes.clear()


def _close_all() -> None:
    for plane in _planes.values():
        plane.close()


os.register_at_fork(after_in_child=_start_anew)
atexit.register(_close_all)
