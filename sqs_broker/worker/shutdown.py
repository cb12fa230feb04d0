"""How a worker stops: it releases waiting messages, and running tasks have time to finish.

Celery's own stop (5.7 worker/worker.py) has no deadline and ignores a second SIGTERM. Its prefork
pool also forgets a task that a process has taken but not yet confirmed, and that process then stays
for half a minute (`AsynPool.flush`). So this module waits for the running tasks before Celery
begins to stop, while the event loop still runs: results, time limits and settlements work as usual.

A thread reacts to the signals, because a task may occupy the event loop (solo pool) or block it.
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
from sqs_broker.machine.textless import textless
from sqs_broker.worker.drain import Drain, children, kill

logger = logging.getLogger(__name__)

#: Seconds that the event loop has to settle the latest results of its tasks. In the solo pool the
#: loop is busy with a task and cannot.
LAST_TURN = 0.2

#: Seconds to send outcomes to SQS, three times, before a process exits without cleanup.
LAST_FLUSH = 3

#: Seconds after which a forced stop ends the process, whatever still runs.
LAST_RESORT = 15


#: Seconds in which further SIGTERMs belong to the first signal. systemd and Heroku signal every
#: process; if honcho or supervisord is one of them, it passes the signal on, and a worker gets two.
ONE_STOP = 1.0


class Ask(Enum):
    """A request to the thread."""

    STOP = "stop"
    STOP_AT_ONCE = "stop at once"
    END = "end"


class Shutdown:
    """The stop of one consumer: `listen` once it is ready, `drain` before Celery stops its parts,
    `finish` after that."""

    def __init__(
        self, consumer: Any, last_resort: float = LAST_RESORT, one_stop: float = ONE_STOP
    ) -> None:
        self._consumer = consumer
        self._last_resort = last_resort
        self._one_stop = one_stop
        self._pid = os.getpid()
        # A SimpleQueue, because a signal handler writes to it and must not wait for a lock.
        self._asked: SimpleQueue[Ask] = SimpleQueue()
        self._is_asked = False
        self._is_by_signal = False
        self._signalled_at = float("-inf")
        self._begun = threading.Event()
        self._forced = threading.Event()
        self._thread: threading.Thread | None = None
        self._timeout = 0.0
        self._status = 0

    def listen(self) -> None:
        """Start to wait for signals. May be called again after a reconnect. Raises NoThread."""
        if self._thread is not None:
            return
        self._timeout = self._consumer.connection.transport.options.shutdown_timeout
        self._thread = threads.insist(self._run, "sqs-shutdown")
        signals.worker_shutting_down.connect(self._on_signal)
        if threading.current_thread() is threading.main_thread():
            self._replace_cold_shutdown()

    def give_up(self, status: int) -> None:
        """Stop at once, and end the process with this exit status. For any thread. Does nothing if
        a stop was asked for."""
        if self._is_asked:
            return
        self._status = status
        if self._thread is None:
            self._leave()
            return
        # Celery's loop raises it (celery 5.7 worker/state.py, `maybe_shutdown`).
        state.should_stop = status
        self._ask(Ask.STOP_AT_ONCE)

    def drain(self) -> None:
        """Run the event loop until no task runs, or until the stop is forced."""
        if self._thread is None or self._deliveries is None or not self._consumer.hub.readers:
            return  # The consumer never was ready, or an error removed the loop's readers.
        if not self._is_asked:
            self._ask(Ask.STOP)
        if self._is_by_signal:
            self._consumer.controller.exitcode = 0  # Celery sets 1 after Ctrl+C.
        if semaphore := self._consumer.controller.semaphore:
            semaphore.clear()  # The requests that wait for the pool must not start.
        try:
            drain = Drain(self._consumer, on_terminate=lambda: self._ask(Ask.STOP_AT_ONCE))
            drain.turn(self._is_over)
            if self._forced.is_set() and self._has_processes:
                drain.end_processes()
                self._deliveries.release(running=True)
        except Exception as exc:
            # Broad on purpose: Celery's own stop must still follow, and the thread limits its time.
            logger.error(
                "Could not wait for running tasks; shutdown continues.",
                exc_info=textless(exc),
                extra={"event": "shutdown.broken"},
            )

    def finish(self) -> None:
        """End the thread: the worker has stopped, and its process exits."""
        signals.worker_shutting_down.disconnect(self._on_signal)
        self._asked.put(Ask.END)

    # In a signal handler: no lock, no log

    def _on_signal(self, how: str, **_: Any) -> None:
        """React to the first signal, which Celery's handler announces. Each later signal forces the
        stop, except a SIGTERM that belongs to the first."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._at_once)
        if how == "Warm" and self._is_same_stop():
            return  # It came while Celery's handler of the first one ran.
        self._is_by_signal = True
        self._signalled_at = monotonic()
        self._ask(Ask.STOP if how == "Warm" else Ask.STOP_AT_ONCE)

    def _at_once(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            return  # This is a pool process, forked after the handler was set.
        if number == signal.SIGTERM and self._is_same_stop():
            return
        self._is_by_signal = True
        state.should_stop = 0
        self._ask(Ask.STOP_AT_ONCE)

    def _is_same_stop(self) -> bool:
        return monotonic() - self._signalled_at < self._one_stop

    def _ask(self, ask: Ask) -> None:
        self._is_asked = True
        self._asked.put(ask)
        self._wake_the_loop()

    def _wake_the_loop(self) -> None:
        connection = self._consumer.connection
        if connection is not None:
            connection.transport.inbox.wake()

    def _replace_cold_shutdown(self) -> None:
        # Celery's own handler joins the pool, which never ends in the threads pool (celery 5.7
        # apps/worker.py, `on_cold_shutdown`).
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
        """The next request; STOP_AT_ONCE if there is none within `seconds`."""
        try:
            return self._asked.get(timeout=seconds)
        except Empty:
            return Ask.STOP_AT_ONCE

    def _begin(self) -> None:
        try:
            if deliveries := self._deliveries:
                deliveries.on_empty(self._wake_the_loop)
                deliveries.stop_receiving()
                self._log_begun(deliveries.release(running=False))
        except Exception as exc:
            # Broad on purpose: without this thread the stop would have no deadline.
            logger.error(
                "Could not release waiting messages; shutdown continues.",
                exc_info=textless(exc),
                extra={"event": "shutdown.broken"},
            )
        self._begun.set()
        self._wake_the_loop()

    def _log_begun(self, released: int) -> None:
        logger.info(
            "Stopping: receiving has ended, %d waiting messages are released, and running tasks "
            "have %g s to finish.",
            released,
            self._timeout,
            extra={"event": "shutdown.begun", "count": released},
        )

    def _force(self) -> None:
        running = len(state.active_requests)
        logger.warning(
            "Stopping at once: %d running tasks are ended and their messages released.",
            running,
            extra={"event": "shutdown.forced", "count": running},
        )
        if deliveries := self._deliveries:
            deliveries.give_up_polls()
        self._forced.set()
        self._wake_the_loop()
        if self._has_processes:
            if self._ends_within(self._last_resort):
                return  # The loop has ended the processes, and Celery has stopped the rest.
            logger.error(
                "The worker did not stop in time; its process exits now.",
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
        """End the process without cleanup: a thread cannot be stopped, and the interpreter would
        wait for it."""
        try:
            kill(children(), signal.SIGKILL)
            if deliveries := self._deliveries:
                self._release_all(deliveries)
        finally:
            # Any other controller belongs to a program that must not exit with its worker.
            if isinstance(self._consumer.controller, Worker):
                logging.shutdown()
                leave_at_once(self._status)

    def _release_all(self, deliveries: Any) -> None:
        # Ended deliveries go first, so that no message is visible long before its task is ended.
        settled = threading.Event()
        self._consumer.hub.call_soon(settled.set)
        settled.wait(LAST_TURN)
        deliveries.flush(LAST_FLUSH)
        deliveries.release(running=True)
        deliveries.flush(LAST_FLUSH)
        # Last, because an open receive call may return a message that was just released. It is
        # released again.
        deliveries.await_polls()
        if not deliveries.flush(LAST_FLUSH):
            logger.warning(
                "Exiting before SQS had every outcome; it delivers those messages again.",
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
        # Only prefork uses a semaphore (celery 5.7 concurrency/base.py).
        return bool(self._consumer.pool.uses_semaphore)
