"""Runs the event loop while tasks finish, or ends the pool's processes if they must not."""

import os
import signal
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from billiard.process import active_children
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state

from sqs_broker.worker.loop import Loop

#: Seconds that a pool process has to end after SIGQUIT, before it is killed. The `finally` blocks
#: of its task run meanwhile, also on a busy machine.
CANCEL_PATIENCE = 5

#: Longest wait for a killed process to end, in seconds.
KILL_PATIENCE = 5


class Drain:
    """Runs the event loop of a consumer whose loop Celery no longer runs.

    `on_terminate` is called if the worker is asked to terminate meanwhile.
    """

    def __init__(self, consumer: Any, on_terminate: Callable[[], None]) -> None:
        self._consumer = consumer
        self._hub = consumer.hub
        self._on_terminate = on_terminate

    def turn(self, until: Callable[[], bool]) -> None:
        """Run the loop until `until()` is true. Raises LoopBroken."""
        loop = Loop(self._hub, "shutdown.error")
        while not until():
            try:
                next(loop)
            except WorkerShutdown:
                continue
            except WorkerTerminate:
                self._on_terminate()

    def end_processes(self) -> None:
        """End the pool's processes and their tasks, then handle the results that they had sent."""
        pool = self._consumer.pool
        processes = set(pool.info["processes"])
        running = tuple(state.active_requests)
        pool.close()  # From now on the pool replaces no process that ends.
        for request in running:
            request.cancel(pool, emit_retry=False)
        # Its process ends already, because the request was cancelled.
        kill(processes - {request.worker_pid for request in running}, signal.SIGQUIT)
        self._await_end(processes, CANCEL_PATIENCE)
        kill(processes & children(), signal.SIGKILL)
        self._await_end(processes, KILL_PATIENCE)
        loop = Loop(self._hub, "shutdown.error")
        for _ in range(2):  # The first turn reads results, the second settles them.
            self._wake()
            next(loop)

    def _await_end(self, processes: set[int], seconds: float) -> None:
        deadline = monotonic() + seconds
        self._hub.call_later(seconds, self._wake)
        self.turn(lambda: not processes & children() or monotonic() >= deadline)

    def _wake(self) -> None:
        self._consumer.connection.transport.inbox.wake()


def children() -> set[int]:
    """The process ids of this process's running children. Reaps those that have ended."""
    return {child.pid for child in active_children()}


def kill(processes: Iterable[int], number: int) -> None:
    """Send a signal to each process that still exists."""
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
