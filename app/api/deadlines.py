"""Ends what takes too long, as `asyncio.timeout` does, but with one timer for all requests: a timer
for each would be a twentieth of a request's CPU time."""

import asyncio
from collections import OrderedDict
from types import TracebackType


class Deadlines:
    """Gives each block the same time. For one event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Blocks that have not ended, the oldest first.
        self._blocks: OrderedDict[_Block, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def limit(self) -> "_Block":
        """A context manager: if its block has not ended after `seconds`, what it waits for is
        cancelled, and it raises TimeoutError."""
        return _Block(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def begin(self, block: "_Block") -> None:
        """The time of a block begins now."""
        loop = self.loop
        block.due = loop.time() + self._seconds
        self._blocks[block] = None
        if self._timer is None:
            self._timer = loop.call_at(block.due, self._expire)

    def end(self, block: "_Block") -> None:
        """A block has ended."""
        self._blocks.pop(block, None)

    def _expire(self) -> None:
        loop = self.loop
        self._timer = None
        while self._blocks:
            block = next(iter(self._blocks))
            if block.due > loop.time():
                self._timer = loop.call_at(block.due, self._expire)
                return
            del self._blocks[block]
            block.expire()


class _Block:
    """One block."""

    __slots__ = ("_cancels", "_deadlines", "_is_over", "_task", "due")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._is_over = False
        self.due = 0.0

    def __enter__(self) -> None:
        task = asyncio.current_task(self._deadlines.loop)
        assert task is not None
        self._task = task
        self._cancels = task.cancelling()
        self._deadlines.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._deadlines.end(self)
        # As asyncio.timeout: a cancellation by somebody else stays one.
        is_ours = self._is_over and self._task.uncancel() <= self._cancels
        if is_ours and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """End the block."""
        self._is_over = True
        self._task.cancel()
