"""Celery's event loop, which goes on where one callback fails.

An exception that comes out of a turn ends Celery's worker, or makes it connect anew, which releases
what runs (celery 5.7 worker/loops.py, `asynloop`). Here there is no connection on the loop that
could be lost: SQS and MongoDB are called on other threads. What fails is one callback, of one
process, message or timer.
"""

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Self

from billiard.exceptions import RestartFreqExceeded

logger = logging.getLogger(__name__)

#: Errors within so many seconds that a loop outlives.
MOST_ERRORS, WITHIN = 10, 10.0

#: How often callbacks that were asked for by callbacks are run before the loop looks at what else
#: there is to do.
MOST_ROUNDS = 1_000


class LoopBroken(Exception):
    """The event loop fails again and again."""


class Loop:
    """Turns the event loop of a hub, one turn for each `next`, without end.

    Raises LoopBroken where turns fail too often, and at once what is to end the worker: any
    BaseException, and what says that the pool has given up. `event` is that of the log lines.
    """

    def __init__(self, hub: Any, event: str = "loop.error") -> None:
        self._hub = hub
        self._event = event
        self._turns = hub.create_loop()
        self._errors: deque[float] = deque(maxlen=MOST_ERRORS)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> None:
        rounds = 0
        while self._run_ready() and rounds < MOST_ROUNDS:
            rounds += 1
        self._outlive(self._turn)

    def _run_ready(self) -> bool:
        """Run what was asked for meanwhile; whether there was any.

        One by one: a turn that ends in the middle of them forgets the others, and with them what
        became of a task.
        """
        ready = self._hub._pop_ready()
        had_any = bool(ready)
        try:
            while ready:
                self._outlive(ready.pop())
        finally:
            for callback in ready:  # One has ended the worker. It still drains.
                self._hub.call_soon(callback)
        return had_any

    def _turn(self) -> None:
        try:
            next(self._turns)
        except StopIteration:
            self._turns = self._hub.create_loop()
        except BaseException:
            # A generator that has raised has ended.
            self._turns = self._hub.create_loop()
            raise

    def _outlive(self, callback: Callable[[], Any]) -> None:
        try:
            callback()
        except RestartFreqExceeded:
            raise  # The pool is closed (billiard 4.3 pool.py, `maintain_pool`).
        except Exception as exc:
            now = monotonic()
            if len(self._errors) == MOST_ERRORS and now - self._errors[0] < WITHIN:
                raise LoopBroken(
                    f"The event loop failed more than {MOST_ERRORS} times in {WITHIN:g} s."
                ) from exc
            self._errors.append(now)
            logger.exception("The event loop goes on.", extra={"event": self._event})


class Hub:
    """A hub of kombu's as it is, but for its loop. For who turns the loop and gives up too soon."""

    def __init__(self, hub: Any) -> None:
        # Past our own `__setattr__`.
        vars(self)["hub"] = hub

    def __getattr__(self, name: str) -> Any:
        return getattr(self.hub, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.hub, name, value)

    def create_loop(self) -> Loop:
        """A loop that goes on where one callback fails."""
        return Loop(self.hub)
