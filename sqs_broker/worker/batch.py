"""Many messages of one task as one job of the pool: what runs in the pool's process.

A task that says how (`Task.many`) does the work of all at once. Each message goes through Celery's
own trace, and these are nested: the last message's is entered first, the first message's last,
then the work is done, and they are left in the order of the messages. So whatever Celery or a
library does before and after a task's run (signals, spans, scopes) is around the work, for each
message; links, chains, retries and dead letters are what they are for a message that runs alone.
"""

import contextvars
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import current_app
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.serialization import get_pickleable_exception

#: What Celery's trace answers of a run: whether it failed, its result or failure, its seconds.
Traced = tuple[int, Any, float | None]


@dataclass(frozen=True)
class Call:
    """One message of a batch, as its task is told of it."""

    args: list[Any]
    kwargs: dict[str, Any]
    request: Context


@dataclass(frozen=True)
class Job:
    """A message on its way to a process of the pool."""

    id: str
    request: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    embed: dict[str, Any] | None


def run(trace: Callable[..., Traced], name: str, jobs: Sequence[Job]) -> list[Traced]:
    """Run the task for all messages at once; what came of each, in order.

    An exception of the work itself is each message's own: none of them is done. A message that
    fails before the work has no part in it. No Exception is raised.
    """
    return _Run(trace, name, jobs).finish()


class Prepared:
    """Stands for the function of a task whose message runs with others: runs what is left of the
    job, and gives this message's own outcome."""

    def __init__(self, shared: "_Run", place: int) -> None:
        self._shared = shared
        self._place = place

    def __call__(self, /, *_: Any, **__: Any) -> Any:
        """The message's result. Raises its error, and TypeError for what is neither."""
        outcome = self._shared.outcome_of(self._place)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, BaseException | type):
            # Raised, SystemExit would end the process with all messages; a class is a slip.
            raise TypeError("the outcome of a message is its result or an Exception")
        return outcome


class _Run:
    """One run for many messages, by their places in the job."""

    def __init__(self, trace: Callable[..., Traced], name: str, jobs: Sequence[Job]) -> None:
        self._trace = trace
        #: Each message begins with what is set now. What is set around one of them, as a tracing
        #: library sets its span, is not around another.
        self._context = contextvars.copy_context()
        self._name = name
        self._jobs = jobs
        #: Places that are not entered yet; the last one is next.
        self._left = list(range(len(jobs)))
        self._entered: list[int] = []
        self._outcomes: dict[int, Any] | None = None
        self._traced: dict[int, Traced] = {}
        #: Seconds of the work for each message.
        self._share = 0.0
        #: Seconds that each message's trace has spent on the others and on the work.
        self._inside: dict[int, float] = {}
        #: The time limit that passed outside of any message's function.
        self._limit: Exception | None = None

    def finish(self) -> list[Traced]:
        """Run all that is left."""
        # More than once only if a message fails before its function is called.
        while self._left:
            self._enter()
        return [self._traced[place] for place in range(len(self._jobs))]

    def outcome_of(self, place: int) -> Any:
        """Called in place of a message's function: enters the other messages, the innermost of
        which does the work."""
        began = monotonic()
        self._entered.append(place)
        try:
            while self._left:
                self._enter()
            if self._outcomes is None:
                self._outcomes = self._work()
        finally:
            self._inside[place] = monotonic() - began
        return self._outcomes[place]

    def _enter(self) -> None:
        place = self._left.pop()
        job = self._jobs[place]
        job.request["prepared"] = Prepared(self, place)
        # Without a content type Celery takes the body as it is (celery 5.7 app/trace.py).
        body = job.args, job.kwargs, job.embed
        try:
            failed, result, seconds = self._context.copy().run(
                self._trace, self._name, job.id, job.request, body, None, None
            )
        except Exception as exc:
            # Broad on purpose: for this message memory was short, say, and for the next it may do.
            if isinstance(exc, SoftTimeLimitExceeded):
                self._limit = exc
            failed, result, seconds = 1, ExceptionInfo(), None
        del job.request["prepared"]  # It holds all of the job.
        # Celery gives no time for what has failed.
        own = max((seconds or 0.0) - self._inside.get(place, 0.0), 0.0) + self._share
        self._traced[place] = failed, _sendable(result) if failed else result, own

    def _work(self) -> dict[int, Any]:
        """The outcome of each message that was entered and has not failed."""
        places = sorted(place for place in self._entered if place not in self._traced)
        if self._limit is not None:
            return dict.fromkeys(places, self._limit)
        began = monotonic()
        outcomes: dict[int, Any] = {place: _read(self._jobs[place]) for place in places}
        calls = [place for place in places if isinstance(outcomes[place], Call)]
        task = current_app.tasks[self._name]
        if calls:
            done = _worked(task, [outcomes[place] for place in calls])
            outcomes |= zip(calls, done, strict=True)
        self._share = (monotonic() - began) / len(self._jobs)
        return outcomes


def _read(job: Job) -> Call | Exception:
    try:
        return Call(job.args, job.kwargs, Context(job.request))
    except Exception as exc:
        # Broad on purpose: the others' calls are made all the same.
        return exc


def _worked(task: Any, calls: Sequence[Call]) -> Sequence[Any]:
    try:
        return outcomes_of(task.name, task.run_many(calls), len(calls))
    except Exception as exc:
        # Broad on purpose: whatever the work died of, each message is retried or given up by its
        # own number of deliveries.
        return [exc] * len(calls)


def outcomes_of(name: str, outcomes: Any, count: int) -> Sequence[Any]:
    """The outcomes, where they are that: one for each message, in order. Raises RuntimeError."""
    if not isinstance(outcomes, list | tuple):
        raise RuntimeError(f"{name}: many gives a list of outcomes, no {type(outcomes).__name__}")
    if len(outcomes) != count:
        raise RuntimeError(f"{name}: {len(outcomes)} outcomes for {count} messages")
    return outcomes


def _sendable(failure: Any) -> Any:
    """A failure that survives its way to the main process; another would take all of them along."""
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:
        # Broad on purpose: any class may have its own way to be pickled.
        exc = failure.exception
        try:
            # Until it was pickled it wears a wrapper (billiard 4.3 einfo.py).
            raise get_pickleable_exception(
                exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
            )
        except Exception:
            return ExceptionInfo()
    return failure
