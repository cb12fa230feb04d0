"""Runs many messages of one task as one job, in the pool process.

`Task.many` does the work of all messages at once. Each message also goes through Celery's own
trace. The traces are nested: the last message's trace starts first, the first message's starts
last, then the work runs, and then the traces end in the order of the messages. So for each message
the work is inside whatever Celery or a library does before and after a run (signals, spans,
scopes). Links, chains, retries and dead letters are the same as for a message that runs alone.

If nobody notices the traces (sqs_broker/worker/listeners.py), the work runs first, and only the
messages that failed, or that something follows, go through them.
"""

import contextvars
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import current_app, signals
from celery._state import pop_current_task, push_current_task
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded
from celery.states import SUCCESS
from celery.utils.serialization import get_pickleable_exception

from sqs_broker.machine.frames import with_space
from sqs_broker.worker.failures import unwrapped, verdict_of
from sqs_broker.worker.listeners import has_followers, has_listeners
from sqs_broker.worker.plain_jobs import PlainJob
from sqs_broker.worker.results import shown_result

#: What Celery's trace returns for a run: whether it failed, its result or failure, its seconds.
Traced = tuple[int, Any, float | None]


#: What is not the result of a message. A union of types would be created for each message.
_NO_RESULT = (BaseException, type)


@dataclass(frozen=True)
class Call:
    """One message of a batch, as `Task.many` gets it."""

    args: list[Any]
    kwargs: dict[str, Any]
    given: Mapping[str, Any]
    """What the worker knows of the message, by the names that `request` has."""

    @cached_property
    def request(self) -> Context:
        """Celery's request of the message. It takes 10 us to create."""
        return Context(self.given)


@dataclass(frozen=True)
class Job:
    """A message as it is sent to a pool process."""

    id: str
    request: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    embed: dict[str, Any] | None

    @property
    def given(self) -> Mapping[str, Any]:
        """The same as `request`, for a Call."""
        return self.request


def run(
    trace: Callable[..., Traced], name: str, jobs: Sequence[Job | PlainJob], task: Any = None
) -> list[Traced]:
    """Run the task for all messages at once; return what Celery's trace returned for each, in
    order. Without `task`, it is the one of this name in the current app.

    If the work itself raises, every message has failed with that exception. A message that fails
    before the work is left out of it. Raises no Exception.
    """
    return with_space(_Run(trace, task or current_app.tasks[name], jobs).finish)


class Prepared:
    """Replaces the function of the task for one message of a job: it runs the rest of the job, then
    returns this message's own outcome."""

    def __init__(self, shared: "_Run", place: int) -> None:
        self._shared = shared
        self._place = place

    def __call__(self, /, *_: Any, **__: Any) -> Any:
        """Return the message's result, or raise its error. Raises TypeError if it is neither."""
        outcome = self._shared.outcome_of(self._place)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, _NO_RESULT):
            # To raise SystemExit would end the process with all messages. A class is a mistake.
            raise TypeError("the outcome of a message must be its result or an Exception")
        return outcome


class _Run:
    """One run for many messages. A place is the index of a message in the job."""

    def __init__(
        self, trace: Callable[..., Traced], task: Any, jobs: Sequence[Job | PlainJob]
    ) -> None:
        self._trace = trace
        #: The context variables at the start. Each message begins with a copy of them, so a span
        #: that a tracing library sets for one message does not become the parent of another's.
        self._context = contextvars.copy_context()
        self._task = task
        self._jobs = jobs
        #: Places whose trace has not started yet; the last one is next.
        self._left = list(range(len(jobs)))
        self._entered: list[int] = []
        self._outcomes: dict[int, Any] | None = None
        self._traced: dict[int, Traced] = {}
        #: Seconds of the work, divided by the number of messages.
        self._share = 0.0
        #: Seconds that each message's trace spent on the other messages and on the work.
        self._inside: dict[int, float] = {}
        #: The soft time limit, if it passed outside of every message's function.
        self._limit: Exception | None = None

    def finish(self) -> list[Traced]:
        """Run the whole job."""
        try:
            if not has_listeners(self._task, self._trace):
                self._context.copy().run(self._run_untraced)
        except Exception as exc:
            # Broad on purpose: the messages that are left go through their traces.
            if isinstance(exc, SoftTimeLimitExceeded):
                self._limit = exc
        # The loop repeats only if a message fails before its function is called.
        while self._left:
            self._enter()
        return [self._traced[place] for place in range(len(self._jobs))]

    def outcome_of(self, place: int) -> Any:
        """The outcome of one message. Starts the traces of the other messages first; the innermost
        call does the work."""
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

    def _run_untraced(self) -> None:
        """Do the work of all messages, and end those that need no trace."""
        self._entered = list(self._left)
        try:
            self._outcomes = self._work_as(self._jobs[0])
        finally:
            self._entered = []
        try:
            self._end_untraced(self._outcomes, self._task.resultrepr_maxsize)
        finally:
            self._left = [place for place in self._left if place not in self._traced]

    def _end_untraced(self, outcomes: Mapping[int, Any], longest: int | None) -> None:
        for place, outcome in outcomes.items():
            if not isinstance(outcome, _NO_RESULT) and not has_followers(self._jobs[place].embed):
                self._traced[place] = 0, shown_result(outcome, longest), self._share

    def _work_as(self, job: Job | PlainJob) -> dict[int, Any]:
        """Do the work, with this message as the current one, as in the innermost trace. What the
        work sends is then a child of this message."""
        given = {"args": job.args, "kwargs": job.kwargs, "called_directly": False}
        context = Context(job.request, **given, **(job.embed or {}))
        self._task.request_stack.push(context)
        push_current_task(self._task)
        try:
            return self._work()
        finally:
            pop_current_task()
            self._task.request_stack.pop()
            # Its only receivers are those that want one call for each job.
            signals.task_postrun.send(
                sender=self._task, task_id=job.id, task=self._task, retval=None, state=SUCCESS,
                args=job.args, kwargs=job.kwargs,
            )  # fmt: skip

    def _enter(self) -> None:
        place = self._left.pop()
        job = self._jobs[place]
        job.request["prepared"] = Prepared(self, place)
        # Without a content type Celery does not decode the body (celery 5.7 app/trace.py).
        body = job.args, job.kwargs, job.embed
        try:
            failed, result, seconds = self._context.copy().run(
                self._trace, self._task.name, job.id, job.request, body, None, None
            )
        except Exception as exc:
            # Broad on purpose: for example, memory was short for this message; the next may run.
            if isinstance(exc, SoftTimeLimitExceeded):
                self._limit = exc
            failed, result, seconds = 1, ExceptionInfo(), None
        del job.request["prepared"]  # It refers to the whole job.
        # Celery returns no time for a failure.
        own = max((seconds or 0.0) - self._inside.get(place, 0.0), 0.0) + self._share
        self._traced[place] = failed, _sendable(result) if failed else result, own

    def _work(self) -> dict[int, Any]:
        """The outcome of each message whose trace has started and has not failed."""
        places = sorted(place for place in self._entered if place not in self._traced)
        if self._limit is not None:
            return dict.fromkeys(places, self._limit)
        began = monotonic()
        needs_request = getattr(self._task, "needs_request", True)
        outcomes: dict[int, Any] = {
            place: _read(self._jobs[place], needs_request=needs_request) for place in places
        }
        calls = {place: call for place, call in outcomes.items() if type(call) is Call}
        if calls:
            done = _run_many(self._task, [*calls.values()])
            outcomes |= zip(calls, done, strict=True)
        self._share = (monotonic() - began) / len(self._jobs)
        return outcomes


def _read(job: Job | PlainJob, *, needs_request: bool) -> Call | Exception:
    try:
        call = Call(job.args, job.kwargs, job.given)
        if needs_request:
            # Here, because in the work an error would be one of all messages.
            _ = call.request
        return call
    except Exception as exc:
        # Broad on purpose: the other messages still run.
        return exc


def _run_many(task: Any, calls: Sequence[Call]) -> Sequence[Any]:
    try:
        return outcomes_of(task.name, task.run_many(calls), len(calls))
    except Exception as exc:
        # Broad on purpose: each message has failed, and its own number of deliveries decides
        # whether it is retried.
        return [exc] * len(calls)


def outcomes_of(name: str, outcomes: Any, count: int) -> Sequence[Any]:
    """Return the outcomes. Raises RuntimeError if they are not a list with one for each message."""
    if not isinstance(outcomes, list | tuple):
        kind = type(outcomes).__name__
        raise RuntimeError(f"{name}: many must return a list of outcomes, not {kind}")
    if len(outcomes) != count:
        raise RuntimeError(f"{name}: {len(outcomes)} outcomes for {count} messages")
    return outcomes


def _sendable(failure: Any) -> Any:
    """Return the failure, or one like it that can be pickled. If one message of a job could not be
    pickled, the results of all would be lost."""
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:
        # Broad on purpose: any class may have its own way to be pickled.
        try:
            raise get_pickleable_exception(unwrapped(failure))
        except Exception:
            like = ExceptionInfo()
        if (verdict := verdict_of(failure)) is not None:
            like.verdict = verdict
        return like
    return failure
