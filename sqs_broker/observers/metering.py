"""The observer that turns the steps of messages into figures (sqs_broker/observers/instruments.py).

observer -> Metering -> Figures -> Prometheus (exposition.py)
                     -> Meters  -> OpenTelemetry (meters.py)

In a process of a prefork pool, PoolSends takes the place of Figures (pool_sends.py).
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from time import monotonic, time
from typing import Any

from sqs_broker.observers import instruments as of
from sqs_broker.observers import steps
from sqs_broker.observers.figures import Figures, Labels, Note, Recorder
from sqs_broker.observers.instruments import Instrument
from sqs_broker.observers.observer import Observer
from sqs_broker.observers.pool_sends import pool_sends
from sqs_broker.options import MetricsOptions
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import (
    Copied,
    DeadLetter,
    Discarded,
    Done,
    Failed,
    Happened,
    Interrupted,
    NotTaken,
    Outcome,
    Postponed,
    Refused,
    Released,
    Retry,
    RetryAsked,
    Succeeded,
    UnknownTask,
)

#: The result of a run whose result has no class.
SUCCEEDED = "succeeded"

#: Takes the name of a task and the result of its run, as Celery logs it: a `repr` of at most 1,024
#: characters. Returns one of few names, which are not made of the result; None for `succeeded`.
ClassOf = Callable[[str, str], str | None]


def metering_for(options: MetricsOptions) -> "Metering | None":
    """The observer of this process for these options; None if the figures have no way out. Raises
    ConfigurationError if a package is missing."""
    return _metering_for(options, os.getpid())


def figures() -> Figures:
    """The figures of this process."""
    return _figures(os.getpid())


# By the process, so that no lock is used on both sides of a fork.


@cache
def _metering_for(options: MetricsOptions, pid: int) -> "Metering | None":
    recorders: list[Recorder] = []
    if options.port is not None:
        recorders.append(pool_sends if pool_sends.is_joined else figures())
    if options.opentelemetry:
        from sqs_broker.observers.meters import meters

        recorders.append(meters())
    return Metering(recorders, options.class_of) if recorders else None


@cache
def _figures(pid: int) -> Figures:
    return Figures()


class Metering(Observer):
    """Gives figures to all recorders. Thread-safe, if they are."""

    def __init__(
        self,
        recorders: Sequence[Recorder],
        class_of: ClassOf | None = None,
        *,
        clock: Callable[[], float] = monotonic,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        # Without a loop, which takes as long as an addition, if there is one recorder, as usual.
        recorder = recorders[0] if len(recorders) == 1 else _Both(recorders)
        self._add, self._record = recorder.add, recorder.record
        self._received = recorder.noting(steps.RECEIVED)
        self._started = recorder.noting(steps.STARTED)
        self._polled = recorder.noting(steps.POLLED)
        self._called = recorder.noting(steps.CALLED)
        self._succeeded = recorder.noting(steps.SUCCEEDED)
        self._class_of = class_of or (lambda task, result: None)
        self._clock = clock
        self._wall_clock = wall_clock
        #: What makes seconds since 1970 of monotonic ones.
        self._since_1970 = wall_clock() - clock()

    def received(self, message: Facts) -> None:
        delivery = message.delivery
        if delivery.deliveries == 1:
            received = (delivery.received_at + self._since_1970, delivery.enqueued_at)
            self._received((delivery.queue,), received)

    def started(self, message: Facts) -> None:
        delivery, started_at = message.delivery, message.started_at
        labels = (delivery.queue, message.task or "")
        if started_at is None:
            self._add(of.STARTED, labels)
        else:
            self._started(labels, (delivery.received_at, started_at))

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        # First, and in one piece, because nearly all runs end so.
        if type(happened) is Succeeded and type(outcome) is Done:
            delivery, task, text = message.delivery, message.task or "", happened.result
            result = SUCCEEDED if text is None else self._class_of(task, text) or SUCCEEDED
            labels = (delivery.queue, task, result)
            sent, now = delivery.first_sent, self._wall_clock()
            if message.started_at is None:
                self._add(of.DONE, labels)
                self._record(of.WHOLE, labels[:1], max(now - sent.timestamp(), 0.0))
            else:
                times = (message.started_at, self._clock(), now, sent)
                self._succeeded((*labels, delivery.failed), times)
            return
        queue = message.delivery.queue
        if message.started_at is not None:
            ran = self._clock() - message.started_at
            self._record(of.RUN, (queue, message.task or "", _error_of(happened)), ran)
            self._record(of.ATTEMPT, (queue, _name_of(outcome)), message.delivery.attempt)
        match outcome:
            case Done():
                if isinstance(happened, Discarded):
                    self._add(of.DISCARDED, (queue, happened.reason))
            case Retry(_, error) | Postponed(_, str(error)):
                self._add(of.RETRIED, (queue, error))
            case DeadLetter(_, error):
                self._add(of.DEAD_LETTERED, (queue, _cause_of(happened), error))
            case Released():
                self._add(of.RELEASED, (queue, _cause_of(happened)))
            case Postponed():
                self._add(of.POSTPONED, (queue,))

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        name = "done" if type(outcome) is Done else _name_of(outcome)
        self._add(of.SETTLED, (message.delivery.queue, name, error or ""))

    def lost(self, message: Facts, why: str) -> None:
        self._add(of.LOST, (message.delivery.queue, why))

    def published(self, queue: str, count: int) -> None:
        self._add(of.SENT, (queue,), count)

    def polled(self, queue: str, asked: int, count: int) -> None:
        # A receive comes before each message, so this is as exact as two looks at clocks for each.
        self._since_1970 = self._wall_clock() - self._clock()
        state = "empty" if not count else "full" if count >= asked else "partial"
        self._polled((queue, state), count)

    def called(self, action: str, queue: str, seconds: float, error: str | None) -> None:
        self._called((queue, action, error or ""), seconds)


class _Both:
    """Gives figures to several recorders."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = tuple(recorders)

    def add(self, instrument: Instrument, labels: Labels, number: int = 1, /) -> None:
        for recorder in self._recorders:
            recorder.add(instrument, labels, number)

    def record(self, instrument: Instrument, labels: Labels, value: float, /) -> None:
        for recorder in self._recorders:
            recorder.record(instrument, labels, value)

    def noting(self, step: steps.Step, /) -> Note:
        notes = [recorder.noting(step) for recorder in self._recorders]

        def note(labels: tuple[Any, ...], measured: Any) -> None:
            for each in notes:
                each(labels, measured)

        return note


def _name_of(outcome: Outcome) -> str:
    """A retry that waits as a copy is a retry, as in the log."""
    if isinstance(outcome, Postponed) and outcome.error is not None:
        return "retry"
    return outcome.name


def _error_of(happened: Happened) -> str:
    """The class of the exception that ended a run; empty after a success."""
    match happened:
        case Failed() | RetryAsked() | Refused() | Interrupted() | NotTaken():
            return happened.error
        case Discarded():
            return happened.reason
    return ""


#: By what happened, why there was no success: a reason has text of its own for each message.
_CAUSES: dict[type[Happened], str] = {
    Failed: "failed",
    RetryAsked: "retry asked",
    Refused: "refused",
    UnknownTask: "unknown task",
    NotTaken: "no resources",
    Interrupted: "interrupted",
    Copied: "copied",
}


def _cause_of(happened: Happened) -> str:
    return _CAUSES.get(type(happened), "not started")
