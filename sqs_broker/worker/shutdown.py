"""How a worker stops: nothing it received stays hidden, and what runs has its time to finish.

Celery's own stop (5.7 worker/worker.py) has no deadline, a second SIGTERM changes nothing in it,
and its prefork pool forgets a task that a process has taken and not yet confirmed, which then keeps
that process for half a minute (`AsynPool.flush`). So what runs is awaited before Celery begins to
stop, while its event loop still turns: results, time limits and settlements go their usual way.

A thread takes the signals, for a task may occupy the loop (solo), or hang it.
"""

import logging
import os
import signal
import threading
from enum import Enum
from os import _exit as leave_at_once
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from celery import signals
from celery.apps.worker import Worker
from celery.worker import state

from sqs_broker.machine import threads
from sqs_broker.worker.drain import Drain, children, kill

logger = logging.getLogger(__name__)

#: Seconds the event loop has to settle what its tasks have just told it; in solo, it is busy.
LAST_TURN = 0.2

#: Seconds to tell SQS outcomes, each of three times, where the process leaves without unwinding.
LAST_FLUSH = 3

#: Seconds of a forced stop after which the process leaves, whatever holds it up.
LAST_RESORT = 15


class Ask(Enum):
    """What the thread is told."""

    STOP = "stop"
    STOP_AT_ONCE = "stop at once"
    END = "end"


class Shutdown:
    """The stop of one consumer: `listen` once it is ready, `drain` before Celery stops its parts,
    `finish` after that."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._pid = os.getpid()
        # A signal handler puts: it takes no lock that its own thread could hold.
        self._asked: SimpleQueue[Ask] = SimpleQueue()
        self._is_asked = False
        self._is_by_signal = False
        self._begun = threading.Event()
        self._forced = threading.Event()
        self._thread: threading.Thread | None = None
        self._timeout = 0.0

    def listen(self) -> None:
        """Wait for signals. May be called again, after a reconnect. Raises NoThread."""
        if self._thread is not None:
            return
        self._timeout = self._consumer.connection.transport.options.shutdown_timeout
        self._thread = threads.insist(self._run, "sqs-shutdown")
        signals.worker_shutting_down.connect(self._on_signal)
        if threading.current_thread() is threading.main_thread():
            self._replace_cold_shutdown()

    def drain(self) -> None:
        """Turn the event loop until nothing runs, or until the stop is forced."""
        if self._thread is None or self._deliveries is None or not self._consumer.hub.readers:
            return  # It never was ready, or an error has emptied the loop.
        if not self._is_asked:
            self._ask(Ask.STOP)
        if self._is_by_signal:
            self._consumer.controller.exitcode = 0  # Celery's is 1 after Ctrl+C.
        if semaphore := self._consumer.controller.semaphore:
            semaphore.clear()  # What waits for the pool is released, and not to be started.
        try:
            drain = Drain(self._consumer, on_terminate=lambda: self._ask(Ask.STOP_AT_ONCE))
            drain.turn(self._is_over)
            if self._forced.is_set() and self._has_processes:
                drain.end_processes()
                self._deliveries.release(running=True)
        except Exception:
            # Broad on purpose: Celery's own stop has still to come, and the thread bounds it.
            logger.exception("Draining failed.", extra={"event": "shutdown.broken"})

    def finish(self) -> None:
        """The worker has stopped; its process ends."""
        signals.worker_shutting_down.disconnect(self._on_signal)
        self._asked.put(Ask.END)

    # In a signal handler: no lock, no log

    def _on_signal(self, how: str, **_: Any) -> None:
        """The first signal has come: Celery's handler says so. Any further one means: at once."""
        self._is_by_signal = True
        self._ask(Ask.STOP if how == "Warm" else Ask.STOP_AT_ONCE)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._at_once)

    def _at_once(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            return  # A process of the pool, forked since.
        self._is_by_signal = True
        state.should_stop = 0
        self._ask(Ask.STOP_AT_ONCE)

    def _ask(self, ask: Ask) -> None:
        self._is_asked = True
        self._asked.put(ask)
        self._wake_the_loop()

    def _wake_the_loop(self) -> None:
        connection = self._consumer.connection
        if connection is not None:
            connection.transport.inbox.wake()

    def _replace_cold_shutdown(self) -> None:
        # Celery's joins the pool in the signal handler, for ever where it is one of threads
        # (celery 5.7 apps/worker.py, `on_cold_shutdown`).
        for number in (signal.SIGTERM, signal.SIGQUIT):
            if getattr(signal.getsignal(number), "__name__", "") == "worker_Cold":
                signal.signal(number, self._at_once)

    # On the thread

    def _run(self) -> None:
        ask = self._asked.get()
        if ask is not Ask.END:
            self._begin()
        if ask is Ask.STOP:
            ask = self._next(self._timeout)
        if ask is not Ask.END:
            self._force()

    def _next(self, seconds: float) -> Ask:
        """What is asked next; to stop at once where nothing is, within so many seconds."""
        try:
            return self._asked.get(timeout=seconds)
        except Empty:
            return Ask.STOP_AT_ONCE

    def _begin(self) -> None:
        try:
            if deliveries := self._deliveries:
                deliveries.on_empty(self._wake_the_loop)
                deliveries.stop_receiving()
                self._say_begun(deliveries.release(running=False))
        except Exception:
            # Broad on purpose: without this thread the stop would have no end.
            logger.exception("Stopping goes on.", extra={"event": "shutdown.broken"})
        self._begun.set()
        self._wake_the_loop()

    def _say_begun(self, released: int) -> None:
        logger.info(
            "Stopping: nothing more is received, %d messages are released, and what runs has %g s "
            "to finish.",
            released,
            self._timeout,
            extra={"event": "shutdown.begun", "count": released},
        )

    def _force(self) -> None:
        running = len(state.active_requests)
        logger.warning(
            "Stopping at once: %d running tasks are cut off and their messages released.",
            running,
            extra={"event": "shutdown.forced", "count": running},
        )
        if deliveries := self._deliveries:
            deliveries.give_up_polls()
        self._forced.set()
        self._wake_the_loop()
        if self._has_processes:
            if self._ends_within(LAST_RESORT):
                return  # The loop has ended the processes, and Celery all the rest.
            logger.error(
                "The worker does not come to its end; its process leaves.",
                extra={"event": "shutdown.last_resort"},
            )
        self._leave()

    def _ends_within(self, seconds: float) -> bool:
        deadline = monotonic() + seconds
        while (left := deadline - monotonic()) > 0:
            if self._next(left) is Ask.END:
                return True
        return False

    def _leave(self) -> None:
        """End the process: a thread cannot be stopped, and the interpreter would wait for it."""
        try:
            kill(children(), signal.SIGKILL)
            if deliveries := self._deliveries:
                self._hand_back(deliveries)
        finally:
            if isinstance(self._consumer.controller, Worker):  # Else it is part of a program.
                logging.shutdown()
                leave_at_once(0)

    def _hand_back(self, deliveries: Any) -> None:
        # What is done goes first, so that no message is visible long before its task is cut off.
        settled = threading.Event()
        self._consumer.hub.call_soon(settled.set)
        settled.wait(LAST_TURN)
        deliveries.flush(LAST_FLUSH)
        deliveries.release(running=True)
        deliveries.flush(LAST_FLUSH)
        # Last, for an open poll takes what was just released: it is handed back once more.
        deliveries.await_polls()
        if not deliveries.flush(LAST_FLUSH):
            logger.warning(
                "Left before SQS was told every outcome; it delivers those messages again.",
                extra={"event": "shutdown.unfinished"},
            )

    # On the event loop

    def _is_over(self) -> bool:
        if self._forced.is_set() and self._has_processes:
            return True
        return self._begun.is_set() and self._deliveries.is_empty and not state.active_requests

    # The worker's parts

    @property
    def _deliveries(self) -> Any:
        consumer = self._consumer.task_consumer
        return consumer.channel.deliveries if consumer else None

    @property
    def _has_processes(self) -> bool:
        # Only prefork does (celery 5.7 concurrency/base.py).
        return bool(self._consumer.pool.uses_semaphore)
