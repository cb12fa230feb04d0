"""Figures for OpenTelemetry. Needs the package `opentelemetry-api`.

The project, or `opentelemetry-instrument`, sets the global meter provider, which sends them.
Without one nothing is sent.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any

from sqs_broker.errors import ConfigurationError
from sqs_broker.observers.figures import Histogram, Labels, Note, Sample
from sqs_broker.observers.instruments import Instrument, Kind
from sqs_broker.observers.steps import Step

try:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
except ImportError as exc:
    raise ConfigurationError(
        "broker_transport_options: `opentelemetry` of `metrics` needs opentelemetry-api. "
        "Run: pip install 'celery-sqs-broker[opentelemetry]'"
    ) from exc

#: The name of the meter.
SCOPE = "sqs_broker"

#: The label that OpenTelemetry requires of each figure of messaging, and its value.
SYSTEM = {"messaging.system": "aws_sqs"}


def meters() -> "Meters":
    """The meters of this process."""
    return _meters(os.getpid())


@cache
def _meters(pid: int) -> "Meters":
    return Meters(get_meter(SCOPE))


class Meters:
    """A `Recorder`. Thread-safe."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._made: dict[Instrument, Any] = {}

    def add(self, instrument: Instrument, labels: Labels, number: int = 1, /) -> None:
        """See Recorder."""
        self._of(instrument).add(number, attributes_of(instrument, labels))

    def record(self, instrument: Instrument, labels: Labels, value: float, /) -> None:
        """See Recorder."""
        self._of(instrument).record(value, attributes_of(instrument, labels))

    def noting(self, step: Step, /) -> Note:
        """See Recorder. It adds at once, because the provider may read at any time."""

        def note(labels: tuple[Any, ...], measured: Any) -> None:
            for instrument, its_labels, (value,), _ in step.spread(labels, (measured,)):
                if instrument.kind is Kind.COUNTER:
                    self.add(instrument, its_labels, int(value))
                else:
                    self.record(instrument, its_labels, value)

        return note

    def watch(
        self, instruments: Iterable[Instrument], read: Callable[[], Iterable[Sample]]
    ) -> None:
        """Let the provider read these instruments, whenever it collects."""
        for instrument in instruments:
            is_sum = instrument.kind is Kind.COUNTER
            make = (
                self._meter.create_observable_counter
                if is_sum
                else self._meter.create_observable_gauge
            )
            make(
                instrument.name,
                [partial(_observe, instrument, read)],
                instrument.unit,
                instrument.what,
            )

    def _of(self, instrument: Instrument) -> Any:
        # Two threads may make it at the same time: the provider then gives both the same one.
        if (made := self._made.get(instrument)) is None:
            made = self._made[instrument] = self._make(instrument)
        return made

    def _make(self, instrument: Instrument) -> Any:
        name, unit, what = instrument.name, instrument.unit, instrument.what
        if instrument.kind is Kind.COUNTER:
            return self._meter.create_counter(name, unit, what)
        return self._meter.create_histogram(
            name, unit, what, explicit_bucket_boundaries_advisory=instrument.buckets
        )


def attributes_of(instrument: Instrument, labels: Labels) -> dict[str, str]:
    """The labels by their names. One that is empty is left out."""
    given = zip(instrument.labels, labels, strict=True)
    return SYSTEM | {name: value for name, value in given if value}


def _observe(
    instrument: Instrument, read: Callable[[], Iterable[Sample]], options: CallbackOptions
) -> Iterator[Observation]:
    for sample in read():
        if sample.instrument is instrument and not isinstance(sample.value, Histogram):
            yield Observation(sample.value, attributes_of(instrument, sample.labels))
