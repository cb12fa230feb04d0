"""The thread that reads the messages of one exchange as they are written."""

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from bson import Timestamp
from pymongo.errors import OperationFailure

from sqs_broker.control.gaps import Gaps
from sqs_broker.control.outage import FIRST_PAUSE, Outage
from sqs_broker.control.store import start_of
from sqs_broker.control.stream import Stream
from sqs_broker.errors import NoThread
from sqs_broker.machine import threads

logger = logging.getLogger(__name__)

#: Most documents that MongoDB returns when a cursor is opened. Others need a `getMore`, which can
#: fail although the cursor could be opened.
#: https://www.mongodb.com/docs/manual/reference/method/js-cursor/#cursor-batches
FIRST_BATCH = 101

#: Seconds from the first event that was missed to the log line, so that all writers are in it.
GATHER = 5.0

#: MongoDB's error code if the capped collection has overwritten a reader's position.
POSITION_LOST = 136


class CursorGone(Exception):
    """MongoDB has closed a cursor that should wait for more documents."""


class Tail:
    """Reads one exchange through a cursor that waits on the server. After a failure it reads again.

    `on_open` is called at the start and after each failure: from then on no message is missed.
    `on_message` is called for each message. `is_wanted` is called at least once a second; when it
    returns false, the thread ends. `first_pause`: the longest pause after one failure, in seconds.
    """

    def __init__(
        self,
        stream: Stream,
        exchange: str,
        on_open: Callable[[], None],
        on_message: Callable[[dict[str, Any]], None],
        is_wanted: Callable[[], bool],
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._stream = stream
        self._exchange = exchange
        self._on_open = on_open
        self._on_message = on_message
        self._is_still_wanted = is_wanted
        self._has_ended = False
        self._seen: Timestamp | None = None
        self._pause = threading.Event()
        self._outage = Outage(f"readers of {exchange}", first_pause)
        self._has_read = False
        self._gaps = Gaps()
        self._missed = 0
        self._report_at = float("inf")
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
            except CursorGone as exc:
                # If documents came before, MongoDB has overwritten the next ones: pymongo ends such
                # a cursor without the error. The reader goes on with what is left.
                if not self._has_read and self._is_wanted():
                    self._pause.wait(self._outage.failed(exc))
            except Exception as exc:
                # Broad on purpose: without this thread the process receives nothing any more.
                if isinstance(exc, OperationFailure) and exc.code == POSITION_LOST:
                    self._seen = None
                if self._is_wanted():
                    self._pause.wait(self._outage.failed(exc))
        self._report(float("inf"))

    def _is_wanted(self) -> bool:
        # After false it is not called again: another thread may have replaced this one by then.
        self._has_ended = self._has_ended or not self._is_still_wanted()
        return not self._has_ended

    def _read(self) -> None:
        self._seen = start_of(self._seen, self._stream.newest())
        # Every message after this position will be read. `on_open` is called before the cursor is
        # opened: if the client were killed during the call, the open cursor would stay on the
        # server.
        self._on_open()
        self._has_read = False
        left = FIRST_BATCH
        with self._stream.read_on(self._exchange, self._seen) as cursor:
            while self._is_wanted():
                document = next(cursor, None)
                if left < 0:
                    self._outage.is_over()
                left = left - 1 if document is not None else -1
                self._report(monotonic())
                if document is not None:
                    self._has_read = True
                    self._count(document)
                    self._on_message(document)
                    self._seen = document["at"]
                elif not cursor.alive:
                    raise CursorGone("the collection was dropped or emptied")

    def _count(self, document: dict[str, Any]) -> None:
        if missed := self._gaps.missed(document):
            if not self._missed:
                self._report_at = monotonic() + GATHER
            self._missed += missed

    def _report(self, now: float) -> None:
        if not self._missed or now < self._report_at:
            return
        logger.warning(
            "Control plane: readers of %s were too slow or MongoDB was unavailable; at least %s "
            "events were overwritten before they were read.",
            self._exchange,
            self._missed,
            extra={"event": "control.missed", "count": self._missed},
        )
        self._missed = 0
