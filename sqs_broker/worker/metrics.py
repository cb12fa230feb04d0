"""The figures of a worker that are measured when somebody asks, and the start of both ways out."""

import logging
from collections import Counter
from collections.abc import Iterator
from time import monotonic, time
from typing import Any

from celery import bootsteps

from sqs_broker.errors import label
from sqs_broker.machine.seldom import Seldom
from sqs_broker.observers import instruments as of
from sqs_broker.observers.figures import Sample
from sqs_broker.observers.metering import figures
from sqs_broker.observers.pool_sends import pool_sends
from sqs_broker.options import Options
from sqs_broker.worker.defaults import is_elsewhere
from sqs_broker.worker.transport import BEAT

logger = logging.getLogger(__name__)

#: What `Readings` measures.
MEASURED = (
    of.IN_FLIGHT,
    of.OLDEST,
    of.WINDOW,
    of.WAITING,
    of.BUSY,
    of.POOL,
    of.PAUSED,
    of.LAG,
    of.CONTROL_LOST,
)


class Readings:
    """Measures the state of a worker, on any thread. Never raises."""

    def __init__(self) -> None:
        #: None until the worker has its consumer.
        self.consumer: Any = None
        #: Each reason of a pause so far: Prometheus must read that it is over.
        self._reasons: set[str] = set()
        self._seldom = Seldom()

    def __call__(self) -> list[Sample]:
        """The samples; none while the worker connects."""
        try:
            channel = getattr(self.consumer and self.consumer.task_consumer, "channel", None)
            return [] if channel is None else list(self._of(channel))
        except Exception as exc:
            # Broad on purpose: the consumer may stop at this moment, and the sums are still valid.
            if self._seldom.allows("read", monotonic()):
                logger.warning(
                    "Could not measure the state of the worker (%s).",
                    label(exc),
                    extra={"event": "metrics.failed", "error": label(exc)},
                )
            return []

    def _of(self, channel: Any) -> Iterator[Sample]:
        deliveries, connection = channel.deliveries, channel.connection
        leases = deliveries.leases
        yield from self._in_hand(deliveries)
        yield Sample(of.WINDOW, (), leases.window)
        yield Sample(of.WAITING, (), leases.unreported)
        yield Sample(of.BUSY, (), leases.busy)
        yield Sample(of.POOL, (), leases.concurrency)
        yield Sample(of.LAG, (), max(connection.silence() - BEAT, 0.0))
        yield Sample(of.CONTROL_LOST, (), connection.control.lost)
        pauses = leases.pauses
        self._reasons |= pauses
        for reason in sorted(self._reasons):
            yield Sample(of.PAUSED, (reason,), int(reason in pauses))

    def _in_hand(self, deliveries: Any) -> Iterator[Sample]:
        held = [lease.delivery for lease in deliveries.leases.all()]
        counts = Counter(delivery.queue for delivery in held)
        now = time()
        for queue in sorted({receiver.queue for receiver in deliveries.receivers} | set(counts)):
            sent = [each.first_sent.timestamp() for each in held if each.queue == queue]
            yield Sample(of.IN_FLIGHT, (queue,), counts[queue])
            yield Sample(of.OLDEST, (queue,), max(now - min(sent, default=now), 0.0))


#: Of this process's worker. The pool has none of its own.
readings = Readings()


class Metrics(bootsteps.StartStopStep):
    """Serves `/metrics`, and lets OpenTelemetry read the state, if the option `metrics` says so."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    #: Whether this process does so. A worker that reconnects starts its steps again.
    _is_out = False

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Raises ConfigurationError if a package is missing."""
        super().__init__(consumer, **options)
        self.enabled = not is_elsewhere(consumer.app)
        if not self.enabled:
            return
        self._options = Options.read(consumer.app.conf.broker_transport_options).metrics
        if self._options.port is not None:
            from sqs_broker.observers import endpoint  # noqa: F401 - raises if a package is missing

    def start(self, consumer: Any) -> None:
        """Let the figures out, until the process ends: those of a stop count too."""
        readings.consumer = consumer
        if Metrics._is_out:
            return
        Metrics._is_out = True
        if self._options.port is not None:
            from sqs_broker.observers.endpoint import Endpoint

            Endpoint(
                _samples,
                port=self._options.port,
                address=self._options.address,
                login=self._options.login,
            ).start()
        if self._options.opentelemetry:
            from sqs_broker.observers.meters import meters

            meters().watch(MEASURED, readings)

    def stop(self, consumer: Any) -> None:
        """Does nothing: the messages that still run are read, too."""


def _samples() -> list[Sample]:
    pool_sends.pass_on(figures())
    return [*figures().samples(), *readings()]
