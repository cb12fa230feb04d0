"""Threads of this process. That a machine has no room for one more passes, and ends nothing."""

import logging
import threading
import time
from collections.abc import Callable
from time import monotonic
from typing import Any

from sqs_broker.errors import NoThread

logger = logging.getLogger(__name__)

#: Seconds for which a thread is tried without which a worker would live only half.
PATIENCE = 5.0

#: Seconds: the first pause between two tries, doubled by each one that follows.
FIRST_PAUSE = 0.1

#: Seconds between two log lines about one thread.
QUIET = 60.0

_said_at: dict[str, float] = {}


def start(target: Callable[..., Any], name: str, *args: Any) -> threading.Thread | None:
    """Run `target(*args)` on a daemon thread of this name.

    None where this machine has no room for it now: nothing has changed then, and whoever asked may
    ask again. Said once a minute.
    """
    try:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        thread.start()
    except (RuntimeError, MemoryError) as exc:
        _say(name, type(exc).__name__)
        return None
    return thread


def insist(target: Callable[..., Any], name: str, *args: Any) -> threading.Thread:
    """The same, tried again and again for PATIENCE seconds. Raises NoThread after that."""
    deadline, pause = monotonic() + PATIENCE, FIRST_PAUSE
    while (thread := start(target, name, *args)) is None:
        if (left := deadline - monotonic()) <= 0:
            raise NoThread(name)
        time.sleep(min(pause, left))
        pause *= 2
    return thread


def _say(name: str, error: str) -> None:
    now = monotonic()
    if now - _said_at.get(name, -QUIET) < QUIET:
        return
    _said_at[name] = now
    logger.warning(
        "This machine has no room for the thread %s (%s); it is tried again.",
        name,
        error,
        extra={"event": "thread.failed", "error": error},
    )
