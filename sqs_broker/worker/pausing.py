"""Obeys the pauses of queues that `celery -A … sqs pause` writes into the control database.

A worker reads them before its first receive call, and then every few seconds. If MongoDB does not
answer, what was read last holds, and a pause with an end ends by this machine's clock. A worker
that cannot read them at its start runs tasks: nothing in the control database may keep a worker
from them.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from celery import bootsteps

from sqs_broker.control.planes import plane_for
from sqs_broker.errors import NoThread
from sqs_broker.machine import threads
from sqs_broker.options import ControlOptions
from sqs_broker.rules.pause import Pause
from sqs_broker.worker.defaults import is_elsewhere

logger = logging.getLogger(__name__)

#: Seconds between two reads of the pauses.
EVERY = 5.0

#: Seconds that MongoDB has for one read.
TIMEOUT = 2.0

#: How long the end of a worker waits for the thread, in seconds.
JOIN = 1.0


class Queues(Protocol):
    """What receives from queues. Called on the event loop only."""

    @property
    def paused_queues(self) -> Mapping[str, str]: ...

    def consumes(self, queue: str) -> bool: ...

    def pause_queue(self, queue: str, reason: str) -> None: ...

    def resume_queue(self, queue: str) -> None: ...


class Obedience:
    """Pauses and resumes queues as the control database says."""

    def __init__(
        self, read: Callable[[], Iterable[Pause]], now: Callable[[], datetime] | None = None
    ) -> None:
        """`read` returns the pauses, and may raise. `now` returns the time in UTC."""
        self._read = read
        self._now = now or partial(datetime.now, UTC)
        self._known: tuple[Pause, ...] = ()
        #: What was logged of each paused queue that the worker receives from.
        self._told: dict[str, str] = {}

    def read(self) -> None:
        """Read the pauses. Raises what the read raises; then those that were read last hold."""
        self._known = tuple(self._read())

    def apply(self, queues: Queues) -> None:
        """Pause the queues that are paused now, and resume the others."""
        now = self._now()
        wanted = {pause.queue: pause.text for pause in self._known if pause.lasts(now)}
        paused = queues.paused_queues
        for queue, why in wanted.items():
            if paused.get(queue) != why:
                queues.pause_queue(queue, why)
            if self._told.get(queue) != why and queues.consumes(queue):
                self._told[queue] = why
                logger.warning(
                    "Receiving from %s is paused: %s.",
                    queue,
                    why,
                    extra={"event": "queue.paused", "queue": queue, "reason": why},
                )
        for queue in paused.keys() - wanted.keys():
            with suppress(NoThread):  # The next call tries again.
                queues.resume_queue(queue)
        for queue in self._told.keys() - queues.paused_queues.keys():
            del self._told[queue]
            logger.info(
                "Receiving from %s resumes.",
                queue,
                extra={"event": "queue.resumed", "queue": queue},
            )


class Pausing(bootsteps.StartStopStep):
    """Reads the pauses in each worker, before it begins to receive and then in a thread."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._obedience: Obedience | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def include_if(self, consumer: Any) -> bool:
        """Whether this worker is one of this broker."""
        return not is_elsewhere(consumer.app)

    def start(self, consumer: Any) -> None:
        """Pause the paused queues, and watch for changes. Raises NoThread."""
        options: ControlOptions = consumer.connection.transport.control.options
        if options.uri is None:
            return
        from sqs_broker.control.outage import Outage  # These need pymongo.

        if self._obedience is None:
            # It is kept over a new connection: what it has read still holds.
            self._obedience = Obedience(partial(_pauses, options))
        outage = Outage("pauses of queues", EVERY)
        _read(self._obedience, outage)
        deliveries = consumer.task_consumer.channel.deliveries
        self._obedience.apply(deliveries)
        self._stopping = threading.Event()
        apply = partial(consumer.hub.call_soon, self._obedience.apply, deliveries)
        self._thread = threads.insist(
            _watch, "sqs-pauses", self._obedience, outage, apply, self._stopping
        )

    def stop(self, consumer: Any) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(JOIN)


def _watch(
    obedience: Obedience, outage: Any, apply: Callable[[], object], stopping: threading.Event
) -> None:
    while not stopping.wait(EVERY):
        _read(obedience, outage)
        if not stopping.is_set():
            apply()


def _read(obedience: Obedience, outage: Any) -> None:
    try:
        obedience.read()
    except Exception as exc:
        # Broad on purpose: nothing in the control database may keep a worker from its tasks.
        outage.failed(exc)
    else:
        outage.is_over()


def _pauses(options: ControlOptions) -> list[Pause]:
    from sqs_broker.control.pauses import Pauses  # This needs pymongo.

    return Pauses(plane_for(options).store).all(TIMEOUT)
