"""The figures of this process, which Prometheus reads: sums and histograms in memory."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from sqs_broker.observers.instruments import Instrument

#: Most series of one figure. The labels are few, so this only limits a mistake.
MOST_SERIES = 500

#: OpenTelemetry's label for all values that have no label of their own.
OTHER = "_OTHER"

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Histogram:
    """The values of one series of a histogram."""

    counts: tuple[int, ...]
    """How many values each bucket has; the last one has those above all bounds."""
    total: float
    """The sum of the values."""


@dataclass(frozen=True)
class Sample:
    """One series at one moment."""

    instrument: Instrument
    labels: Labels
    """In the order of the instrument's labels."""
    value: float | Histogram


#: Reads what is measured only when somebody asks. May raise anything.
Read = Callable[[], Iterator[Sample]]


class Recorder(Protocol):
    """Takes figures, from any thread. Labels are in the order of the instrument's."""

    def add(self, instrument: Instrument, labels: Labels, number: int = 1) -> None:
        """Add to a counter."""

    def record(self, instrument: Instrument, labels: Labels, value: float) -> None:
        """Add a value to a histogram."""


class Figures:
    """Keeps all of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[Instrument, dict[Labels, int]] = {}
        self._histograms: dict[Instrument, dict[Labels, tuple[list[int], list[float]]]] = {}

    def add(self, instrument: Instrument, labels: Labels, number: int = 1) -> None:
        """See Recorder."""
        with self._lock:
            try:
                self._sums[instrument][labels] += number
            except KeyError:
                series = self._sums.setdefault(instrument, {})
                labels = _bounded(labels, len(series))
                series[labels] = series.get(labels, 0) + number

    def record(self, instrument: Instrument, labels: Labels, value: float) -> None:
        """See Recorder."""
        # The bound of a bucket belongs to it.
        bucket = bisect_left(instrument.buckets, value)
        with self._lock:
            try:
                counts, total = self._histograms[instrument][labels]
            except KeyError:
                series = self._histograms.setdefault(instrument, {})
                empty = [0] * (len(instrument.buckets) + 1)
                counts, total = series.setdefault(_bounded(labels, len(series)), (empty, [0.0]))
            counts[bucket] += 1
            total[0] += value

    def samples(self) -> list[Sample]:
        """All series, as they are now."""
        with self._lock:
            sums = [
                Sample(instrument, labels, value)
                for instrument, series in self._sums.items()
                for labels, value in series.items()
            ]
            return sums + [
                Sample(instrument, labels, Histogram(tuple(counts), total))
                for instrument, series in self._histograms.items()
                for labels, (counts, (total,)) in series.items()
            ]


def _bounded(labels: Labels, series: int) -> Labels:
    return labels if series < MOST_SERIES else (OTHER,) * len(labels)
