"""Starts threads. If the machine has no resources for one, that is temporary and ends nothing."""

import logging
import threading
import time
from collections.abc import Callable
from time import monotonic
from typing import Any

from sqs_broker.errors import NoThread

logger = logging.getLogger(__name__)

#: Seconds for which `insist` tries to start a thread.
PATIENCE = 5.0

#: Seconds of the first pause between two tries. It doubles with each try.
FIRST_PAUSE = 0.1

#: Seconds between two log lines about one thread.
QUIET = 60.0

_logged_at: dict[str, float] = {}


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
    deadline, pause = monotonic() + PATIENCE, FIRST_PAUSE
    while (thread := start(target, name, *args)) is None:
        if (left := deadline - monotonic()) <= 0:
            raise NoThread(name)
        time.sleep(min(pause, left))
        pause *= 2
    return thread


def _log_failure(name: str, error: str) -> None:
    now = monotonic()
    if now - _logged_at.get(name, -QUIET) < QUIET:
        return
    _logged_at[name] = now
    logger.warning(
        "Could not start the thread %s (%s): this machine is short of threads or memory. Trying "
        "again.",
        name,
        error,
        extra={"event": "thread.failed", "error": error},
    )
