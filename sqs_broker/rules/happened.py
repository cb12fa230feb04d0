"""Turns the result or the exception of a task's run into what happened.

A run ends in a pool process; the main process decides how the delivery ends. The two exceptions
below carry to the main process what only the pool process knows about a failure.
"""

import re
from datetime import UTC, datetime
from typing import Any

from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
)

from sqs_broker.errors import label
from sqs_broker.rules.outcomes import (
    Failed,
    Happened,
    Interrupted,
    Refused,
    RetryAsked,
    Succeeded,
)


class Rejected(Reject):
    """Celery's Reject, with the class of the exception that caused it. Goes to the main process."""

    def __init__(self, reason: str, error: str, requeue: bool = False) -> None:
        super().__init__(reason, requeue)
        self.args = (reason, error, requeue)
        self.error = error


class Suspected(Reject):
    """A failure that an outage may have caused. Goes to the main process, which finds out whether
    it did."""

    def __init__(
        self, error: str, is_retry: bool, delay: float | None, is_blameless: bool = False
    ) -> None:
        super().__init__(error, requeue=True)
        self.args = (error, is_retry, delay, is_blameless)
        self.error = error
        #: Whether the task would run again if there were no outage.
        self.is_retry = is_retry
        #: Seconds after which it can run again; if None, the policy's backoff.
        self.delay = delay
        #: Whether it does not count as a failure even if there is no outage.
        self.is_blameless = is_blameless


class ProcessTerminated(WorkerLostError):
    """A signal ended the pool process, and the message had no part in it. The signal came from
    outside the worker: a SIGTERM, or a SIGQUIT while the worker stops. Or the worker sent it
    because of another message of the same job."""

    def __init__(self, release_after: int) -> None:
        super().__init__("a signal ended the pool process, not because of this message")
        #: Seconds until another worker may receive the message.
        self.release_after = release_after


#: The reason if the run did not end by itself.
ENDS: dict[type[BaseException], str] = {
    WorkerLostError: "the pool process died in the last attempt",
    TimeLimitExceeded: "the task exceeded its hard time limit in the last attempt",
    SoftTimeLimitExceeded: "the task exceeded its soft time limit in the last attempt",
    SystemExit: "the pool process exited in the last attempt",
    KeyboardInterrupt: "the pool process exited in the last attempt",
}


def happened(result: object) -> Happened:
    """What happened in a run that ended with this result or exception. Accepts any object: an
    exception that no case names is a failure, and any other object is the result of a success."""
    match result:
        case Suspected(is_retry=True):
            return RetryAsked(result.delay, result.error)
        case Suspected():
            return Failed(result.error, _failed_with(result.error))
        case Reject(requeue=True):
            return Failed("Reject", "the task rejected its message in the last attempt")
        case Reject():
            return Refused(reason_of(result), getattr(result, "error", "Reject"))
        case Retry():
            return RetryAsked(seconds_of(result.when), error_of(result))
        case Ignore():
            return Succeeded()
        case ProcessTerminated():
            return Interrupted(type(result).__name__, result.release_after)
        case BaseException():
            return _failed(result)
        case _:
            return Succeeded()


def error_of(retry: Any) -> str:
    """The class of the exception that caused a celery Retry."""
    if retry.exc is not None:
        return label(retry.exc)
    return class_in(retry.excs) if retry.excs else "Retry"


def reason_of(reject: Any) -> str:
    """The reason of a celery Reject. An exception's text is left out: it can hold user input."""
    if isinstance(reject.reason, str) and reject.reason:
        return reject.reason
    cause = f" ({label(reject.reason)})" if reject.reason else ""
    return f"the task rejected the message{cause}"


def seconds_of(when: Any) -> float | None:
    """Seconds until a retry, from a number of seconds or a time; None if the task gave neither."""
    if isinstance(when, datetime):
        aware = when if when.tzinfo else when.replace(tzinfo=UTC)
        return (aware - datetime.now(UTC)).total_seconds()
    return None if when is None else float(when)


def class_in(representation: str) -> str:
    """The class name in `repr(exception)`, without the exception's text."""
    # The parenthesis is required, because a `repr` that a class defines itself may be any text.
    found = re.match(r"<?([A-Za-z_][\w.]*)\(", representation)
    return found.group(1) if found else "Exception"


def _failed(exc: BaseException) -> Failed:
    for kind, reason in ENDS.items():
        if isinstance(exc, kind):
            return Failed(type(exc).__name__, reason)
    return Failed(label(exc), _failed_with(label(exc)))


def _failed_with(error: str) -> str:
    return f"the task failed in the last attempt with {error}"
