"""Celery's prefork pool, which recovers if a process cannot be forked.

Celery's own pool keeps such a process half created, with its place and its pipes, for ever
(billiard 4.3 pool.py, `_create_worker_process`; celery 5.7 concurrency/asynpool.py).
"""

import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from traceback import walk_tb
from types import TracebackType
from typing import Any

from billiard.exceptions import RestartFreqExceeded
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool as CeleryTaskPool

logger = logging.getLogger(__name__)

#: Seconds until the pool tries again to start a process.
RETRY_PAUSE = 1.0


class Processes(AsynPool):
    """The pool's processes. One that has ended is replaced as soon as the machine has resources."""

    _hub: Any = None
    _is_short = False
    _will_retry = False

    def register_with_event_loop(self, hub: Any) -> None:
        """Manage the processes on this event loop."""
        self._hub = hub
        super().register_with_event_loop(hub)

    def _create_worker_process(self, i: int) -> Any:
        before = tuple(self._pool)
        try:
            return super()._create_worker_process(i)
        except Exception as exc:
            for process in tuple(self._pool):
                if process not in before:
                    self._discard(process)
            _close_pipe(exc.__traceback__)
            raise

    def _discard(self, process: Any) -> None:
        """Remove a half created process from the pool."""
        if process._popen is not None:
            # It runs, but the pool does not read from it. Once it is killed, Celery removes it.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            return
        self._pool.remove(process)
        self._process_cleanup_queues(process)

    def _repopulate_pool(self, exitcodes: Sequence[int]) -> None:
        """Replace the processes that have ended. If one cannot be started now, Celery continues: it
        must still free the slots of those that ended."""
        try:
            super()._repopulate_pool(exitcodes)
        except RestartFreqExceeded:
            raise
        except Exception as exc:
            # Broad on purpose: any cause is tried again.
            self._log_short(type(exc).__name__)
            self._retry_later()
        else:
            self._log_whole()

    def _retry_later(self) -> None:
        # At most one retry is scheduled: Celery also calls `maintain_pool` by itself.
        if self._hub is not None and not self._will_retry:
            self._will_retry = True
            self._hub.call_later(RETRY_PAUSE, self._retry)

    def _retry(self) -> None:
        self._will_retry = False
        self.maintain_pool()

    def _log_short(self, error: str) -> None:
        if not self._is_short:
            self._is_short = True
            logger.warning(
                "Could not start a pool process (%s); trying again.",
                error,
                extra={"event": "pool.short", "error": error},
            )

    def _log_whole(self) -> None:
        if self._is_short:
            self._is_short = False
            logger.info("The pool has all its processes again.", extra={"event": "pool.whole"})


def _close_pipe(traceback: TracebackType | None) -> None:
    """Close the pipe that billiard leaves open if a fork fails (4.3 popen_fork.py)."""
    for frame, _ in walk_tb(traceback):
        if frame.f_code.co_name == "_launch":
            for name in ("parent_r", "child_w"):
                with suppress(KeyError, OSError):
                    os.close(frame.f_locals[name])


class TaskPool(CeleryTaskPool):
    """Celery's prefork pool with these processes. Set by `worker_pool`."""

    Pool = Processes
