"""Wakes those who wait for an outcome: one change stream a process, whatever number waits.

The stream starts with the first who waits, and ends when nobody has waited for IDLE seconds. Its
events hold only ids. It is opened before anybody reads, so that no change is missed; when it had to
be opened again, such as after a failover, everybody reads again. If MongoDB has no change streams
(a standalone server) or refuses one (a missing right), the outcomes are polled.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from time import monotonic
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure, PyMongoError

from app.errors import Unavailable
from app.outcomes.outcome import State
from sqs_broker.errors import label
from sqs_broker.machine.seldom import Seldom
from sqs_broker.rules.backoff import half_jitter

logger = logging.getLogger(__name__)

#: Most who wait at the same time.
MOST_WAITERS = 1_000

#: Seconds without anybody who waits after which the stream is closed.
IDLE = 60.0

#: Milliseconds that MongoDB waits for a change before it answers. Less than the least timeoutMS.
AWAIT_MS = 500

#: Seconds between two polls, and until the stream is tried again.
POLL = 0.5
POLLS_FOR = 30.0

#: Longest pause before the stream is opened again, in seconds. The first is up to FIRST_PAUSE.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0

#: MongoDB's error codes that say that there is no change stream here: not authorized, a standalone
#: server, an engine or a version without them.
NO_STREAM = (13, 40573, 40324, 115)

#: Only ids. Acceptances wake nobody.
PIPELINE: list[dict[str, Any]] = [
    {
        "$match": {
            "operationType": {"$in": ["insert", "update", "replace"]},
            "fullDocument.state": {"$ne": State.PENDING.value},
        }
    },
    {"$project": {"documentKey": 1}},
]

Call = Callable[[], AbstractAsyncContextManager[None]]


class Waiter:
    """Somebody who waits for changes of one outcome, until a deadline."""

    def __init__(self, id_: str, seconds: float) -> None:
        self.id = id_
        self._deadline = monotonic() + seconds
        self._event = asyncio.Event()
        self._is_ended = False

    @property
    def is_over(self) -> bool:
        """Whether the time is over, or nobody may wait any more."""
        return self._is_ended or monotonic() >= self._deadline

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._deadline - monotonic())

    def clear(self) -> None:
        """Forget the changes until now."""
        self._event.clear()

    def wake(self) -> None:
        """There may be a change."""
        self._event.set()

    def end(self) -> None:
        """Wait no more."""
        self._is_ended = True
        self._event.set()

    async def changed(self) -> None:
        """Wait for a change since `clear`, or until the deadline."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.left):
                await self._event.wait()


class Watch:
    """All who wait in this process. For one event loop."""

    def __init__(
        self, collection: Callable[[], AsyncCollection[dict[str, Any]]], call: Call
    ) -> None:
        """`call` surrounds a question to MongoDB."""
        self._collection = collection
        self._call = call
        self._waiters: dict[str, set[Waiter]] = {}
        self._count = 0
        self._task: asyncio.Task[None] | None = None
        #: Set once they may read: a later change wakes them.
        self._is_open = asyncio.Event()
        self._is_stopped = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._seldom = Seldom()

    @property
    def waiters(self) -> int:
        """How many wait now."""
        return self._count

    @asynccontextmanager
    async def waiter(self, id_: str, seconds: float) -> AsyncIterator[Waiter]:
        """Somebody who waits. Its time is over at once if too many wait."""
        made = Waiter(id_, seconds)
        if self._is_stopped or self._count >= MOST_WAITERS:
            made.end()
            yield made
            return
        self._add(made)
        try:
            await self._opened(made)
            yield made
        finally:
            self._remove(made)

    def stop(self) -> None:
        """End all waits, now and from now on."""
        self._is_stopped = True
        for waiter in self._all():
            waiter.end()
        # Those who wait for the stream must not wait for it either.
        self._is_open.set()

    async def close(self, timeout: float) -> None:
        """Stop, let those who waited read for up to `timeout` seconds, and close the stream, which
        takes at most twice as long again."""
        self.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._is_empty.wait()
        if self._task is not None:
            # It ends by itself within AWAIT_MS. A connection that is cancelled is not closed.
            await asyncio.wait({self._task}, timeout=timeout)
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=timeout)

    def _add(self, waiter: Waiter) -> None:
        self._waiters.setdefault(waiter.id, set()).add(waiter)
        self._count += 1
        self._is_empty.clear()
        if self._task is None or self._task.done():
            self._is_open.clear()
            self._task = asyncio.get_running_loop().create_task(self._run())

    def _remove(self, waiter: Waiter) -> None:
        same = self._waiters[waiter.id]
        same.discard(waiter)
        if not same:
            del self._waiters[waiter.id]
        self._count -= 1
        if not self._count:
            self._is_empty.set()

    async def _opened(self, waiter: Waiter) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(waiter.left):
                await self._is_open.wait()

    def _all(self) -> list[Waiter]:
        return [waiter for same in self._waiters.values() for waiter in same]

    async def _run(self) -> None:
        failures = 0
        while not self._is_stopped:
            opened_at = monotonic()
            try:
                await self._stream()
            except OperationFailure as exc:
                if exc.code in NO_STREAM:
                    await self._poll(exc)
                    continue
                error: Exception = exc
            except Exception as exc:
                # Broad on purpose: without this task nobody would be woken.
                error = exc
            else:
                if self._count:
                    continue  # Somebody came while the stream was being closed.
                return
            self._log(error)
            failures = 1 if monotonic() - opened_at > LONGEST_PAUSE * 2 else failures + 1
            # Everybody reads again when the stream is open, so they may read now.
            self._is_open.set()
            await asyncio.sleep(half_jitter(FIRST_PAUSE, failures, LONGEST_PAUSE))
            await self._look()

    async def _stream(self) -> None:
        """Wake those whose outcome changes. Returns if nobody has waited for long, or after `stop`:
        before Python 3.12 a cancellation may get lost in pymongo."""
        used_at = monotonic()
        async with await self._collection().watch(PIPELINE, max_await_time_ms=AWAIT_MS) as stream:
            self._wake_all()
            while not self._is_stopped:
                change = await stream.try_next()
                if change is not None:
                    self._wake(change["documentKey"]["_id"])
                now = monotonic()
                used_at = now if self._count else used_at
                if now - used_at > IDLE:
                    return

    async def _poll(self, exc: OperationFailure) -> None:
        self._log_polled(exc)
        until = monotonic() + POLLS_FOR
        self._is_open.set()
        while monotonic() < until and not self._is_stopped:
            await asyncio.sleep(POLL)
            await self._look()

    async def _look(self) -> None:
        """Wake those whose outcome is final, after one question about all of them."""
        if not self._waiters:
            return
        query = {"_id": {"$in": list(self._waiters)}, "state": {"$ne": State.PENDING.value}}
        with suppress(Unavailable, PyMongoError):
            async with self._call():
                for found in await self._collection().find(query, {"_id": 1}).to_list():
                    self._wake(found["_id"])

    def _wake_all(self) -> None:
        self._is_open.set()
        for waiter in self._all():
            waiter.wake()

    def _wake(self, id_: str) -> None:
        for waiter in self._waiters.get(id_, ()):
            waiter.wake()

    def _log(self, exc: Exception) -> None:
        if self._seldom.allows("stream", monotonic()):
            logger.warning(
                "The change stream of the outcomes ended (%s); it is opened again.",
                label(exc),
                extra={"event": "outcomes.unwatched", "error": label(exc)},
            )

    def _log_polled(self, exc: Exception) -> None:
        if self._seldom.allows("poll", monotonic()):
            logger.warning(
                "MongoDB has no change stream for the outcomes (%s); they are polled.",
                label(exc),
                extra={"event": "outcomes.polled", "error": label(exc)},
            )
