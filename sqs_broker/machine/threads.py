"""Starts threads. If the machine has no resources for one, that is temporary and ends nothing."""

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Generic, TypeVar

from sqs_broker.errors import NoThread
from sqs_broker.machine.seldom import Seldom

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Seconds for which `insist` tries to start a thread.
PATIENCE = 5.0

#: The first pause between two tries, as a part of these seconds. It doubles with each try.
FIRST_PAUSE = 1 / 50

_patience = PATIENCE
_seldom = Seldom()


def start(target: Callable[..., Any], name: str, *args: Any) -> threading.Thread | None:
    """Run `target(*args)` on a daemon thread of this name.

    Returns None if this machine has no resources for it now. Then nothing has changed, and the
    caller may try again. This is logged at most once a minute.
    """
    try:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        thread.start()
    except (RuntimeError, MemoryError) as exc:
        _log_failure(name, type(exc).__name__)
        return None
    return thread


def insist(target: Callable[..., Any], name: str, *args: Any) -> threading.Thread:
    """Like `start`, but try for PATIENCE seconds, then raise NoThread. For threads that a worker
    needs."""
    deadline, pause = monotonic() + _patience, _patience * FIRST_PAUSE
    while (thread := start(target, name, *args)) is None:
        if (left := deadline - monotonic()) <= 0:
            raise NoThread(name)
        time.sleep(min(pause, left))
        pause *= 2
    return thread


class Overdue(Exception):
    """The work has not ended within its time. It may still end later."""


class Work(Generic[T]):
    """Runs a function on a thread of its own, in a copy of the caller's context, and limits how
    long the caller waits for it.

    If the machine has no resources for a thread, the function runs on the caller's: then it is not
    limited.
    """

    def __init__(self, target: Callable[[], T], name: str, seconds: float) -> None:
        """Begins at once. `seconds` are counted from now."""
        self._target = target
        self._ends_at = monotonic() + seconds
        self._done = threading.Event()
        self._returned: list[T] = []
        self._raised: BaseException | None = None
        if start(contextvars.copy_context().run, name, self._run) is None:
            self._run()

    def result(self) -> T:
        """Wait for the end of the work, and return or raise what it does. Raises Overdue."""
        if not self._done.wait(max(0.0, self._ends_at - monotonic())):
            raise Overdue
        if self._raised is not None:
            raise self._raised
        return self._returned[0]

    def _run(self) -> None:
        try:
            self._returned.append(self._target())
        except BaseException as exc:
            # Broad on purpose: whatever it is, the caller gets it.
            self._raised = exc
        finally:
            self._done.set()


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """A context in which `insist` tries for `seconds`, on all threads of this process."""
    global _patience
    before, _patience = _patience, seconds
    try:
        yield
    finally:
        _patience = before


def _log_failure(name: str, error: str) -> None:
    if not _seldom.allows(name, monotonic()):
        return
    logger.warning(
        "Could not start the thread %s (%s): this machine is short of threads or memory. Trying "
        "again.",
        name,
        error,
        extra={"event": "thread.failed", "error": error},
    )
