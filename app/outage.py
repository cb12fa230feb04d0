"""Notices that MongoDB is away or takes no writes, and pauses the worker until it does.

Else running tasks would burn deliveries, and good messages would fill the dead-letter queue. A
failure that may come of an outage (`SUSPECT_ON`) is a hint; a probe that fails is the fact. Then
nothing is received, what has not started is handed back, and what fails of it does not count. The
probe goes on until MongoDB takes writes, and the worker resumes by itself. The collections are also
looked at while all is well: without its unique index, for one, `users` is paused for.

Docs: docs/outage.md.
"""

import logging
import random
import threading
from collections.abc import Callable
from contextlib import closing
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

from app.probe import Probe
from app.settings import get_settings
from sqs_broker.machine import threads
from sqs_broker.rules.suspicion import Suspicion

if TYPE_CHECKING:
    from sqs_broker.sqs.deliveries import Deliveries

logger = logging.getLogger(__name__)

#: Failures of a task that an outage may have caused: whatever MongoDB answers, since no list of its
#: codes is complete. A task that waits for a silent MongoDB may also be ended by a time limit.
SUSPECT_ON = (PyMongoError, SoftTimeLimitExceeded, TimeLimitExceeded)

#: What says that a call did not get through: among them that another thread has replaced the client
#: meanwhile, and that a connection is of no use any more (app/once.py).
UNREACHABLE = (AutoReconnect, ConfigurationError, InvalidOperation, WaitQueueTimeoutError)

#: Why nothing is received.
AWAY = "MongoDB is away"

#: Seconds between two looks at the collections while all is well.
LOOK_EVERY = 10.0

#: Seconds: the ceiling of the first pause between two probes, doubled by each one that fails.
FIRST_PAUSE = 0.5

#: Seconds to which these pauses grow. With a probe's time they are less than the 10 s within which
#: a worker resumes.
LONGEST_PAUSE = 4.0

#: Seconds after an outage in which a run may still meet a connection that it has left dead: the
#: driver's monitor needs these to notice (app/models.py).
DEAD_CONNECTIONS = 15

#: Seconds after which a message runs again that failed of an outage which is over.
RUN_AGAIN_AFTER = 2

Look = Callable[[], str | None]


def probe(uri: str) -> str | None:
    """Whether MongoDB takes what the tasks write: None, or why not."""
    with closing(Probe(uri)) as made:
        return made.find_error()


def is_unreachable(exc: BaseException) -> bool:
    """Whether a call did not get through to MongoDB, so that no message can be blamed for it.

    One that did, and took too long, may be the message's own.
    """
    if isinstance(exc, NetworkTimeout):
        return False
    return isinstance(exc, UNREACHABLE)


class Outage:
    """Whether MongoDB is away, as this worker knows it: one thread, in the main process."""

    def __init__(self, find_error: Look, aftermath: float, find_fault: Look = lambda: None) -> None:
        """`find_error` writes as the tasks do and says why it cannot; `find_fault` only looks, also
        while all is well. `aftermath`: seconds after an outage in which runs may fail of what it
        left behind."""
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
        """Look into what is suspected of these, on a thread that ends with `stop`.

        Raises NoThread: without it no suspicion would ever get its verdict.
        """
        self._deliveries = deliveries
        self._stopping = threading.Event()
        deliveries.on_suspicion = self.suspect
        if self._is_away:
            deliveries.pause(AWAY, LONGEST_PAUSE)
        threads.insist(self._run, "outage-watch", self._stopping)

    def stop(self) -> None:
        """Look no more. Whoever closes them releases what waits for a verdict."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def suspect(self, suspicion: Suspicion) -> None:
        """Find out, and tell the suspicion. Returns at once."""
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
                    self._endure(stopping)
                elif suspicions := self._next(stopping):
                    self._look_into(suspicions)
                elif not stopping.is_set() and (fault := self._find_fault()):
                    self._begin(fault)
            except Exception:
                # Broad on purpose: without this thread an outage would never end.
                logger.exception("Looking for MongoDB failed.", extra={"event": "outage.broken"})
                stopping.wait(FIRST_PAUSE)

    def _next(self, stopping: threading.Event) -> list[Suspicion]:
        """What is suspected now; nothing if it is time to look at the collections, or to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._suspicions or stopping.is_set(), LOOK_EVERY)
            suspicions, self._suspicions = self._suspicions, []
            return [] if stopping.is_set() else suspicions

    def _look_into(self, suspicions: list[Suspicion]) -> None:
        error = self._find_error()
        if error is not None:
            self._begin(error)
        for suspicion in suspicions:
            # A run that met the outage failed of it, also where that is over by now.
            if error is not None or suspicion.started_at < self._over_at + self._aftermath:
                self._confirm(suspicion)
            else:
                suspicion.dismiss()

    def _begin(self, error: str) -> None:
        assert self._deliveries is not None
        self._began_at = monotonic()
        logger.error(
            "MongoDB is away, or does not take writes (%s). Nothing is received until it does.",
            error,
            extra={"event": "outage.begins", "error": error},
        )
        self._deliveries.pause(AWAY, LONGEST_PAUSE)
        with self._changed:
            self._is_away = True
            late, self._suspicions = self._suspicions, []
        for suspicion in late:
            self._confirm(suspicion)

    def _endure(self, stopping: threading.Event) -> None:
        """Probe until MongoDB is back, or the worker stops."""
        ceiling = FIRST_PAUSE
        # With jitter: a fleet does not probe in step.
        while not stopping.wait(random.uniform(ceiling / 2, ceiling)):
            if self._find_error() is None:
                self._end()
                return
            ceiling = min(2 * ceiling, LONGEST_PAUSE)

    def _end(self) -> None:
        assert self._deliveries is not None
        with self._changed:
            self._is_away = False
            self._over_at = monotonic()
        self._deliveries.resume(AWAY)
        logger.info(
            "MongoDB takes writes again; messages are received again.",
            extra={"event": "outage.ends", "seconds": round(self._over_at - self._began_at, 1)},
        )

    def _confirm(self, suspicion: Suspicion) -> None:
        assert self._deliveries is not None
        suspicion.confirm(max(self._deliveries.release_after, RUN_AGAIN_AFTER))


class OutageWatch(bootsteps.StartStopStep):
    """Starts and stops with the consumer of each worker, in its main process."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        settings = get_settings()
        # A transaction that was cut off keeps its locks for this long.
        locks = settings.mongo_transaction_lifetime
        self._probe = Probe(settings.require_mongo_uri())
        self._outage = Outage(
            self._probe.find_error, max(locks, DEAD_CONNECTIONS), self._probe.find_fault
        )

    def start(self, consumer: Any) -> None:
        self._outage.watch(consumer.task_consumer.channel.deliveries)

    def stop(self, consumer: Any) -> None:
        self._outage.stop()
