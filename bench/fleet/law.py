"""What a worker does and takes, as the benchmark measured it."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.errors import BenchError
from bench.results import Load, Results, Round, Throughput

#: Of the messages that a measurement sends, those that the worker must have done while they came:
#: otherwise it was full.
KEPT_UP = 0.95


@dataclass(frozen=True)
class Costs:
    """What is taken in a second, or for a message."""

    calls: float
    """Of SQS, by the worker."""
    commands: float
    """Of MongoDB."""
    cores: float
    """CPU seconds of the worker and its pool."""
    database: float
    """CPU seconds of mongod."""

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(
            self.calls + other.calls,
            self.commands + other.commands,
            self.cores + other.cores,
            self.database + other.database,
        )

    def times(self, number: float) -> "Costs":
        return Costs(
            self.calls * number, self.commands * number, self.cores * number, self.database * number
        )


@dataclass(frozen=True)
class Law:
    """A worker by its load."""

    rate: float
    """Messages a second at a full queue: the most of any round."""
    full: Costs
    """Of a message, at a full queue."""
    loads: Sequence[tuple[float, Costs]]
    """Messages a second that a worker keeps up with, and what it takes in a second; first 0."""
    log: float
    """Bytes of the log for a message."""
    data: float
    """Bytes of a stored user without compression."""
    files: float
    """Bytes of a stored user on the disk."""
    indexes: float
    """Bytes of the indexes for a user."""

    def capacity(self, cores: float) -> float:
        """Messages a second of a worker with so many cores and a full queue."""
        return min(self.rate, cores / self.full.cores)

    def second(self, rate: float) -> Costs:
        """A second of a worker that keeps up with so many messages. In between those that were
        measured, in proportion."""
        place = bisect_right(self._rates, rate)
        if place == len(self._rates):
            return self.full.times(rate)
        low, high = self._points[place - 1], self._points[place]
        part = (rate - low[0]) / (high[0] - low[0])
        return low[1].times(1 - part) + high[1].times(part)

    @cached_property
    def _points(self) -> list[tuple[float, Costs]]:
        last = max(self.rate, self.loads[-1][0] + 1)
        return [*self.loads, (last, self.full.times(last))]

    @cached_property
    def _rates(self) -> list[float]:
        return [rate for rate, _ in self._points]


def law(results: Results) -> Law:
    """The law that a run of the benchmark measured. Raises BenchError if it lacks a part."""
    full = next((row for row in results.fleets if row.workers == 1), None)
    kept = [each for each in results.loads if each.deleted >= KEPT_UP * each.sent]
    if full is None or not kept or kept[0].asked or results.storage is None:
        raise BenchError('not measured: one worker, and its loads (make bench ARGS="--only fleet")')
    users = results.storage.users
    busiest = kept[-1]
    return Law(
        # Other programs make a rate smaller, and never larger.
        rate=full.spread[1],
        full=_of_a_message(full),
        loads=[(each.rate if each.asked else 0.0, _of_a_second(each)) for each in kept],
        log=busiest.log_bytes / busiest.deleted,
        data=results.storage.data / users,
        files=results.storage.files / users,
        indexes=results.storage.indexes / users,
    )


def _of_a_message(row: Throughput) -> Costs:
    def cpu(each: Round, seconds: float | None) -> float | None:
        return None if seconds is None else seconds / each.deleted

    return Costs(
        row.median(Round.calls_a_message) or 0.0,
        row.median(lambda each: each.trips_a_message) or 0.0,
        _known(row.median(lambda each: cpu(each, each.worker_cpu))),
        _known(row.median(lambda each: cpu(each, each.database_cpu))),
    )


def _of_a_second(load: Load) -> Costs:
    return Costs(
        load.calls_a_second,
        load.commands_a_second,
        _known(load.worker_cpu) / load.seconds,
        _known(load.database_cpu) / load.seconds,
    )


def _known(seconds: float | None) -> float:
    if seconds is None:
        raise BenchError("CPU time was not measured: there is no /proc")
    return seconds
