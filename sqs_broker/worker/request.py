"""Celery's request of a task: it records what happened, in the worker's main process.

Celery generates a subclass that replaces `execute_using_pool` and `on_success` (celery 5.7
worker/request.py, `create_request_cls`), so a success shows only as a call of `acknowledge`.
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any
from weakref import ref

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated
from celery import signals
from celery.exceptions import (
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.states import FAILURE
from celery.worker import state
from celery.worker.request import Request as CeleryRequest

from sqs_broker.errors import label
from sqs_broker.limits import BATCH
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.happened import (
    ProcessTerminated,
    Rejected,
    Suspected,
    class_in,
    happened,
)
from sqs_broker.rules.lease import Lease
from sqs_broker.rules.outcomes import (
    Discarded,
    Failed,
    Happened,
    Interrupted,
    RetryAsked,
    Succeeded,
    is_final,
)
from sqs_broker.rules.suspicion import Suspicion
from sqs_broker.rules.trace_context import REQUEST_ID, TRACEPARENT, request_id_of, trace_id_of
from sqs_broker.worker.channel import Message
from sqs_broker.worker.failures import decisive, error_of, frames_of, shown, unwrapped

logger = logging.getLogger(__name__)


class HandedBack(Exception):
    """The delivery of a task ended before the task started."""


class OutOfMemory(Exception):
    """Replaces the MemoryError of a task. Celery raises a reported MemoryError again in the main
    process, which is not short of memory, and settles nothing (celery 5.7 worker/request.py)."""


class Request(CeleryRequest):
    """Records on the message what happened, before Celery acks or rejects it without a reason."""

    #: The exception that ended the task, if one did, as events show it.
    _error: str | None = None
    _lease: Lease | None = None
    #: The thread in which `on_accepted` was called: the one that runs the task, in a pool of
    #: threads and in solo.
    _started_on: int | None = None
    _is_suspected = False
    #: Whether the delivery has ended while the task hangs.
    _is_given_up = False

    def __init__(self, message: Message, **options: Any) -> None:
        eta = message.headers.get("eta")
        # `decoded`: the pool gets the payload that the receiver decoded, and decodes nothing.
        given = options | {"body": message.payload, "decoded": True}
        if eta is not None:
            # Celery holds a task with an eta in memory (celery 5.7 worker/strategy.py). This one is
            # due, so only the task needs to know it.
            given["headers"] = message.headers | {"eta": None}
        super().__init__(message, **given)
        if eta is not None:
            self.request_dict["eta"] = eta
        # `time_limits` has those of the message alone. The task sees those that hold.
        self.request_dict["timelimit"] = limits_of(self.task, self.app, self.time_limits)
        # On the instance: Celery's method is on a class that it generates below this one.
        generated: Any = self
        generated.on_success = partial(self._on_end, generated.on_success)

    def _on_end(self, on_success: Callable[..., Any], traced: Any, **kwargs: Any) -> Any:
        """The run has ended. In a pool of threads, one that ended in SystemExit is reported like a
        success, with an ExceptionInfo as its result (celery 5.7 concurrency/base.py)."""
        if isinstance(traced, ExceptionInfo):
            return self.on_failure(traced)
        if not traced[0]:
            # Noted at once: Celery acknowledges on the event loop, which may hang.
            result = traced[1]
            self._note(Succeeded(result if isinstance(result, str) else None))
        return on_success(traced, **kwargs)

    def resumes(self, pid: int | None, time_start: float | None, lease: Lease | None) -> None:
        """Take the place of a plain message (sqs_broker/worker/plain.py). `time_start`: when a pool
        process has taken it; None if none has."""
        self.worker_pid, self.time_start, self._lease = pid, time_start, lease

    def shares(self, job: Any) -> None:
        """Record the job that the request runs in with others; `terminate` and `cancel` end it."""
        self._apply_result = None if job is None else ref(job)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Record that a pool process runs the task now.

        Raises HandedBack if the delivery has ended, and the pool has no processes.
        """
        message, task = self._message, self.task
        # For a run that does not end, of which Celery tells nothing.
        message.policy = task.policy
        message.is_suspect = issubclass(TimeLimitExceeded, task.suspect_on)
        deliveries, tag = message.channel.deliveries, message.delivery_tag
        self._lease = deliveries.started(tag, self.hard_time_limit, self._job(pid, time_accepted))
        if self._lease is None and not deliveries.pool_has_processes:
            self._forget()
            # The threads pool calls this before the task, and an exception prevents the start. A
            # process has already started it; an exception breaks billiard 4.3 (pool.py, `_ack`).
            raise HandedBack(self.id)
        self._started_on = threading.get_ident()
        if not self.task.acks_late:
            # Celery acknowledges on the next turn of the loop. In the solo pool that is after the
            # task, whose end must not count: only the first record does.
            self._note(Succeeded())
        super().on_accepted(pid, time_accepted)

    def _job(self, pid: int, time_accepted: float) -> Job:
        """The job that a process has begun. Each message of the job is accepted with the same
        process and time, so these identify it."""
        takes = 1 if self.task.many is None else BATCH
        return Job((pid, time_accepted), takes, is_measured=bool(self.task.acks_late))

    @property
    def hard_time_limit(self) -> float | None:
        """Seconds that the task may run."""
        return hard_limit_of(self.task, self.app, self.time_limits[0])

    def overrun(self) -> float:
        """Seconds that the task has run beyond its hard time limit; negative before the limit."""
        return overrun_of(self._lease, self.hard_time_limit)

    def revoked(self) -> bool:
        """Whether the task must not start: its message was released meanwhile, or the task was
        revoked or has expired. Celery calls this right before a start."""
        deliveries = self._message.channel.deliveries
        # Celery also calls this on arrival, when the task may still have to wait for a slot.
        may_start = deliveries.hand_over if self in state.reserved_requests else deliveries.holds
        if may_start(self._message.delivery_tag):
            return bool(super().revoked())
        self._forget()
        return True

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Record that the message is discarded. Celery acknowledges it like a success."""
        self._note(Discarded(reason))
        super()._announce_revoked(reason, terminated, signum, expired)

    def not_taken(self, exc: Exception) -> None:
        """Record that the pool raised this exception when it got the task.

        A threads pool may have queued the task before it raised, and a thread may have started it.
        Then the delivery goes on. In the solo pool a task that has started has also ended.
        """
        if isinstance(exc, HandedBack):
            return  # `_forget` was called before it was raised.
        if self._started_on == threading.get_ident():
            self.on_failure(ExceptionInfo())
            return
        message = self._message
        if message.channel.deliveries.end_unstarted(
            message.delivery_tag, untaken(exc), message.headers, self.task.policy
        ):
            self._forget()

    def given_up(self, what: Happened) -> None:
        """Send the event of a run that hangs, whose delivery has ended with what happened. No event
        tells what the task still does: it has no effect on the message."""
        is_final = isinstance(what, Failed) and not self._will_run_again(what)
        self._error = what.error if isinstance(what, Failed | Interrupted | RetryAsked) else None
        event = "task-failed" if is_final else "task-retried"
        self.send_event(event, exception=self._error or "", traceback="")
        self._is_given_up = True

    def _forget(self) -> None:
        """Remove the request from Celery's state: its delivery has ended without Celery."""
        state.task_ready(self)
        self.acknowledge()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """Handle the exception that ended the task or its process."""
        exc = decisive(exc_info)
        if isinstance(exc, Terminated) and not (self._already_revoked or self._already_cancelled):
            # The process was ended because of another message of the job. Celery would report this
            # one as revoked.
            exc_info = _interruption()
            exc = unwrapped(exc_info)
        self._error = shown(exc)
        if self._suspect(exc, exc_info):
            return
        self._note(happened(exc))
        self._fail(exc_info, send_failed_event, return_ok)
        if isinstance(exc, WorkerLostError):
            # Celery requeues the message, sends no event and calls no hook.
            self._announce(exc)
            if isinstance(happened(exc), Failed) and not self._will_run_again(happened(exc)):
                self._report(exc, exc_info)

    def _fail(self, exc_info: Any, *rest: Any) -> None:
        """Let Celery end the run, with its signals, events and errbacks."""
        if isinstance(unwrapped(exc_info), MemoryError):
            exc_info.exception = OutOfMemory()
        try:
            super().on_failure(exc_info, *rest)
        except Exception as broken:
            # Broad on purpose: otherwise the pool prints the text of the exception, and the message
            # keeps its slot for ever.
            log_unreported(self, broken)
            self.reject(requeue=False)

    def _suspect(self, exc: Any, exc_info: Any) -> bool:
        """Whether an outage may have caused this failure. If so, its delivery ends only once the
        suspicion is confirmed or dismissed."""
        if self._lease is None or not isinstance(exc, (Suspected, *self.task.suspect_on)):
            return False
        assert self._lease.started_at is not None
        self._is_suspected = True
        self._message.channel.deliveries.run_ended(self._message.delivery_tag)
        state.task_ready(self)  # For Celery the task has ended in any case.
        self._message.channel.deliveries.on_suspicion(
            Suspicion(
                error=error_of(exc),
                started_at=self._lease.started_at,
                retry_after=self._retry_after(exc),
                otherwise=happened(exc),
                conclude=lambda what: self._conclude(what, exc_info),
                is_blameless=isinstance(exc, Suspected) and exc.is_blameless,
            )
        )
        return True

    def _retry_after(self, exc: Any) -> int:
        if isinstance(exc, Suspected) and exc.delay is not None:
            return math.ceil(exc.delay)
        backoff: int = self.task.policy.backoff(self._message.attempt)
        return backoff

    def _conclude(self, what: Happened, exc_info: Any) -> None:
        """End a run whose failure was suspected. Called from any thread."""
        self._note(what)
        if isinstance(what, Failed | RetryAsked) and not self._will_run_again(what):
            exc_info.exception = final = Rejected(what.reason, what.error)
            self._fail(exc_info)
            self._call_hooks(final, exc_info)
            log_failed(self, what.error)
            return
        self.reject(requeue=True)
        self._send("task-retried", exception=self._error, traceback="")

    def _report(self, exc: BaseException, exc_info: Any) -> None:
        """Report a failure that its process could not report: to the result backend, to the hooks
        of the task, and as a signal. Celery does this at a hard time limit only."""
        try:
            self.task.backend.mark_as_failure(
                self.id, exc, request=self._context, store_result=self.store_errors
            )
        except Exception as broken:
            # Broad on purpose: the message has ended, whether or not its result is stored.
            log_unreported(self, broken)
        self._call_hooks(exc, exc_info)
        signals.task_failure.send(
            sender=self.task,
            task_id=self.id,
            exception=exc,
            args=self.args,
            kwargs=self.kwargs,
            traceback=exc_info.traceback,
            einfo=exc_info,
        )

    def _call_hooks(self, exc: BaseException, exc_info: Any) -> None:
        """Call the hooks of the task here, in the main process."""
        args, kwargs = self.args, self.kwargs
        self.task.request_stack.push(self._context)
        try:
            self.task.on_failure(exc, self.id, args, kwargs, exc_info)
            self.task.after_return(FAILURE, exc, self.id, args, kwargs, None)
        except Exception as broken:
            # Broad on purpose: a hook is the project's, and the message has ended.
            log_unreported(self, broken)
        finally:
            self.task.request_stack.pop()

    def maybe_expire(self) -> bool:
        """Whether the message has expired. Unlike Celery's method, this does not add the id to the
        revoked ones, which would discard later messages with that id."""
        return self.expires is not None and datetime.now(UTC) > self.expires

    def on_retry(self, exc_info: Any) -> None:
        """Let SQS deliver the message again: the task asked for a retry."""
        asked = happened(unwrapped(exc_info))
        assert isinstance(asked, RetryAsked)
        self._note(asked)
        self.acknowledge()
        if not self._will_run_again(asked):
            self._send("task-failed", exception=f"{asked.error}({asked.reason!r})", traceback="")
            self._report(Rejected(asked.reason, asked.error), exc_info)
            log_failed(self, asked.error)
            return
        # Not through `send_event` below, which would remove the delay with the text.
        self._send(
            "task-retried",
            exception=f"{asked.error}(...), again in {asked.delay or 0:.0f} s",
            traceback="\n".join(frames_of(str(exc_info.traceback))),
        )

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle a time limit that passed. At the hard limit, `on_failure` was called before."""
        if not soft:
            self._error = "TimeLimitExceeded(...)"
        if self._is_suspected:
            return
        exceeded = TimeLimitExceeded(timeout)
        if not soft and self._will_run_again(happened(exceeded)):
            self._announce(exceeded)
            return
        super().on_timeout(soft, timeout)

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event without the text of an exception, which can hold user input."""
        if "exception" in fields:
            fields["exception"] = self._error or f"{class_in(fields['exception'])}(...)"
        if "traceback" in fields:
            fields["traceback"] = "\n".join(frames_of(fields["traceback"]))
        self._send(type, **fields)

    def info(self, safe: bool = False) -> dict[str, Any]:
        """The request as `inspect` shows it: without the arguments."""
        return dict(super().info(safe=True))

    def _send(self, type: str, **fields: Any) -> None:
        if self._is_given_up:
            return
        try:
            super().send_event(type, **fields)
        except Exception as broken:
            # Broad on purpose: a message must not fail because its event cannot be sent.
            logger.warning(
                "Could not send an event (%s).",
                label(broken),
                extra={"event": "event.failed", "error": label(broken)},
            )

    def _note(self, what: Happened) -> None:
        self._message.note(what, self.task.policy)

    def _will_run_again(self, what: Happened) -> bool:
        return isinstance(what, Failed | RetryAsked) and not is_final(
            what, self._message.attempt, self.task.policy
        )

    def _announce(self, exc: Exception) -> None:
        what = happened(exc)
        will_run_again = isinstance(what, Interrupted) or self._will_run_again(what)
        event = "task-retried" if will_run_again else "task-failed"
        self.send_event(event, exception=repr(exc), traceback="")


def _interruption() -> ExceptionInfo:
    """What ends a run whose process the worker has ended, for no reason of its own."""
    try:
        raise ProcessTerminated(release_after=0)
    except ProcessTerminated:
        return ExceptionInfo()


def hard_limit_of(task: Any, app: Any, own: float | None = None) -> float | None:
    """Seconds that a task may run. `own`: the limit of the message, if it has one."""
    limit = own or task.time_limit or app.conf.task_time_limit
    return float(limit) if limit else None


def limits_of(task: Any, app: Any, own: Sequence[float | None]) -> list[float | None]:
    """The hard and the soft limit of a run. `own`: those of the message, or None for each."""
    hard, soft = hard_limit_of(task, app, own[0]), own[1] or task.soft_time_limit
    return [hard, float(soft) if soft and (hard is None or soft < hard) else None]


def overrun_of(lease: Lease | None, limit: float | None) -> float:
    """Seconds that a task has run beyond its hard time limit; negative before the limit."""
    started_at = lease.started_at if lease else None
    if started_at is None or limit is None:
        return float("-inf")
    return monotonic() - started_at - limit


def log_failed(request: Any, error: str) -> None:
    """Log that a run failed for good, if only the main process knows it."""
    logger.error(
        "A task failed (%s).",
        error,
        extra={
            "event": "task.failed",
            "task": request.name,
            "message_id": request.id,
            "error": error,
            "trace_id": trace_id_of(request.request_dict.get(TRACEPARENT)),
            "request_id": request_id_of(request.request_dict.get(REQUEST_ID)),
        },
    )


def log_unreported(request: Any, exc: Exception) -> None:
    """Log that Celery's own code failed at the end of a task."""
    logger.error(
        "Celery failed while recording the result of a task; its event may be missing.",
        extra={
            "event": "task.unreported",
            "task": request.name,
            "message_id": request.id,
            "error": type(exc).__name__,
        },
    )
