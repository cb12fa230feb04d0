"""Runs calls that cannot be cut, each with a deadline.

A call runs on another thread, and its caller waits. After the deadline the caller gets Overdue, and
the thread is left: it ends with the call, whose late result goes to a function of the caller.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from sqs_broker.machine import threads

T = TypeVar("T")

#: Most calls that are left and have not ended yet.
MOST_LEFT = 20

#: Seconds until a thread without calls ends.
IDLE = 2.0


class Overdue(Exception):
    """The call has not ended before its deadline. It is not known what it did or will do."""


class Full(Exception):
    """The call was not made: too many calls before it were left and have not ended yet."""


class Calls:
    """The threads for the calls of one owner. They start when they are needed, and end by
    themselves. Thread-safe; the child of a fork has none of the threads and starts its own."""

    def __init__(self, most_left: int = MOST_LEFT, idle: float = IDLE) -> None:
        self._most_left = most_left
        self._idle_for = idle
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Know of no thread and no call, as in a new process."""
        self._lock = threading.Lock()
        #: Where each thread without a call waits for one.
        self._idle: list[SimpleQueue[_Call[Any]]] = []
        self._left = 0

    def run(
        self, call: Callable[[], T], seconds: float, on_late: Callable[[T], None] | None = None
    ) -> T:
        """Make a call, and return or raise what it does.

        Raises Overdue if it has not ended after `seconds`. If it returns later, `on_late` gets its
        result, on its thread. Raises Full, and makes no call, if MOST_LEFT calls were left. If this
        machine has no resources for a thread, the caller makes the call itself, without a deadline.
        """
        return self._result(self._begin(call, on_late), seconds)

    def begin(self, call: Callable[[], T]) -> Callable[[], T]:
        """Begin a call that has a deadline of its own. Returns a function that waits for its end,
        and returns or raises what the call does. Otherwise like `run`."""
        return partial(self._result, self._begin(call, None), None)

    def _begin(self, call: Callable[[], T], on_late: Callable[[T], None] | None) -> "_Call[T]":
        asked = _Call(call, on_late)
        if not self._start(asked):
            asked.make()
            asked.has_ended = True
            asked.ended.set()
        return asked

    def _result(self, asked: "_Call[T]", seconds: float | None) -> T:
        try:
            asked.ended.wait(seconds)
        finally:
            # Also if a signal handler of the caller raises, as Celery's soft time limit does.
            with self._lock:
                asked.is_left = not asked.has_ended
                self._left += asked.is_left
        return asked.result()

    def _start(self, asked: "_Call[Any]") -> bool:
        """Pass the call to a thread. False if there is none and none can start."""
        with self._lock:
            if self._left >= self._most_left:
                raise Full
            if self._idle:
                self._idle.pop().put(asked)
                return True
        waiting: SimpleQueue[_Call[Any]] = SimpleQueue()
        waiting.put(asked)
        return threads.start(self._run, "sqs-call", waiting) is not None

    def _run(self, waiting: "SimpleQueue[_Call[Any]]") -> None:
        while (asked := self._next(waiting)) is not None:
            asked.make()
            with self._lock:
                asked.has_ended = True
                if not asked.is_left:
                    # Before the caller continues, so that its next call finds this thread.
                    self._idle.append(waiting)
            asked.ended.set()
            if asked.is_left:
                asked.end_late()
                with self._lock:
                    self._left -= 1
                return
            del asked  # Its result must not stay in memory while this thread waits.

    def _next(self, waiting: "SimpleQueue[_Call[Any]]") -> "_Call[Any] | None":
        while True:
            with suppress(Empty):
                return waiting.get(timeout=self._idle_for)
            with self._lock:
                if waiting in self._idle:
                    self._idle.remove(waiting)
                    return None


class _Call(Generic[T]):
    def __init__(self, call: Callable[[], T], on_late: Callable[[T], None] | None) -> None:
        self._call = call
        self._on_late = on_late
        # Tracing libraries keep the current span there.
        self._context = copy_context()
        self._returned: list[T] = []
        self._raised: BaseException | None = None
        self.ended = threading.Event()
        self.has_ended = False
        self.is_left = False

    def make(self) -> None:
        """Make the call."""
        try:
            self._returned.append(self._context.run(self._call))
        except BaseException as exc:
            # Broad on purpose: the caller gets it.
            self._raised = exc

    def result(self) -> T:
        """What the call returned, or raise what it raised. Raises Overdue if it has not ended."""
        if self.is_left:
            raise Overdue
        if self._raised is not None:
            try:
                raise self._raised
            finally:
                self._raised = None  # Otherwise the exception refers to itself.
        return self._returned[0]

    def end_late(self) -> None:
        """Pass on the result of a call that nobody waits for any more."""
        if self._returned and self._on_late is not None:
            self._on_late(self._returned[0])


_all: WeakSet[Calls] = WeakSet()


def _forget() -> None:
    for calls in _all:
        calls.forget()


# Another thread of the parent may have held a lock at the fork.
os.register_at_fork(after_in_child=_forget)
