"""The thread that reads what is broadcast to one exchange, from the moment it is written."""

import threading
from collections.abc import Callable
from typing import Any

from bson import Timestamp
from pymongo.errors import OperationFailure

from sqs_broker.control.outage import Outage
from sqs_broker.control.store import Store, start_of
from sqs_broker.errors import NoThread
from sqs_broker.machine import threads

#: MongoDB's code for a reader that was slower than the capped collection is overwritten.
POSITION_LOST = 136


class CursorGone(Exception):
    """MongoDB has ended a cursor that was to wait for more."""


class Tail:
    """Reads one exchange through a cursor that waits at the server, and outlives every fault.

    `on_open` is called at the start, and after each fault: from then on nothing is missed;
    `on_message` for each message; `is_wanted` at least once a second, and the thread ends when it
    says no.
    """

    def __init__(
        self,
        store: Store,
        exchange: str,
        on_open: Callable[[], None],
        on_message: Callable[[dict[str, Any]], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._on_open = on_open
        self._on_message = on_message
        self._is_still_wanted = is_wanted
        self._has_ended = False
        self._seen: Timestamp | None = None
        self._pause = threading.Event()
        self._outage = Outage(f"readers of {exchange}")
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Raises NoThread."""
        name = f"control-{self._exchange}"
        self._thread = threads.start(self._run, name)
        if self._thread is None:
            raise NoThread(name)

    def _run(self) -> None:
        while self._is_wanted():
            try:
                self._read()
            except Exception as exc:
                # Broad on purpose: without this thread nobody hears the control plane any more.
                if isinstance(exc, OperationFailure) and exc.code == POSITION_LOST:
                    self._seen = None
                if self._is_wanted():
                    self._pause.wait(self._outage.failed(exc))

    def _is_wanted(self) -> bool:
        # Asked once more after a no, another thread may have been started in this one's place.
        self._has_ended = self._has_ended or not self._is_still_wanted()
        return not self._has_ended

    def _read(self) -> None:
        self._seen = start_of(self._seen, self._store.newest())
        # All that is written after this instant is read; and before there is a cursor, since one
        # that is not being waited on outlives a client that is killed.
        self._on_open()
        with self._store.read_on(self._exchange, self._seen) as cursor:
            while self._is_wanted():
                document = next(cursor, None)
                self._outage.is_over()
                if document is not None:
                    self._on_message(document)
                    self._seen = document["at"]
                elif not cursor.alive:
                    raise CursorGone("the collection was dropped, or emptied")
