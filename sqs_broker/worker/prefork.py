"""Celery's pool of processes, whole again where this machine had no room for one of them.

A process that cannot be forked stays in Celery's pool half made, and keeps its place and its pipes
for good (billiard 4.3 pool.py, `_create_worker_process`; celery 5.7 concurrency/asynpool.py).
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

#: Seconds after which a process is tried again that could not be started.
RETRY_PAUSE = 1.0


class Processes(AsynPool):
    """The processes. One that has ended is replaced as soon as there is room for another."""

    _hub: Any = None
    _is_short = False
    _is_tried_again = False

    def register_with_event_loop(self, hub: Any) -> None:
        """Let the processes be looked after on this loop."""
        self._hub = hub
        super().register_with_event_loop(hub)

    def _create_worker_process(self, i: int) -> Any:
        before = tuple(self._pool)
        try:
            return super()._create_worker_process(i)
        except Exception as exc:
            for process in tuple(self._pool):
                if process not in before:
                    self._give_up(process)
            _close_pipe(exc.__traceback__)
            raise

    def _give_up(self, process: Any) -> None:
        """Take back what was made of a process."""
        if process._popen is not None:
            # It runs, but nobody hears it. Celery finds that it has ended.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            return
        self._pool.remove(process)
        self._process_cleanup_queues(process)

    def _repopulate_pool(self, exitcodes: Sequence[int]) -> None:
        """Replace what has ended. Where one cannot be started now, what follows goes on without it:
        that the places of those that ended are free."""
        try:
            super()._repopulate_pool(exitcodes)
        except RestartFreqExceeded:
            raise
        except Exception as exc:
            # Broad on purpose: whatever keeps a process from starting, the pool shall be whole.
            self._say_short(type(exc).__name__)
            self._try_again_later()
        else:
            self._say_whole()

    def _try_again_later(self) -> None:
        # Once, though Celery looks after the pool now and then by itself.
        if self._hub is not None and not self._is_tried_again:
            self._is_tried_again = True
            self._hub.call_later(RETRY_PAUSE, self._try_again)

    def _try_again(self) -> None:
        self._is_tried_again = False
        self.maintain_pool()

    def _say_short(self, error: str) -> None:
        if not self._is_short:
            self._is_short = True
            logger.warning(
                "A process of the pool could not be started (%s); it is tried again.",
                error,
                extra={"event": "pool.short", "error": error},
            )

    def _say_whole(self) -> None:
        if self._is_short:
            self._is_short = False
            logger.info("The pool has all its processes again.", extra={"event": "pool.whole"})


def _close_pipe(traceback: TracebackType | None) -> None:
    """Close what billiard opens for a fork, and forgets where that fails (4.3 popen_fork.py)."""
    for frame, _ in walk_tb(traceback):
        if frame.f_code.co_name == "_launch":
            for name in ("parent_r", "child_w"):
                with suppress(KeyError, OSError):
                    os.close(frame.f_locals[name])


class TaskPool(CeleryTaskPool):
    """Celery's own, with these processes. Set by `worker_pool`."""

    Pool = Processes
