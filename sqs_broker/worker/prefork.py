"""Celery's prefork pool, which recovers if a process cannot be forked, and whose processes survive
a SIGTERM that is sent to all processes of the worker.

Celery's own pool keeps a process that could not be forked half created, with its place and its
pipes, for ever (billiard 4.3 pool.py, `_create_worker_process`; celery 5.7
concurrency/asynpool.py).

Process managers send SIGTERM to a worker's process group, or to each of its processes. In Celery's
own pool that ends the running tasks at once. Here a pool process does nothing on a SIGTERM, and the
worker ends its processes by SIGQUIT, which runs the `finally` blocks of a task as SIGTERM did.
"""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from traceback import walk_tb
from types import TracebackType
from typing import Any
from weakref import WeakSet

from billiard import context, get_start_method
from billiard.common import EX_SOFTWARE
from billiard.einfo import ExceptionInfo
from billiard.exceptions import RestartFreqExceeded
from celery.concurrency import asynpool
from celery.concurrency.prefork import TaskPool as CeleryTaskPool
from celery.worker import state

from sqs_broker.rules.happened import ProcessTerminated

logger = logging.getLogger(__name__)

#: Seconds until the pool tries again to start a process.
RETRY_PAUSE = 1.0

#: How a process exits after a SIGQUIT: with the number of the signal, or with EX_SOFTWARE, because
#: the pool sends SIGTERM to a process that announces its exit (billiard 4.3 common.py, pool.py).
AFTER_SIGQUIT = (signal.SIGQUIT, EX_SOFTWARE)


class Worker(asynpool.Worker):
    """What a pool process runs."""

    def workloop(self, *args: Any, **options: Any) -> Any:
        """Run one job after another, until the process must end."""
        # Here, because billiard sets its own handlers after the fork and after every signal of
        # Celery that a project could use (4.3 pool.py, `after_fork`).
        with _ignoring_sigterm():
            return super().workloop(*args, **options)


class _EndedBySigquit:
    """A process that the pool ends by SIGQUIT: to shrink, and at a hard time limit."""

    pid: int

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGQUIT)


# The names of the classes are part of the names of the processes.


class ForkProcess(_EndedBySigquit, context.ForkProcess):
    """A forked process of the pool."""


class SpawnProcess(_EndedBySigquit, context.SpawnProcess):
    """A process of the pool that was started as a new interpreter."""


class Processes(asynpool.AsynPool):
    """The pool's processes. One that has ended is replaced as soon as the machine has resources."""

    Worker = Worker
    _hub: Any = None
    _is_short = False
    _will_retry = False

    def __init__(self, *args: Any, **options: Any) -> None:
        #: The jobs whose process was told to end.
        self._ended: WeakSet[Any] = WeakSet()
        super().__init__(*args, **options)

    def Process(self, *args: Any, **options: Any) -> Any:
        """A new process, not started yet."""
        kinds = {"fork": ForkProcess, "spawn": SpawnProcess}
        return kinds[get_start_method()](*args, **options)

    def terminate_job(self, pid: int, sig: int | None = None) -> None:
        """Send a signal to the process that runs a job: by default, and instead of SIGTERM,
        SIGQUIT. Messages may share the job, and this is called for each of them: the process gets
        only one SIGQUIT, because a second would end it before its `finally` blocks have run."""
        number = signal.SIGQUIT if sig in (None, signal.SIGTERM) else sig
        if number == signal.SIGQUIT:
            jobs = {job for job in self._cache.values() if pid in job.worker_pids()}
            if jobs and jobs <= set(self._ended):
                return
            self._ended.update(jobs)
        super().terminate_job(pid, number)

    def on_job_process_lost(self, job: Any, pid: int, exitcode: int) -> None:
        """End a job whose process has died."""
        if not _is_interruption(exitcode):
            super().on_job_process_lost(job, pid, exitcode)
            return
        try:
            raise ProcessTerminated("a signal from outside the worker ended the pool process")
        except ProcessTerminated:
            job._set(None, (False, ExceptionInfo()))

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


def _is_interruption(exitcode: int) -> bool:
    """Whether a signal ended the process that the worker had not sent, and the task had no part."""
    if exitcode == -signal.SIGTERM:
        return True  # The task had set the default handler.
    return state.should_stop is not None and exitcode in AFTER_SIGQUIT


@contextmanager
def _ignoring_sigterm() -> Iterator[None]:
    """Make this process do nothing on a SIGTERM.

    The handler is a function: unlike SIG_IGN, a program that a task starts does not inherit it. A
    process that a task forks inherits it, so there it does what the former handler does.
    """
    pid = os.getpid()
    former = signal.getsignal(signal.SIGTERM)

    def ignore(number: int, frame: Any) -> None:
        if os.getpid() != pid:
            signal.signal(number, former)
            signal.raise_signal(number)

    signal.signal(signal.SIGTERM, ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


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
