"""Stops a run in this process at its time limits. There is no pool, so nothing else can.

At the soft limit SoftTimeLimitExceeded is raised in the run, as in a worker. At the hard limit
`HardLimit` is raised, and again until the run ends: it is no Exception, so the usual `except` does
not stop it. Both come through a signal, so they are raised once Python runs again: also in a system
call that waits, but not in an extension that never returns to Python. For that there is a last
time: then `at_last` is called in a thread, which may end the process.
"""

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any, TypeVar

from celery.exceptions import SoftTimeLimitExceeded

from sqs_broker.machine import threads

T = TypeVar("T")

#: The signal that billiard uses for the same purpose (billiard 4.3 common.py).
SIGNAL = signal.SIGUSR1

#: Seconds until the hard limit is raised again.
AGAIN = 0.25


class HardLimit(BaseException):
    """The hard time limit of a run has passed."""


@dataclass(frozen=True)
class Limits:
    """The limits of one run, in seconds from now."""

    soft: float = inf
    hard: float = inf
    last: float = inf


class Watch:
    """Runs work within limits. For one thread at a time; the signals need the main thread."""

    def __init__(self, at_last: Callable[[], None]) -> None:
        self._at_last = at_last
        self._is_armed = False
        self._raises: type[BaseException] = SoftTimeLimitExceeded
        self.has_struck = False
        """Whether a limit of the last run passed."""

    def run(self, work: Callable[[], T], limits: Limits) -> T:
        """Return the result of `work`. Raises what it raises, SoftTimeLimitExceeded if it did not
        handle that, and HardLimit."""
        if threading.current_thread() is not threading.main_thread():
            return self._watched(work, limits, None)
        before = signal.signal(SIGNAL, self._on_signal)
        try:
            return self._watched(work, limits, threading.get_ident())
        finally:
            signal.signal(SIGNAL, before)

    def _watched(self, work: Callable[[], T], limits: Limits, thread: int | None) -> T:
        has_ended = threading.Event()
        watch = threads.start(self._watch, "function-limits", limits, thread, has_ended)
        self.has_struck = False
        try:
            self._is_armed = True
            return work()
        finally:
            # Nothing is called before this, so no signal is handled in between.
            self._is_armed = False
            has_ended.set()
            if watch is not None:
                # Otherwise a late signal could meet the handler of somebody else, or none.
                watch.join()

    def _watch(self, limits: Limits, thread: int | None, has_ended: threading.Event) -> None:
        began = monotonic()

        def ends_before(limit: float) -> bool:
            return has_ended.wait(min(max(began + limit - monotonic(), 0), threading.TIMEOUT_MAX))

        if thread is not None:
            for limit, exc in ((limits.soft, SoftTimeLimitExceeded), (limits.hard, HardLimit)):
                if limit < limits.last:
                    if ends_before(limit):
                        return
                    self._interrupt(thread, exc)
            again = limits.hard + AGAIN
            while again < limits.last:
                if ends_before(again):
                    return
                self._interrupt(thread, HardLimit)
                again += AGAIN
        if not ends_before(limits.last):
            self._at_last()

    def _interrupt(self, thread: int, exc: type[BaseException]) -> None:
        self._raises = exc
        signal.pthread_kill(thread, SIGNAL)

    def _on_signal(self, *_: Any) -> None:
        if self._is_armed:
            self.has_struck = True
            raise self._raises
