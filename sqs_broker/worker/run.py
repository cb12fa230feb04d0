"""Runs messages in this thread through Celery's own trace, without a worker."""

from collections.abc import Callable, Sequence
from typing import Any

from celery.app import trace as tracing

from sqs_broker.rules.admission import Admitted, Arrival
from sqs_broker.rules.happened import happened
from sqs_broker.rules.outcomes import Happened
from sqs_broker.worker import batch
from sqs_broker.worker.batch import Job, Traced
from sqs_broker.worker.failures import decisive, verdict_of

#: The value of a request's `hostname`, in place of a worker's name.
HERE = "sqs_broker"


def run(arrival: Arrival, admitted: Admitted) -> Happened:
    """Run an admitted message in this thread, and return what happened.

    Signals, brackets, links and the task's own rules for failures work as in a worker. Time limits
    are not enforced. Raises SystemExit and KeyboardInterrupt if the task does.
    """
    return happened(failure_of(arrival, admitted))


def failure_of(arrival: Arrival, admitted: Admitted) -> BaseException | None:
    """Run an admitted message as `run` does, and return the exception with which it ended; None if
    it succeeded."""
    task = admitted.task
    args, kwargs, embed = arrival.payload
    traced = _tracer(task)(
        (arrival.headers or {})["id"], args, kwargs, _request(arrival, admitted, embed)
    )
    # `info` is checked, not the result, because a task may also return an exception.
    return None if traced.info is None else verdict_of(traced.retval) or traced.info.retval


def failures_of(
    messages: Sequence[tuple[Arrival, Admitted]],
) -> list[BaseException | None]:
    """Run admitted messages of one task with `many` as one job, and return what `failure_of`
    returns, for each message in order."""
    task = messages[0][1].task
    trace = _tracer(task)

    def traced(
        _: str, id_: str, request: dict[str, Any], body: tuple[Any, ...], *__: Any
    ) -> Traced:
        args, kwargs, embed = body
        result = trace(
            id_, args, kwargs, request | {"args": args, "kwargs": kwargs} | (embed or {})
        )
        is_failure = result.info is not None
        return int(is_failure), result.retval, result.runtime

    jobs = [
        Job(
            (arrival.headers or {})["id"],
            _request(arrival, admitted, None),
            *arrival.payload,
        )
        for arrival, admitted in messages
    ]
    return [
        decisive(result) if failed else None
        for failed, result, _ in batch.run(traced, task.name, jobs, task)
    ]


def _tracer(task: Any) -> Callable[..., Any]:
    # Called through the module, because tracing libraries replace the function there.
    tracer: Callable[..., Any] = tracing.build_tracer(task.name, task, hostname=HERE, app=task.app)
    return tracer


def _request(arrival: Arrival, admitted: Admitted, embed: dict[str, Any] | None) -> dict[str, Any]:
    return {
        **(arrival.headers or {}),
        **admitted.headers,
        **(embed or {}),
        "delivery_info": arrival.content["properties"]["delivery_info"],
        "hostname": HERE,
    }
