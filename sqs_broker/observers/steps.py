"""The frequent steps of a message: each moves several figures at once.

A recorder may collect what a step has measured, and spread it over the figures later: many at a
time take far less CPU than each of them alone. So a step only collects times, and all calculation
is done here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
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


def _received(labels: tuple[str], received: Sequence[tuple[float, datetime]]) -> Iterator[Part]:
    # SQS's clock and this one may differ.
    waits = [max(at - sent.timestamp(), 0.0) for at, sent in received]
    yield Part(of.IN_QUEUE, labels, waits)


def _started(labels: tuple[str, str], starts: Sequence[tuple[float, float]]) -> Iterator[Part]:
    yield Part(of.STARTED, labels, (1,), len(starts))
    waits = [max(started_at - received_at, 0.0) for received_at, started_at in starts]
    yield Part(of.IN_WORKER, labels[:1], waits)


def _succeeded(
    labels: tuple[str, str, str, int], runs: Sequence[tuple[float, float, float, datetime]]
) -> Iterator[Part]:
    queue, task, result, failed = labels
    yield Part(of.DONE, (queue, task, result), (1,), len(runs))
    yield Part(of.ATTEMPT, (queue, "done"), (failed + 1,), len(runs))
    yield Part(of.RUN, (queue, task, ""), [ended_at - began_at for began_at, ended_at, *_ in runs])
    ages = [max(now - sent.timestamp(), 0.0) for *_, now, sent in runs]
    yield Part(of.WHOLE, (queue,), ages)


def _polled(labels: tuple[str, str], counts: Sequence[int]) -> Iterator[Part]:
    yield Part(of.RECEIVES, labels, (1,), len(counts))
    if any(counts):
        yield Part(of.CONSUMED, labels[:1], counts)


def _called(labels: tuple[str, str, str], seconds: Sequence[float]) -> Iterator[Part]:
    yield Part(of.CALL, labels, seconds)


#: A receive call was answered. Labels: the queue, and how full the answer was. Measured: the number
#: of messages.
POLLED = Step(_polled)

#: A call to SQS is over. Labels: the queue, the action and the error. Measured: its seconds.
CALLED = Step(_called)

#: A message was received for the first time. Labels: the queue. Measured: when, in seconds since
#: 1970, and when it was sent.
RECEIVED = Step(_received)

#: A run began. Labels: the queue and the task. Measured: when its message was received, and when it
#: began, in monotonic seconds.
STARTED = Step(_started)

#: A run succeeded. Labels: the queue, the task, the class of the result, and how many runs failed
#: before. Measured: when it began and ended, in monotonic seconds; the same end in seconds since
#: 1970; and when its message was sent.
SUCCEEDED = Step(_succeeded)
