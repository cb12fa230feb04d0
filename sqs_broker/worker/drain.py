"""The end of what runs: the event loop turns on while tasks finish, and the pool's processes are
ended where they shall not."""

import os
import signal
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from billiard.process import active_children
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state

from sqs_broker.worker.loop import Loop

#: Seconds a process of the pool has to end by itself (SIGTERM) before it is killed.
CANCEL_PATIENCE = 1

#: Seconds until a process that was killed is gone.
KILL_PATIENCE = 5


class Drain:
    """Turns the event loop of a consumer that Celery itself turns no more.

    `on_terminate` is called where something asks for the end of the worker meanwhile.
    """

    def __init__(self, consumer: Any, on_terminate: Callable[[], None]) -> None:
        self._consumer = consumer
        self._hub = consumer.hub
        self._on_terminate = on_terminate

    def turn(self, until: Callable[[], bool]) -> None:
        """Turn the loop until this holds. Raises LoopBroken."""
        loop = Loop(self._hub, "shutdown.error")
        while not until():
            try:
                next(loop)
            except WorkerShutdown:
                continue
            except WorkerTerminate:
                self._on_terminate()

    def end_processes(self) -> None:
        """End the processes of the pool, with what they run. What they had said is heard."""
        pool = self._consumer.pool
        processes = set(pool.info["processes"])
        running = tuple(state.active_requests)
        pool.close()  # It starts no process in place of one that ends.
        for request in running:
            request.cancel(pool, emit_retry=False)
        # A second SIGTERM would cut a task's cleanup short.
        kill(processes - {request.worker_pid for request in running}, signal.SIGTERM)
        self._await_end(processes, CANCEL_PATIENCE)
        kill(processes & children(), signal.SIGKILL)
        self._await_end(processes, KILL_PATIENCE)
        loop = Loop(self._hub, "shutdown.error")
        for _ in range(2):  # Results are read, then settled.
            self._wake()
            next(loop)

    def _await_end(self, processes: set[int], seconds: float) -> None:
        deadline = monotonic() + seconds
        self._hub.call_later(seconds, self._wake)
        self.turn(lambda: not processes & children() or monotonic() >= deadline)

    def _wake(self) -> None:
        self._consumer.connection.transport.inbox.wake()


def children() -> set[int]:
    """The ids of this process's children; those that have ended are collected."""
    return {child.pid for child in active_children()}


def kill(processes: Iterable[int], number: int) -> None:
    """Send a signal to those that are still there."""
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
