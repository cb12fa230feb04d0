"""What happened to a task, as the worker's main process learns it.

Celery generates a subclass that replaces `execute_using_pool` and `on_success` (celery 5.7
worker/request.py, `create_request_cls`), so a success is seen in `acknowledge`.
"""

import logging
import math
import threading
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from weakref import ref

from billiard.einfo import ExceptionInfo
from celery.exceptions import (
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.worker import state
from celery.worker.request import Request as CeleryRequest

from sqs_broker.errors import label
from sqs_broker.limits import BATCH
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.happened import Rejected, Suspected, class_in, happened
from sqs_broker.rules.lease import Lease
from sqs_broker.rules.outcomes import Failed, Happened, RetryAsked, is_final
from sqs_broker.rules.suspicion import Suspicion
from sqs_broker.worker.channel import Message
from sqs_broker.worker.failures import frames_of, shown, unwrapped

logger = logging.getLogger(__name__)


class HandedBack(Exception):
    """The delivery of a task ended before the task was started."""


class OutOfMemory(Exception):
    """Stands for the MemoryError of a task. Celery raises that again where it is told of it, which
    is not where memory was short (celery 5.7 worker/request.py), and settles nothing."""


class Request(CeleryRequest):
    """Notes on the message what happened, before Celery acks or rejects it without a reason."""

    #: Class of the exception that ended the task, once one did.
    _error: str | None = None
    _lease: Lease | None = None
    #: The thread of this process that has started the task, or was told so.
    _started_on: int | None = None
    _is_suspected = False

    def __init__(self, message: Message, **options: Any) -> None:
        # `decoded`: the pool is given what the receiver has read of the body, and reads no text.
        super().__init__(message, **options | {"body": message.payload, "decoded": True})

    def shares(self, job: Any) -> None:
        """The request runs in a job with others: what `terminate` and `cancel` end is that one."""
        self._apply_result = None if job is None else ref(job)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A process of the pool runs the task now."""
        deliveries, tag = self._message.channel.deliveries, self._message.delivery_tag
        self._lease = deliveries.started(tag, self.hard_time_limit, self._job(pid, time_accepted))
        if self._lease is None and not deliveries.pool_has_processes:
            self._give_up()
            # The threads pool calls this before the task, and does not start it then. A process has
            # started it, and billiard 4.3 is broken by what is raised here (pool.py, `_ack`).
            raise HandedBack(self.id)
        self._started_on = threading.get_ident()
        super().on_accepted(pid, time_accepted)

    def _job(self, pid: int, time_accepted: float) -> Job:
        """The run that a process has begun. Messages that share it are told of it with the same
        process and time."""
        takes = 1 if self.task.many is None else BATCH
        return Job((pid, time_accepted), takes, is_measured=bool(self.task.acks_late))

    @property
    def hard_time_limit(self) -> float | None:
        """Seconds that the task may run."""
        limit = self.time_limits[0] or self.task.time_limit or self.app.conf.task_time_limit
        return float(limit) if limit else None

    def overrun(self) -> float:
        """Seconds that the task runs beyond its hard time limit; negative within it."""
        started_at = self._lease.started_at if self._lease else None
        if started_at is None or self.hard_time_limit is None:
            return float("-inf")
        return monotonic() - started_at - self.hard_time_limit

    def revoked(self) -> bool:
        """Whether the task shall not start, asked right before it does: its message was handed back
        meanwhile, or it was revoked or is expired."""
        deliveries = self._message.channel.deliveries
        # Celery asks on arrival too, when the task may still have to wait for a slot.
        may_start = deliveries.hand_over if self in state.reserved_requests else deliveries.holds
        if may_start(self._message.delivery_tag):
            return bool(super().revoked())
        self._give_up()
        return True

    def not_taken(self, exc: Exception) -> None:
        """The pool raised this when it was given the task. For who has caught it.

        One of threads has the task in its queue even so, where a thread may have found it by now:
        then this ends nothing. In the solo pool the task has run, if it was started.
        """
        if isinstance(exc, HandedBack):
            return  # It is given up already.
        if self._started_on == threading.get_ident():
            self.on_failure(ExceptionInfo())
            return
        message = self._message
        if message.channel.deliveries.end_unstarted(
            message.delivery_tag, untaken(exc), message.headers, self.task.policy
        ):
            self._give_up()

    def _give_up(self) -> None:
        """Forget a delivery that has ended, of which Celery was not told."""
        state.task_ready(self)
        self.acknowledge()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """The task ended with an exception, or its process did."""
        exc = unwrapped(exc_info)
        self._error = shown(exc)
        if self._suspect(exc, exc_info):
            return
        self._note(happened(exc))
        self._fail(exc_info, send_failed_event, return_ok)
        if isinstance(exc, WorkerLostError):
            # Celery requeues the message and says nothing.
            self._announce(exc)

    def _fail(self, exc_info: Any, *rest: Any) -> None:
        """Let Celery end the run, with its signals, events and errbacks."""
        if isinstance(unwrapped(exc_info), MemoryError):
            exc_info.exception = OutOfMemory()
        try:
            super().on_failure(exc_info, *rest)
        except Exception as broken:
            # Broad on purpose: the pool would print the text of what is raised here, and the
            # message would keep its slot for ever.
            say_unreported(self, broken)
            self.reject(requeue=False)

    def _suspect(self, exc: Any, exc_info: Any) -> bool:
        """Whether an outage may have caused this failure. Then its end waits for the verdict."""
        if self._lease is None or not isinstance(exc, (Suspected, *self.task.suspect_on)):
            return False
        assert self._error is not None
        assert self._lease.started_at is not None
        self._is_suspected = True
        state.task_ready(self)  # Celery is done with it, whatever the verdict.
        self._message.channel.deliveries.on_suspicion(
            Suspicion(
                error=self._error,
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
        backoff: int = self.task.policy.backoff(self._message.deliveries)
        return backoff

    def _conclude(self, what: Happened, exc_info: Any) -> None:
        """End a run of which the outage was suspected. Called from any thread."""
        self._note(what)
        if isinstance(what, Failed | RetryAsked) and not self._will_run_again(what):
            exc_info.exception = Rejected(what.reason, what.error)
            self._fail(exc_info)
            return
        self.reject(requeue=True)
        self._send("task-retried", exception=self._error, traceback="")

    def maybe_expire(self) -> bool:
        """Whether the message's time is over. Celery adds its id to the revoked ones, so that any
        later message of that id is discarded too."""
        return self.expires is not None and datetime.now(UTC) > self.expires

    def on_retry(self, exc_info: Any) -> None:
        """The task asked to run again: the same message, later."""
        asked = happened(unwrapped(exc_info))
        assert isinstance(asked, RetryAsked)
        self._note(asked)
        self.acknowledge()
        if not self._will_run_again(asked):
            self._send("task-failed", exception=f"{asked.error}: {asked.reason}", traceback="")
            return
        # Not through our `send_event`, which would take the delay away with the text.
        self._send(
            "task-retried",
            exception=f"Retry in {asked.delay or 0:.0f} s: {asked.error}",
            traceback="\n".join(frames_of(str(exc_info.traceback))),
        )

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit passed. At the hard one, `on_failure` was called just before."""
        if not soft:
            self._error = "TimeLimitExceeded"
        if self._is_suspected:
            return
        exceeded = TimeLimitExceeded(timeout)
        if not soft and self._will_run_again(happened(exceeded)):
            self._announce(exceeded)
            return
        super().on_timeout(soft, timeout)

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event without the text of an exception, which can hold what a user typed."""
        if "exception" in fields:
            fields["exception"] = self._error or class_in(fields["exception"])
        if "traceback" in fields:
            fields["traceback"] = "\n".join(frames_of(fields["traceback"]))
        self._send(type, **fields)

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What `inspect` shows: never the arguments themselves."""
        return dict(super().info(safe=True))

    def _send(self, type: str, **fields: Any) -> None:
        try:
            super().send_event(type, **fields)
        except Exception as broken:
            # Broad on purpose: an event that cannot be sent costs the event and not the message.
            logger.warning(
                "An event could not be sent (%s).",
                label(broken),
                extra={"event": "event.failed", "error": label(broken)},
            )

    def _note(self, what: Happened) -> None:
        self._message.note(what, self.task.policy)

    def _will_run_again(self, what: Happened) -> bool:
        return isinstance(what, Failed | RetryAsked) and not is_final(
            what, self._message.deliveries, self.task.policy
        )

    def _announce(self, exc: Exception) -> None:
        event = "task-retried" if self._will_run_again(happened(exc)) else "task-failed"
        self.send_event(event, exception=repr(exc), traceback="")


def say_unreported(request: Any, exc: Exception) -> None:
    """Log that Celery's own code failed at the end of a task: there may be no event of it."""
    logger.error(
        "Celery could not take the end of a task.",
        extra={
            "event": "task.unreported",
            "task": request.name,
            "message_id": request.id,
            "error": type(exc).__name__,
        },
    )
