"""What a run of a task was, by its result or its exception.

A task's run ends in its own process, and what becomes of its message is decided elsewhere. What is
known of a failure only there crosses in one of the two exceptions below.
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
from sqs_broker.rules.outcomes import Failed, Happened, Refused, RetryAsked, Succeeded


class Rejected(Reject):
    """Celery's Reject with the class of the error behind it; crosses to the main process."""

    def __init__(self, reason: str, error: str, requeue: bool = False) -> None:
        super().__init__(reason, requeue)
        self.args = (reason, error, requeue)
        self.error = error


class Suspected(Reject):
    """A failure that an outage may have caused; crosses to the main process, which finds out."""

    def __init__(
        self, error: str, is_retry: bool, delay: float | None, is_blameless: bool = False
    ) -> None:
        super().__init__(error, requeue=True)
        self.args = (error, is_retry, delay, is_blameless)
        self.error = error
        #: Whether the task would run again if there were no outage.
        self.is_retry = is_retry
        #: Seconds after which it can run again; None leaves it to the policy's backoff.
        self.delay = delay
        #: Whether it counts for nothing even if there is no outage.
        self.is_blameless = is_blameless


#: The reason of a run that did not end by itself.
ENDS: dict[type[BaseException], str] = {
    WorkerLostError: "the pool process died in each attempt",
    TimeLimitExceeded: "the hard time limit passed each time",
    SoftTimeLimitExceeded: "the soft time limit passed each time",
    SystemExit: "the pool process exited in each attempt",
    KeyboardInterrupt: "the pool process exited in each attempt",
}


def happened(result: object) -> Happened:
    """What a run was that ended with this result, or with this exception. Total: any exception that
    no case names is a failure, and any other object is the result of a success."""
    match result:
        case Suspected(is_retry=True):
            return RetryAsked(result.delay, result.error)
        case Suspected():
            return Failed(result.error, _failed_in_each(result.error))
        case Reject(requeue=True):
            return Failed("Reject", "the task rejected its message each time")
        case Reject():
            return Refused(reason_of(result), getattr(result, "error", "Reject"))
        case Retry():
            return RetryAsked(seconds_of(result.when), error_of(result))
        case Ignore():
            return Succeeded()
        case BaseException():
            return _failed(result)
        case _:
            return Succeeded()


def error_of(retry: Any) -> str:
    """The class of the exception behind a celery Retry."""
    if retry.exc is not None:
        return label(retry.exc)
    return class_in(retry.excs) if retry.excs else "Retry"


def reason_of(reject: Any) -> str:
    """The reason of a celery Reject, without the text of an exception, which can hold what a user
    typed."""
    if isinstance(reject.reason, str) and reject.reason:
        return reject.reason
    cause = f" ({label(reject.reason)})" if reject.reason else ""
    return f"the task rejected the message{cause}"


def seconds_of(when: Any) -> float | None:
    """Seconds until a retry is wanted: a number or a time says when; None leaves it open."""
    if isinstance(when, datetime):
        aware = when if when.tzinfo else when.replace(tzinfo=UTC)
        return (aware - datetime.now(UTC)).total_seconds()
    return None if when is None else float(when)


def class_in(representation: str) -> str:
    """The class in `repr(exception)`, without the text of the exception."""
    # The parenthesis matters: an exception may have a `repr` of its own, which is any text.
    found = re.match(r"<?([A-Za-z_][\w.]*)\(", representation)
    return found.group(1) if found else "Exception"


def _failed(exc: BaseException) -> Failed:
    for kind, reason in ENDS.items():
        if isinstance(exc, kind):
            return Failed(type(exc).__name__, reason)
    return Failed(label(exc), _failed_in_each(label(exc)))


def _failed_in_each(error: str) -> str:
    return f"the task failed in each attempt, at last of {error}"
