"""Many messages of one task as one job of the pool: what runs in the pool's process.

A task that says how (`Task.many`) does the work of all at once, and each message then goes through
Celery's own trace with the outcome that is its own: so signals, links, chains, retries and
dead letters are what they are for a message that runs alone.
"""

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
class Prepared:
    """What the work for all has led to for one message: a result, or the error that is its own."""

    outcome: Any

    def __call__(self, /, *_: Any, **__: Any) -> Any:
        """The result. Raises the error, and TypeError for what is neither."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if isinstance(self.outcome, BaseException | type):
            # Raised, SystemExit would end the process with all messages; a class is a slip.
            raise TypeError("the outcome of a message is its result or an Exception")
        return self.outcome


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

    An exception of the work itself is each message's own: none of them is done. One that comes
    between two messages, as a time limit does, leaves those that have ended; the others fail. No
    Exception is raised.
    """
    started = monotonic()
    traced: list[Traced] = []
    try:
        outcomes = _outcomes(name, jobs)
        shared = (monotonic() - started) / len(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            traced.append(_traced(trace, name, job, outcome, shared))
    except Exception as exc:
        # Broad on purpose: it is nobody's own, and each message has to end.
        for job in jobs[len(traced) :]:
            traced.append(_traced(trace, name, job, exc, 0.0, passing=()))
    return traced


def _outcomes(name: str, jobs: Sequence[Job]) -> list[Any]:
    task = current_app.tasks[name]
    read = [_read(job) for job in jobs]
    calls = [call for call in read if isinstance(call, Call)]
    outcomes = iter(_worked(task, calls) if calls else ())
    return [next(outcomes) if isinstance(call, Call) else call for call in read]


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


def _traced(
    trace: Callable[..., Traced],
    name: str,
    job: Job,
    outcome: Any,
    seconds: float,
    # A time limit is every message's. Celery's trace lets it out only where it came between two.
    passing: tuple[type[Exception], ...] = (SoftTimeLimitExceeded,),
) -> Traced:
    job.request["prepared"] = Prepared(outcome)
    # Without a content type Celery takes the body as it is (celery 5.7 app/trace.py).
    body = job.args, job.kwargs, job.embed
    try:
        failed, result, its_own = trace(name, job.id, job.request, body, None, None)
    except passing:
        raise
    except Exception:
        # Broad on purpose: for this message memory was short, say, and for the next it may do.
        failed, result, its_own = 1, ExceptionInfo(), None
    # Celery gives no time for what has failed.
    return failed, _sendable(result) if failed else result, seconds + (its_own or 0.0)


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
