"""Gathers messages of many requests into few calls to SQS, without a timer.

A lone message is sent at once. While CALLS calls are on their way, further messages wait, and fill
the next call when one of these has ended. A call that is full by then is sent at once, too, up to
MOST_CALLS: it costs no more than later, and nobody waits for it.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from app.errors import Unavailable
from sqs_broker.limits import BATCH, MOST_BYTES
from sqs_broker.machine.seldom import Seldom
from sqs_broker.rules.backoff import full_jitter
from sqs_broker.sqs.errors import Errors, SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing, name_of

logger = logging.getLogger(__name__)

#: Most calls at the same time that are not full.
CALLS = 4

#: Most calls at the same time. botocore keeps ten connections of a client, and makes a new one for
#: each further call (`max_pool_connections`,
#: https://botocore.amazonaws.com/v1/documentation/api/latest/reference/config.html).
MOST_CALLS = 10

#: Most bytes of all messages that wait, whatever their number.
MOST_WAITING_BYTES = 64 * MOST_BYTES

#: Longest pause before an entry is sent again that SQS failed for an internal reason, in seconds.
#: It doubles with each further try.
FIRST_PAUSE = 0.1

#: How often such an entry is sent.
TRIES = 5


class Mark(NamedTuple):
    """The registration that a message has."""

    id: str
    stock_id: str
    user_id: str


class Full(Unavailable):
    """Too many messages wait."""


class Stopped(Unavailable):
    """The process stops."""


@dataclass(slots=True, eq=False)
class Entry:
    """A message that a request waits for."""

    mark: Mark | None
    message: Outgoing
    size: int
    sent: asyncio.Future[None]
    """Ends when SQS has taken the message. Has Unavailable if SQS has not."""
    tries: int = 0


@dataclass
class Counts:
    """What a gatherer has done since its start."""

    calls: int = 0
    sent: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Gatherer:
    """Sends messages to one queue. All methods are for the thread of the event loop.

    `on_taken` is called with the marks of the messages that SQS took in one call.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        most_waiting: int,
        seconds: float,
        most_bytes: int = MOST_BYTES,
        on_taken: Callable[[Sequence[Mark]], None] = lambda _: None,
    ) -> None:
        """At most `most_waiting` messages wait for a call. A message that SQS has not taken after
        `seconds` has failed; it may still arrive."""
        self.counts = Counts()
        self.error: str | None = None
        """The code of the last call's error; None if it succeeded."""
        self._queue = queue
        self._most_waiting = most_waiting
        self._seconds = seconds
        self._most_bytes = most_bytes
        self._on_taken = on_taken
        self._waiting: deque[Entry] = deque()
        self._waiting_bytes = 0
        self._again = 0
        self._calls = 0
        #: The number of the newest call that has ended.
        self._newest = 0
        #: When each message fails. In order, because all have the same time.
        self._due: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._pool = ThreadPoolExecutor(MOST_CALLS, thread_name_prefix="send")
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_stopped = False
        self._seldom = Seldom()

    @property
    def queue(self) -> str:
        """The name of the queue."""
        return name_of(self._queue.url)

    async def send(self, message: Outgoing, mark: Mark | None = None) -> None:
        """Send one message. Raises Unavailable if SQS has not taken it; Full at once if too many
        wait."""
        (entry,) = self.add([(mark, message)])
        await entry.sent

    def add(self, messages: Sequence[tuple[Mark | None, Outgoing]]) -> list[Entry]:
        """Send messages. They are sent in the same calls if nothing else waits. Raises Full or
        Stopped, and sends nothing."""
        if self._is_stopped:
            raise Stopped("The server stops.")
        loop = asyncio.get_running_loop()
        entries = [Entry(mark, m, m.size, loop.create_future()) for mark, m in messages]
        size = sum(entry.size for entry in entries)
        if not self._has_room(len(entries), size):
            raise Full("Too many messages wait for SQS.")
        self._waiting.extend(entries)
        self._waiting_bytes += size
        due = loop.time() + self._seconds
        self._due.extend((due, entry.sent) for entry in entries)
        if self._timer is None:
            self._timer = loop.call_at(due, self._expire)
        self._pump()
        return entries

    async def close(self) -> None:
        """Send what waits, then end. Messages that are added later are refused. Takes no longer
        than a message may take."""
        self._is_stopped = True
        self._pump()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await self._idle.wait()
        if self._timer is not None:
            self._timer.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _has_room(self, count: int, size: int) -> bool:
        return (
            len(self._waiting) + count <= self._most_waiting
            and self._waiting_bytes + size <= MOST_WAITING_BYTES
        )

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        while self._may_call() and (pack := self._next()):
            self._calls += 1
            self.counts.calls += 1
            call = loop.run_in_executor(self._pool, self._call, [entry.message for entry in pack])
            call.add_done_callback(partial(self._answered, pack, self.counts.calls))
        self._mark_idle()

    def _may_call(self) -> bool:
        if self._calls < CALLS:
            return True
        is_full = len(self._waiting) >= BATCH or self._waiting_bytes >= self._most_bytes
        return is_full and self._calls < MOST_CALLS

    def _mark_idle(self) -> None:
        if self._waiting or self._again or self._calls:
            self._idle.clear()
        else:
            self._idle.set()

    def _next(self) -> list[Entry]:
        """The messages of the next call."""
        pack: list[Entry] = []
        left = self._most_bytes
        while self._waiting and len(pack) < BATCH:
            entry = self._waiting[0]
            if not entry.sent.done():
                if pack and entry.size > left:
                    break
                pack.append(entry)
                left -= entry.size
            self._waiting.popleft()
            self._waiting_bytes -= entry.size
        return pack

    def _call(self, messages: Sequence[Outgoing]) -> Errors:
        return self._queue.send_batch(messages)

    def _answered(self, pack: Sequence[Entry], number: int, call: "asyncio.Future[Errors]") -> None:
        self._calls -= 1
        errors = _errors_of(call, len(pack))
        taken = [entry.mark for entry, error in zip(pack, errors, strict=True) if error is None]
        self.counts.sent += len(taken)
        if number > self._newest:  # A call that hung says nothing about the present.
            self._newest = number
            self.error = next((error.code for error in errors if error is not None), None)
        for entry, error in zip(pack, errors, strict=True):
            self._end(entry, error)
        if marks := [mark for mark in taken if mark is not None]:
            self._on_taken(marks)
        self._forget_ended()
        self._pump()

    def _end(self, entry: Entry, error: SqsError | None) -> None:
        entry.tries += 1
        if error is None:
            if not entry.sent.done():
                entry.sent.set_result(None)
        elif error.is_worth_another_try and entry.tries < TRIES and not entry.sent.done():
            self._again += 1
            pause = full_jitter(FIRST_PAUSE, entry.tries)
            asyncio.get_running_loop().call_later(pause, self._put_back, entry)
        else:
            self._fail(entry.sent, error.code)

    def _put_back(self, entry: Entry) -> None:
        self._again -= 1
        self._waiting.appendleft(entry)
        self._waiting_bytes += entry.size
        self._pump()

    def _fail(self, sent: asyncio.Future[None], code: str) -> None:
        self.counts.errors[code] += 1
        if not sent.done():
            sent.set_exception(Unavailable("SQS has not taken the message."))
        if self._seldom.allows(code, asyncio.get_running_loop().time()):
            logger.warning(
                "SQS did not accept a message for %s: %s. The client has to send it again.",
                name_of(self._queue.url),
                code,
                extra={
                    "event": "send.failed",
                    "queue": name_of(self._queue.url),
                    "error": code,
                },
            )

    def _expire(self) -> None:
        """Fail the messages whose time is over."""
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        while self._due and (self._due[0][1].done() or self._due[0][0] <= now):
            _, sent = self._due.popleft()
            if not sent.done():
                self._fail(sent, "Timeout")
        while self._waiting and self._waiting[0].sent.done():
            self._waiting_bytes -= self._waiting.popleft().size
        if self._due:
            self._timer = loop.call_at(self._due[0][0], self._expire)
        self._mark_idle()

    def _forget_ended(self) -> None:
        while self._due and self._due[0][1].done():
            self._due.popleft()


def _errors_of(call: "asyncio.Future[Errors]", count: int) -> Errors:
    """The error of each entry. If the call failed, that is the error of all of them."""
    if call.cancelled():
        return [SqsError("Cancelled")] * count
    error = call.exception()
    if error is None:
        return call.result()
    return [SqsError.of(error if isinstance(error, Exception) else RuntimeError())] * count
