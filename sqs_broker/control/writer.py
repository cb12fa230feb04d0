"""The thread that writes the events and replies of this process, many in one operation."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from kombu.utils.json import dumps
from pymongo.errors import ConnectionFailure

from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.outage import FIRST_PAUSE, Outage
from sqs_broker.control.store import Store
from sqs_broker.machine import threads

#: Most events that wait to be written, about 20 MB. More are lost.
MOST_WAITING = 20_000

#: Most messages in one operation: about 2 MB if each is a full list of events.
BATCH = 200

#: Seconds that an event waits for others, to be written in one operation.
GATHER = 0.1

#: Longest wait for the last events when a connection or a process ends, in seconds.
FLUSH_TIMEOUT = 2.0


class Writer:
    """Accepts messages from any thread without blocking it, and writes them in its own thread.

    The thread starts with the first message. Events are lost, and counted, if MongoDB is too slow
    for them or unavailable for long.
    """

    def __init__(
        self, store: Store, gather: float = GATHER, first_pause: float = FIRST_PAUSE
    ) -> None:
        self._store = store
        self._gather = gather
        self._changed = threading.Condition()
        self._events: deque[tuple[Broadcast, int]] = deque()
        self._replies: deque[Broadcast] = deque()
        self._waiting = 0
        self._is_writing = False
        self._is_hurried = False
        self._thread: threading.Thread | None = None
        self._pause = threading.Event()
        self._outage = Outage("events", first_pause)
        self._reply_outage = Outage("replies", first_pause)
        self._lost_before = 0
        self._lost_replies = 0
        #: Number of events and replies that were never written.
        self.lost = 0

    def put_events(self, message: Broadcast) -> None:
        """Queue a message with one event, or with a list of events, to be written soon."""
        weight = len(message.body) if isinstance(message.body, list) else 1
        message.events = weight
        with self._changed:
            if self._waiting + weight > MOST_WAITING:
                self.lost += weight
            else:
                self._waiting += weight
                self._events.append((message, weight))
            if self._thread is None or len(self._events) in (1, BATCH):
                self._wake()

    def put_reply(self, message: Broadcast) -> None:
        """Queue a reply to be written at once."""
        with self._changed:
            self._replies.append(message)
            self._wake()

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Wait up to `timeout` seconds until everything is written. Return whether it is. Returns
        at once in an outage or if the thread could not start."""
        with self._changed:
            self._is_hurried = True
            if not self._is_empty():
                self._wake()
            self._changed.wait_for(lambda: self._is_empty() or not self._can_write(), timeout)
            self._is_hurried = False
            return self._is_empty()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threads.start(self._run, "control-writer")
        self._changed.notify_all()

    def _can_write(self) -> bool:
        is_available = not (self._outage.lasts or self._reply_outage.lasts)
        return self._thread is not None and is_available

    def _run(self) -> None:
        while True:
            replies, events = self._take()
            self._write(replies, events)
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()

    def _take(self) -> tuple[list[Broadcast], list[tuple[Broadcast, int]]]:
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._replies)
            self._changed.wait_for(self._is_worth_an_operation, self._gather)
            replies, events = list(self._replies), list(self._events)[:BATCH]
            self._replies.clear()
            for _, weight in events:
                self._events.popleft()
                self._waiting -= weight
            self._is_writing = True
            return replies, events

    def _is_worth_an_operation(self) -> bool:
        return bool(self._replies) or len(self._events) >= BATCH or self._is_hurried

    def _is_empty(self) -> bool:
        return not (self._events or self._replies or self._is_writing)

    def _write(self, replies: list[Broadcast], events: list[tuple[Broadcast, int]]) -> None:
        """Write the messages, and try again while MongoDB is unavailable. If MongoDB refuses the
        replies or the events, these are lost, and the others are written."""
        replies = [reply for reply in replies if self._is_json(reply)]
        messages = [message for message in _joined(events) if self._is_json(message)]
        if replies:
            if self._is_taken(self._store.reply, replies, self._reply_outage):
                self._reply_outage.is_over(self._lost_replies)
                self._lost_replies = 0
            else:
                self._lost_replies += len(replies)
                self._lost_before += len(replies)
        if messages and self._is_taken(self._store.broadcast, messages, self._outage):
            self._outage.is_over(self.lost - self._lost_before)
            self._lost_before = self.lost

    def _is_taken(
        self,
        write: Callable[[list[Broadcast]], None],
        messages: list[Broadcast],
        outage: Outage,
    ) -> bool:
        while True:
            try:
                write(messages)
            except ConnectionFailure as exc:
                self._await_mongodb(outage.failed(exc))
            except Exception as exc:
                # Broad on purpose: if these cannot be written, the next ones still must be.
                self.lost += sum(message.events for message in messages)
                pause = outage.failed(exc)
                # The next replies are tried at once, because their clients do not wait long.
                self._await_mongodb(pause if outage is self._outage else 0)
                return False
            else:
                return True

    def _await_mongodb(self, pause: float) -> None:
        with self._changed:
            self._changed.notify_all()
        self._pause.wait(pause)

    def _is_json(self, message: Broadcast) -> bool:
        """Encode a message's body as JSON. Return False if it cannot be encoded, and is lost. Of a
        list of events, only those are lost that cannot be encoded."""
        body = message.body
        if isinstance(body, str):
            return True
        if (text := _json(body)) is None and isinstance(body, list):
            texts = [each for each in map(_json, body) if each is not None]
            self.lost += len(body) - len(texts)
            message.events = len(texts)
            message.body = f"[{', '.join(texts)}]"
            return bool(texts)
        if text is None:
            self.lost += message.events
            return False
        message.body = text
        return True


def _joined(events: Iterable[tuple[Broadcast, int]]) -> list[Broadcast]:
    """The same events in fewer messages."""
    joined: list[Broadcast] = []
    for message, _ in events:
        if not (joined and joined[-1].takes_in(message)):
            joined.append(message)
    return joined


def _json(body: Any) -> str | None:
    try:
        return str(dumps(body))
    except (TypeError, ValueError, RecursionError):
        return None
