"""Many messages of one task as one job of the pool: what runs in the pool's process.

A task that says how (`Task.many`) does the work of all at once, and each message then goes through
Celery's own trace with the outcome that is its own: so signals, links, chains, retries and
dead letters are what they are for a message that runs alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from celery import current_app
from celery.app.task import Context
from kombu.utils.json import loads

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
        """The result. Raises the error."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@dataclass(frozen=True)
class Job:
    """A message on its way to a process of the pool."""

    id: str
    request: dict[str, Any]
    body: str


def run(trace: Callable[..., Traced], name: str, jobs: Sequence[Job]) -> list[Traced]:
    """Run the task for all messages at once; what came of each, in order.

    An exception of the work itself is each message's own: none of them is done.
    """
    started = monotonic()
    task = current_app.tasks[name]
    bodies = [loads(job.body) for job in jobs]
    calls = [
        Call(args, kwargs, Context(job.request))
        for job, (args, kwargs, _) in zip(jobs, bodies, strict=True)
    ]
    outcomes = _outcomes(task, calls)
    shared = (monotonic() - started) / len(jobs)
    traced: list[Traced] = []
    for job, body, outcome in zip(jobs, bodies, outcomes, strict=True):
        job.request["prepared"] = Prepared(outcome)
        # Without a content type Celery takes the body as it is (celery 5.7 app/trace.py).
        failed, result, seconds = trace(name, job.id, job.request, body, None, None)
        # Celery gives no time for what has failed.
        traced.append((failed, result, shared + (seconds or 0.0)))
    return traced


def _outcomes(task: Any, calls: Sequence[Call]) -> Sequence[Any]:
    try:
        outcomes: Sequence[Any] = task.run_many(calls)
        if len(outcomes) != len(calls):
            raise RuntimeError(f"{task.name}: {len(outcomes)} outcomes for {len(calls)} messages")
    except Exception as exc:
        # Broad on purpose: whatever the work died of, each message is retried or given up by its
        # own number of deliveries.
        return [exc] * len(calls)
    return outcomes
