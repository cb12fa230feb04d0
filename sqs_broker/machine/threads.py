"""Starts threads. If the machine has no resources for one, that is temporary and ends nothing."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from sqs_broker.errors import NoThread
from sqs_broker.machine.seldom import Seldom

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
