"""Pauses the worker while MongoDB is unavailable or accepts no writes.

Without a pause, tasks would use up deliveries, and good messages would fill the dead-letter queue.
If a task fails with an error of `SUSPECT_ON`, this module probes MongoDB. If the probe fails, the
worker stops receiving, releases the messages that have not started, and does not count the
failures. It probes until MongoDB accepts writes, then resumes by itself. It also checks the
collections regularly: for example, it pauses if `users` has lost its unique index.

See docs/outage.md.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery import bootsteps
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    InvalidOperation,
    NetworkTimeout,
    PyMongoError,
    WaitQueueTimeoutError,
)

from app.errors import AWAY
from app.probe import Probe
from app.settings import get_settings
from sqs_broker.machine import threads
from sqs_broker.rules.backoff import half_jitter
from sqs_broker.rules.suspicion import Suspicion

if TYPE_CHECKING:
    from sqs_broker.sqs.deliveries import Deliveries

logger = logging.getLogger(__name__)

#: Failures of a task that an outage may have caused: any error of pymongo, because no list of
#: MongoDB's error codes is complete, and the time limits, because a task may wait for a MongoDB
#: that does not answer.
SUSPECT_ON = (PyMongoError, SoftTimeLimitExceeded, TimeLimitExceeded)

#: Errors of calls that did not reach MongoDB. They also occur if another thread has replaced the
#: client meanwhile, or if a connection has become unusable (app/once.py).
UNREACHABLE = (AutoReconnect, ConfigurationError, InvalidOperation, WaitQueueTimeoutError)

#: Seconds between two checks of the collections while there is no outage.
CHECK_EVERY = 10.0

#: Longest first pause between two probes, in seconds. It doubles with each failed probe.
FIRST_PAUSE = 0.5

#: Longest pause at all, in seconds. Together with a probe it is shorter than the 10 s within which
#: a worker resumes.
LONGEST_PAUSE = 4.0

#: Seconds after an outage in which a run may still use a dead connection: the driver's monitor
#: needs this time to notice (app/models.py).
DEAD_CONNECTIONS = 15

#: Seconds until a message runs again that failed because of an outage that is over.
RUN_AGAIN_AFTER = 2

#: Returns an error, or None.
Check = Callable[[], str | None]


def probe(uri: str) -> str | None:
    """Try the writes of the tasks. Return None if MongoDB accepts them, or the error."""
    with closing(Probe(uri)) as once:
        return once.find_error()


def is_unreachable(exc: BaseException) -> bool:
    """Whether a call did not reach MongoDB, so that the message cannot have caused the error.

    A call that reached MongoDB but took too long may have been slow because of the message.
    """
    if isinstance(exc, NetworkTimeout):
        return False
    return isinstance(exc, UNREACHABLE)


class Outage:
    """Detects the beginning and the end of an outage, in one thread of the main process."""

    def __init__(
        self,
        find_error: Check,
        aftermath: float,
        find_fault: Check = lambda: None,
        pauses: tuple[float, float] = (FIRST_PAUSE, LONGEST_PAUSE),
    ) -> None:
        """`find_error` tries the writes of the tasks and returns the error. `find_fault` only
        reads; it is also called while there is no outage. `aftermath`: seconds after an outage in
        which runs may still fail because of it. `pauses`: the longest first pause between two
        probes, and the longest of all, in seconds."""
        self._first_pause, self._longest_pause = pauses
        self._find_error = find_error
        self._find_fault = find_fault
        self._aftermath = aftermath
        self._deliveries: Deliveries | None = None
        self._changed = threading.Condition()
        self._suspicions: list[Suspicion] = []
        self._is_away = False
        self._began_at = 0.0
        self._over_at = float("-inf")
        self._stopping = threading.Event()

    def watch(self, deliveries: "Deliveries") -> None:
        """Check the suspicions of these deliveries, in a thread that ends with `stop`.

        Raises NoThread if the thread cannot start: no suspicion would ever be decided.
        """
        self._deliveries = deliveries
        self._stopping = threading.Event()
        deliveries.on_suspicion = self.suspect
        if self._is_away:
            deliveries.pause(AWAY, self._longest_pause)
        threads.insist(self._run, "outage-watch", self._stopping)

    def stop(self) -> None:
        """End the thread. Undecided deliveries are released when `deliveries` is closed."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def suspect(self, suspicion: Suspicion) -> None:
        """Have the suspicion confirmed or dismissed soon. Returns at once."""
        with self._changed:
            if not self._is_away:
                self._suspicions.append(suspicion)
                self._changed.notify_all()
                return
        self._confirm(suspicion)

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                if self._is_away:
                    self._probe_until_over(stopping)
                elif suspicions := self._next(stopping):
                    self._decide(suspicions)
                elif not stopping.is_set() and (fault := self._find_fault()):
                    self._begin(fault)
            except Exception:
                # Broad on purpose: without this thread an outage would never end.
                logger.exception(
                    "Could not check MongoDB; trying again.", extra={"event": "outage.broken"}
                )
                stopping.wait(self._first_pause)

    def _next(self, stopping: threading.Event) -> list[Suspicion]:
        """Wait for suspicions. Returns none if it is time to check the collections, or to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._suspicions or stopping.is_set(), CHECK_EVERY)
            suspicions, self._suspicions = self._suspicions, []
            return [] if stopping.is_set() else suspicions

    def _decide(self, suspicions: list[Suspicion]) -> None:
        error = self._find_error()
        if error is not None:
            self._begin(error)
        for suspicion in suspicions:
            # A run that started during the outage failed because of it, even if it is over now.
            if error is not None or suspicion.started_at < self._over_at + self._aftermath:
                self._confirm(suspicion)
            else:
                suspicion.dismiss()

    def _begin(self, error: str) -> None:
        assert self._deliveries is not None
        self._began_at = monotonic()
        logger.error(
            "MongoDB is unavailable or accepts no writes (%s); receiving is paused.",
            error,
            extra={"event": "outage.begins", "error": error},
        )
        self._deliveries.pause(AWAY, self._longest_pause)
        with self._changed:
            self._is_away = True
            late, self._suspicions = self._suspicions, []
        for suspicion in late:
            self._confirm(suspicion)

    def _probe_until_over(self, stopping: threading.Event) -> None:
        """Probe until MongoDB accepts writes, or the worker stops."""
        for probes in count(1):
            # With jitter, so that workers do not probe at the same time.
            if stopping.wait(half_jitter(self._first_pause, probes, self._longest_pause)):
                return
            if self._find_error() is None:
                self._end()
                return

    def _end(self) -> None:
        assert self._deliveries is not None
        with self._changed:
            self._is_away = False
            self._over_at = monotonic()
        self._deliveries.resume(AWAY)
        logger.info(
            "MongoDB accepts writes again; receiving resumes.",
            extra={"event": "outage.ends", "seconds": round(self._over_at - self._began_at, 1)},
        )

    def _confirm(self, suspicion: Suspicion) -> None:
        assert self._deliveries is not None
        suspicion.confirm(max(self._deliveries.release_after, RUN_AGAIN_AFTER))


class OutageWatch(bootsteps.StartStopStep):
    """Runs Outage in the main process of each worker, from start to stop of the consumer."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        settings = get_settings()
        # An interrupted transaction keeps its locks for this long.
        locks = settings.mongo_transaction_lifetime
        self._probe = Probe(settings.require_mongo_uri())
        self._outage = Outage(
            self._probe.find_error, max(locks, DEAD_CONNECTIONS), self._probe.find_fault
        )

    def start(self, consumer: Any) -> None:
        self._outage.watch(consumer.task_consumer.channel.deliveries)

    def stop(self, consumer: Any) -> None:
        self._outage.stop()
