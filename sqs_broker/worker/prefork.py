"""Celery's prefork pool, which recovers if a process cannot be forked, and whose processes do not
end by a SIGTERM (sqs_broker/worker/pool_process.py).

Celery's own pool keeps a process that could not be forked half created, with its place and its
pipes, for ever (billiard 4.3 pool.py, `_create_worker_process`; celery 5.7
concurrency/asynpool.py).
"""

import ctypes
import gc
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from traceback import walk_tb
from types import TracebackType
from typing import Any

from billiard import get_start_method
from billiard.common import EX_SOFTWARE
from billiard.einfo import ExceptionInfo
from billiard.exceptions import RestartFreqExceeded
from celery import platforms
from celery.concurrency import asynpool
from celery.concurrency.prefork import TaskPool as CeleryTaskPool
from celery.worker import state

from sqs_broker.observers.pool_sends import pool_sends
from sqs_broker.options import Options
from sqs_broker.rules.happened import ProcessTerminated
from sqs_broker.worker.defaults import is_elsewhere
from sqs_broker.worker.pool_answers import Answers
from sqs_broker.worker.pool_process import STOP_SIGNALS, ForkProcess, SpawnProcess, Worker

logger = logging.getLogger(__name__)

#: Seconds until the pool tries again to start a process.
RETRY_PAUSE = 1.0

#: Seconds until a message whose process a SIGTERM or SIGHUP has ended can be received again, if the
#: worker does not stop. A task that ends its own process each time would otherwise occupy the
#: worker.
INTERRUPTION_PAUSE = 5

#: How a process exits after a SIGQUIT: with the number of the signal, or with EX_SOFTWARE, because
#: the pool sends SIGTERM to a process that announces its exit (billiard 4.3 common.py, pool.py).
AFTER_SIGQUIT = (signal.SIGQUIT, EX_SOFTWARE)


class Processes(asynpool.AsynPool):
    """The pool's processes. One that has ended is replaced as soon as the machine has resources."""

    ResultHandler = Answers
    Worker = Worker
    #: Called by the event loop before it waits.
    on_poll_start: Callable[[], None]
    #: Takes a job for the next free process.
    _quick_put: Callable[[Any], None]
    _hub: Any = None
    _is_short = False
    _will_retry = False

    def Process(self, *args: Any, **options: Any) -> Any:
        """A new process, not started yet."""
        kinds = {"fork": ForkProcess, "spawn": SpawnProcess}
        return kinds[get_start_method()](*args, **options)

    def terminate_job(self, pid: int, sig: int | None = None) -> None:
        """Send a signal to the process that runs a job: SIGQUIT by default, and for those that it
        does nothing on."""
        super().terminate_job(pid, signal.SIGQUIT if sig in (None, *STOP_SIGNALS) else sig)

    def on_job_process_lost(self, job: Any, pid: int, exitcode: int) -> None:
        """End a job whose process has died."""
        if not _is_interruption(exitcode):
            super().on_job_process_lost(job, pid, exitcode)
            return
        try:
            raise ProcessTerminated(release_after=0 if _is_stopping() else INTERRUPTION_PAUSE)
        except ProcessTerminated:
            job._set(None, (False, ExceptionInfo()))

    def register_with_event_loop(self, hub: Any) -> None:
        """Manage the processes on this event loop."""
        self._hub = hub
        super().register_with_event_loop(hub)

    def _create_write_handlers(self, hub: Any, *args: Any, **options: Any) -> None:
        """Write jobs to the processes.

        Celery asks in each turn of the loop whether the pipe of a free process can be written to,
        and takes the question back if there is no job. The pipe of a process that has no job is
        empty, so here a job is written at once: when it is put if a process is free, otherwise in
        the next turn. If the pipe is full after all, Celery's `schedule_writes` waits for it.

        Celery writes the length of a job and the job itself in two calls, and the first one wakes
        the process. What the system writes as a whole or not at all goes in one call here."""
        super()._create_write_handlers(hub, *args, **options)
        celerys, write, put = self.on_poll_start, hub.consolidate_callback, self._quick_put
        is_fair = self.sched_strategy == asynpool.SCHED_STRATEGY_FAIR

        def free() -> set[int]:
            fds: set[int] = self._all_inqueues - self._busy_workers - self._active_writes
            return fds

        def put_now(job: Any) -> None:
            put(job)
            result = self._cache[job[1][0]]
            header, body, size = result._payload
            if len(header) + size <= select.PIPE_BUF:
                result._payload = memoryview(b"".join((header, body))), memoryview(b""), 0
                # Another one may wait already: then this one is the last.
                if is_fair and len(self.outbound_buffer) == 1 and (fds := free()):
                    self._write_now(result, fds.pop())

        def on_poll_start() -> None:
            if not is_fair:
                celerys()
            elif self.outbound_buffer and (fds := free()):
                write(list(fds))

        self.on_poll_start, self._quick_put = on_poll_start, put_now

    def _write_now(self, job: Any, fd: int) -> None:
        """Write the only job that waits to a process that is free, and record what Celery's
        `schedule_writes` records. If the system takes nothing, the job still waits."""
        process = self._fileno_to_inq.get(fd)
        if process is None:
            return
        job._scheduled_for = job._write_to = process
        try:
            os.write(fd, job._payload[0])
        except OSError:
            job._scheduled_for = job._write_to = None
            return
        self.outbound_buffer.pop()
        self._busy_workers.add(fd)
        self.write_stats[process.index] += 1

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


def _is_interruption(exitcode: int) -> bool:
    """Whether a signal ended the process that the worker had not sent, and the task had no part."""
    if -exitcode in STOP_SIGNALS:
        return True  # The task had set the default handler.
    return _is_stopping() and exitcode in AFTER_SIGQUIT


def _is_stopping() -> bool:
    """Whether the worker got a signal to stop."""
    return state.should_stop is not None


def _close_pipe(traceback: TracebackType | None) -> None:
    """Close the pipe that billiard leaves open if a fork fails (4.3 popen_fork.py)."""
    for frame, _ in walk_tb(traceback):
        if frame.f_code.co_name == "_launch":
            for name in ("parent_r", "child_w"):
                with suppress(KeyError, OSError):
                    os.close(frame.f_locals[name])


#: Which signal a process gets when the one that forked it ends: prctl(2).
PR_SET_PDEATHSIG = 1


def _prepare_for_forks() -> None:
    """Save what each process would take for itself."""
    if sys.platform.startswith("linux"):
        platforms._set_pdeathsig = _ask_for_signal()
    gc.freeze()


def _ask_for_signal() -> Callable[[int], None]:
    """What makes a process get a signal when this one ends. billiard's own uses cffi if that is
    installed, and then parses C: 1 MB in each process, and 5 MB here (billiard 4.3 util.py,
    `set_pdeathsig`)."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask(number: int) -> None:
        if prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")

    return ask


class TaskPool(CeleryTaskPool):
    """Celery's prefork pool with these processes. Set by `worker_pool`."""

    Pool = Processes

    def on_start(self) -> None:
        """Start the processes."""
        _prepare_for_forks()
        if not is_elsewhere(self.app):
            options = Options.read(self.app.conf.broker_transport_options)
            if options.metrics.port is not None:
                pool_sends.open(tuple(options.queues))
        super().on_start()
