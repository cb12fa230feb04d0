"""The frequent steps of a message: each moves several figures at once.

A recorder may collect what a step has measured, and spread it over the figures later: many at a
time take far less CPU than each of them alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqs_broker.observers import instruments as of
from sqs_broker.observers.instruments import Instrument


class Part(NamedTuple):
    """What several steps with the same labels add to one series."""

    instrument: Instrument
    labels: tuple[str, ...]
    values: Sequence[float]
    """To a counter they are added; in a histogram each has its bucket."""
    times: int = 1
    """How often each of the values is added."""


@dataclass(frozen=True, eq=False)
class Step:
    """One kind of step."""

    spread: Callable[[Any, Sequence[Any]], Iterator[Part]]
    """Gets the labels of a step, and what each of several steps measured."""


def _started(labels: tuple[str, str], waits: Sequence[float]) -> Iterator[Part]:
    yield Part(of.STARTED, labels, (1,), len(waits))
    yield Part(of.IN_WORKER, labels[:1], waits)


def _succeeded(
    labels: tuple[str, str, str, int], runs: Sequence[tuple[float, float]]
) -> Iterator[Part]:
    queue, task, result, attempt = labels
    seconds, ages = zip(*runs, strict=True)
    yield Part(of.DONE, (queue, task, result), (1,), len(runs))
    yield Part(of.RUN, (queue, task, ""), seconds)
    yield Part(of.ATTEMPT, (queue, "done"), (attempt,), len(runs))
    yield Part(of.WHOLE, (queue,), ages)


#: A run began. Labels: the queue and the task. Measured: the seconds since its message was
#: received.
STARTED = Step(_started)

#: A run succeeded. Labels: the queue, the task, the class of the result, and the number of the
#: attempt. Measured: the seconds of the run, and those since its message was sent.
SUCCEEDED = Step(_succeeded)
