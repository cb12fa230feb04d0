"""Gives a plain message (sqs_broker/worker/plain.py) to the pool as a job of its own, which Celery
traces as it does each of its jobs."""

from contextlib import suppress
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app.trace import fast_trace_task, trace_task_ret

from sqs_broker.worker.plain import Plain
from sqs_broker.worker.request import log_unreported


def submit(plain: Plain, pool: Any) -> Any:
    """Start its job, as `execute_using_pool` of Celery's request does, and return what the pool
    returns. Raises what the pool raises."""
    task, single = plain.task, Single(plain)
    job = pool.apply_async(
        fast_trace_task if task.app.use_fast_trace_task else trace_task_ret,
        # Without a content type Celery does not decode the body (celery 5.7 app/trace.py).
        args=(task.name, plain.id, plain.request_dict, plain.body, None, None),
        accept_callback=single.on_accepted,
        timeout_callback=single.on_timeout,
        callback=single.on_success,
        error_callback=single.on_failure,
        soft_timeout=task.soft_time_limit,
        timeout=task.time_limit,
        correlation_id=plain.id,
    )
    plain.shares(job)
    return job


class Single:
    """The callbacks of such a job. Only a run that succeeds needs no Request."""

    __slots__ = ("_plain",)

    def __init__(self, plain: Plain) -> None:
        self._plain = plain

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A pool process runs it now."""
        plain = self._plain
        if not plain.is_light:
            plain.full().on_accepted(pid, time_accepted)
            return
        try:
            plain.lane.accepted([plain], pid, time_accepted)
        except Exception as exc:
            # Broad on purpose: the run goes on, and billiard would tell nobody.
            with suppress(Exception):
                log_unreported(plain, exc)

    def on_success(self, traced: Any, **kwargs: Any) -> None:
        """Its run has ended, and the process has reported how."""
        plain = self._plain
        if plain.is_light and not isinstance(traced, ExceptionInfo) and not traced[0]:
            plain.lane.ended(plain, traced)
        else:
            plain.full().on_success(traced, **kwargs)

    def on_failure(self, *args: Any, **kwargs: Any) -> None:
        """Its process was lost, or could not tell how the run ended."""
        self._plain.full().on_failure(*args, **kwargs)

    def on_timeout(self, *args: Any, **kwargs: Any) -> None:
        """A time limit has passed."""
        self._plain.full().on_timeout(*args, **kwargs)
