"""A process of the prefork pool, which does not end by a SIGTERM or a SIGHUP.

Process managers send SIGTERM to a worker's process group, or to each of its processes; some send
SIGHUP, at which Celery's main process restarts. In Celery's own pool both end the running tasks at
once. Here a pool process does nothing on them, and the worker ends its processes by SIGQUIT, which
runs the `finally` blocks of a task as SIGTERM did.
"""

import os
import signal
from contextlib import suppress
from time import monotonic
from typing import Any

from billiard import context, current_process
from celery.concurrency import asynpool

from sqs_broker.machine.frames import with_space
from sqs_broker.observers.pool_sends import pool_sends

#: What a pool process does nothing on. Each of them tells the main process to stop.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

#: Seconds in which further SIGQUITs to a process mean the same as the first.
ONE_END = 1.0


class Worker(asynpool.Worker):
    """What a pool process runs."""

    def after_fork(self) -> None:
        """Set the process up, which calls Celery's signal `worker_process_init`."""
        # First, because a receiver of the signal may send messages.
        pool_sends.join(current_process().index)
        super().after_fork()

    def workloop(self, *args: Any, **options: Any) -> Any:
        """Run one job after another, until the process must end."""
        # Here, because billiard sets its own handlers after the fork and after every signal of
        # Celery that a project could use (4.3 pool.py, `after_fork`).
        with _Signals():
            # Once for all jobs: to get the space and to return it takes 60 us for each.
            return with_space(super().workloop, *args, **options)


class _Signals:
    """A context in which this process does nothing on the stop signals, and on a SIGQUIT what
    billiard does. Several SIGQUITs within a second count as one: the second would end the process
    before the `finally` blocks of its task have run.

    The handlers are functions: unlike SIG_IGN, a program that a task starts does not inherit them.
    A process that a task forks inherits them, so there they do what the former handlers do.

    At no moment does SIGQUIT have its default handler, which would end the process at once, before
    any `finally`. A job that ten messages share gets ten SIGQUITs within microseconds.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._ended_at = float("-inf")
        self._former: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (*STOP_SIGNALS, signal.SIGQUIT):
            self._former[number] = signal.signal(number, self._react)

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _react(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            signal.signal(number, self._former[number])
            signal.raise_signal(number)
        elif number == signal.SIGQUIT and monotonic() - self._ended_at > ONE_END:
            self._ended_at = monotonic()
            self._end(number, frame)

    def _end(self, number: int, frame: Any) -> None:
        """Raise what billiard's handler raises. That handler first sets the default handler of the
        signal that it is called for, and ignores it if the system refuses (billiard 4.3 common.py,
        `_shutdown_cleanup`). SIGKILL's is always refused."""
        try:
            self._former[number](signal.SIGKILL, frame)
        except SystemExit as exc:
            raise SystemExit(number - 256) from exc


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
