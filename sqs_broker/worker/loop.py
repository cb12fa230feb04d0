"""Celery's event loop, which continues if a callback fails.

In stock Celery, an exception in one turn of the loop ends the worker or makes it reconnect, which
releases the running tasks (celery 5.7 worker/loops.py, `asynloop`). Here no connection depends on
the loop, because other threads call SQS and MongoDB. So a failure concerns only one callback, of
one process, message or timer.
"""

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Self

from billiard.exceptions import RestartFreqExceeded

from sqs_broker.machine.textless import textless

logger = logging.getLogger(__name__)

#: The loop survives this many errors within this many seconds.
MOST_ERRORS, WITHIN = 10, 10.0

#: Most rounds of callbacks that other callbacks scheduled, before a turn for timers and files.
MOST_ROUNDS = 1_000


class LoopBroken(Exception):
    """The event loop failed too often."""


class Loop:
    """An endless iterator: each `next` runs one turn of a hub's event loop.

    Raises LoopBroken if callbacks fail too often. An exception that must end the worker is raised
    at once: a BaseException that is no Exception, or RestartFreqExceeded. `event` is the event name
    of the log lines. `clock` returns monotonic seconds.
    """

    def __init__(
        self, hub: Any, event: str = "loop.error", clock: Callable[[], float] = monotonic
    ) -> None:
        self._hub = hub
        self._event = event
        self._clock = clock
        self._turns = hub.create_loop()
        self._errors: deque[float] = deque(maxlen=MOST_ERRORS)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> None:
        rounds = 0
        while self._run_ready() and rounds < MOST_ROUNDS:
            rounds += 1
        self._survive(self._turn)

    def _run_ready(self) -> bool:
        """Run the scheduled callbacks; return whether there were any.

        Each runs by itself. In a turn of kombu's own loop, one that fails drops those after it, and
        with them perhaps the result of a task.
        """
        ready = self._hub._pop_ready()
        had_any = bool(ready)
        try:
            while ready:
                self._survive(ready.pop())
        finally:
            for callback in ready:  # A callback ended the worker, but the loop still drains.
                self._hub.call_soon(callback)
        return had_any

    def _turn(self) -> None:
        try:
            next(self._turns)
        except StopIteration:
            self._turns = self._hub.create_loop()
        except BaseException:
            # A generator ends when it raises, so a new one is needed.
            self._turns = self._hub.create_loop()
            raise

    def _survive(self, callback: Callable[[], Any]) -> None:
        try:
            callback()
        except RestartFreqExceeded:
            raise  # The pool is closed (billiard 4.3 pool.py, `maintain_pool`).
        except Exception as exc:
            now = self._clock()
            if len(self._errors) == MOST_ERRORS and now - self._errors[0] < WITHIN:
                raise LoopBroken(
                    f"The event loop failed more than {MOST_ERRORS} times in {WITHIN:g} s."
                ) from exc
            self._errors.append(now)
            logger.error(
                "A callback of the event loop failed; the loop continues.",
                exc_info=textless(exc),
                extra={"event": self._event},
            )


class Hub:
    """kombu's hub, but with a Loop as its loop. For code that ends at the first error of a loop."""

    def __init__(self, hub: Any) -> None:
        # Through `vars`, because `__setattr__` below would set it on the hub.
        vars(self)["hub"] = hub

    def __getattr__(self, name: str) -> Any:
        return getattr(self.hub, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.hub, name, value)

    def create_loop(self) -> Loop:
        """A loop that continues if a callback fails."""
        return Loop(self.hub)
