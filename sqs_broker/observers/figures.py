"""The figures of this process, which Prometheus reads: sums and histograms in memory."""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqs_broker.observers.instruments import Instrument, Kind
from sqs_broker.observers.steps import Step

#: Most series of one figure. The labels are few, so this only limits a mistake.
MOST_SERIES = 500

#: Most values of a series that wait to be added up together: one by one takes twice as long.
MOST_NEW = 256

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


#: Takes the labels of a step, and what it has measured.
Note = Callable[[tuple[Any, ...], Any], None]

#: Reads what is measured only when somebody asks. May raise anything.
Read = Callable[[], Iterator[Sample]]


class Recorder(Protocol):
    """Takes figures, from any thread. Labels are in the order of the instrument's."""

    def add(self, instrument: Instrument, labels: Labels, number: int = 1, /) -> None:
        """Add to a counter."""

    def record(self, instrument: Instrument, labels: Labels, value: float, /) -> None:
        """Add a value to a histogram."""

    def noting(self, step: Step, /) -> Note:
        """A function that adds what a step has measured to all figures that it moves."""


class Figures:
    """Keeps all of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[Instrument, dict[Labels, _Sum | _Values]] = {}
        #: What is not in a series yet, by the step and its labels.
        self._noted: dict[Step, dict[tuple[Any, ...], list[Any]]] = {}

    def record(self, instrument: Instrument, labels: Labels, value: float = 1, /) -> None:
        """See Recorder."""
        try:
            series = self._series[instrument][labels]
        except KeyError:
            series = self._begun(instrument, labels)
        new = series.new
        new.append(value)  # One step, so it needs no lock.
        if len(new) >= MOST_NEW:
            with self._lock:
                series.sum_up()

    # Not a function that calls the other one: that would take a third longer.
    add = record

    def noting(self, step: Step, /) -> Note:
        """See Recorder."""
        with self._lock:
            places = self._noted.setdefault(step, {})

        def note(labels: tuple[Any, ...], measured: Any) -> None:
            try:
                noted = places[labels]
            except KeyError:
                with self._lock:  # Another thread may have begun it just now.
                    noted = places.setdefault(labels, [])
            noted.append(measured)
            if len(noted) >= MOST_NEW:
                with self._lock:
                    self._spread(step, labels, noted)

        return note

    def samples(self) -> list[Sample]:
        """All series, as they are now."""
        with self._lock:
            for step, places in self._noted.items():
                for labels, noted in places.items():
                    self._spread(step, labels, noted)
            return [
                Sample(instrument, labels, each.sum_up())
                for instrument, series in self._series.items()
                for labels, each in series.items()
            ]

    def _spread(self, step: Step, labels: tuple[Any, ...], noted: list[Any]) -> None:
        """Add what is noted to its series. For the holder of the lock."""
        if taken := _taken(noted):
            for instrument, its_labels, values, times in step.spread(labels, taken):
                self._of(instrument, its_labels).add(values, times)

    def _begun(self, instrument: Instrument, labels: Labels) -> "_Sum | _Values":
        """The series of these labels, which is new or was begun by another thread just now."""
        with self._lock:
            return self._of(instrument, labels)

    def _of(self, instrument: Instrument, labels: Labels) -> "_Sum | _Values":
        """The series of these labels. For the holder of the lock."""
        series = self._series.setdefault(instrument, {})
        if labels not in series:
            labels = _bounded(labels, len(series))
        if labels not in series:
            bounds = instrument.buckets
            series[labels] = _Values(bounds) if instrument.kind is Kind.HISTOGRAM else _Sum()
        return series[labels]


class _Sum:
    """One series of a counter."""

    __slots__ = ("_total", "new")

    def __init__(self) -> None:
        self._total: float = 0  # A whole number, if only such are added.
        #: What is not in the sum yet.
        self.new: list[Any] = []

    def add(self, values: Sequence[float], times: int = 1) -> None:
        """Add each of these so often. For one thread at a time."""
        self._total += times * sum(values)

    def sum_up(self) -> float:
        """Add what is new, and return the sum. See `add`; others may add to the end of `new`
        then."""
        self.add(_taken(self.new))
        return self._total


class _Values:
    """One series of a histogram."""

    __slots__ = ("_bounds", "_counts", "_total", "new")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        #: Those that are in no bucket yet.
        self.new: list[float] = []

    def add(self, values: Sequence[float], times: int = 1) -> None:
        """Put each of these into its bucket so often. See `_Sum`."""
        ordered = sorted(values)
        begin = 0
        for place, bound in enumerate(self._bounds):
            # The bound of a bucket belongs to it.
            end = bisect_right(ordered, bound, begin)
            self._counts[place] += times * (end - begin)
            begin = end
        self._counts[-1] += times * (len(ordered) - begin)
        self._total += times * sum(ordered)

    def sum_up(self) -> Histogram:
        """Put what is new into its buckets. See `_Sum`."""
        self.add(_taken(self.new))
        return Histogram(tuple(self._counts), self._total)


def _taken(new: list[Any]) -> list[Any]:
    """Empty the list, but for what another thread adds meanwhile."""
    taken = new[:]
    del new[: len(taken)]
    return taken


def _bounded(labels: Labels, series: int) -> Labels:
    return labels if series < MOST_SERIES else (OTHER,) * len(labels)
