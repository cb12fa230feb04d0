"""What an exception of a task says: of its delivery, to people, and no more than may be shown.

The main process sees an exception that came from the pool: pickled, wrapped or replaced on its way.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
)

from sqs_broker.errors import label
from sqs_broker.rules import outcomes
from sqs_broker.rules.outcomes import Happened
from sqs_broker.worker.task import Rejected, Suspected

#: A frame of a formatted traceback; all other lines can hold the text of an exception.
_FRAME = re.compile(r'^  File "[^"]*", line \d+, in \S+$')


def what_happened(exc: Any) -> Happened | None:
    """What an exception says; None where it says nothing that ack or reject does not say too."""
    match exc:
        case Suspected(is_retry=True):
            return outcomes.RetryAsked(exc.delay, exc.error)
        case Suspected():
            return outcomes.Failed(exc.error, _failed_in_each(exc.error))
        case Reject(requeue=True):
            return outcomes.Failed("Reject", "the task rejected its message each time")
        case Reject():
            error = getattr(exc, "error", "Reject")
            return outcomes.Refused(_reason(exc), error)
        case Ignore() | Retry():
            return None
        case WorkerLostError():
            return outcomes.Failed("WorkerLostError", "the pool process died in each attempt")
        case TimeLimitExceeded():
            return outcomes.Failed("TimeLimitExceeded", "the hard time limit passed each time")
        case SoftTimeLimitExceeded():
            return outcomes.Failed("SoftTimeLimitExceeded", "the soft time limit passed each time")
        case SystemExit() | KeyboardInterrupt():
            return outcomes.Failed(type(exc).__name__, "the pool process exited in each attempt")
        case _:
            error = label(exc)
            return outcomes.Failed(error, _failed_in_each(error))


def _failed_in_each(error: str) -> str:
    return f"the task failed in each attempt, at last of {error}"


def unwrapped(exc_info: Any) -> Any:
    """The exception itself: until it was pickled it wears a wrapper (billiard 4.3 einfo.py)."""
    exc = exc_info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def error_of(retry: Any) -> str:
    """The class of the exception behind a retry."""
    if retry.exc is not None:
        return label(retry.exc)
    return class_in(retry.excs) if retry.excs else "Retry"


def _reason(reject: Any) -> str:
    # The reason may be an exception, whose text can hold what a user typed.
    if isinstance(reject.reason, str) and reject.reason:
        return reject.reason
    cause = f" ({label(reject.reason)})" if reject.reason else ""
    return f"the task rejected the message{cause}"


def told(exc: Any) -> str:
    """What an event tells of it: its class; of a permanent error the reason too, as on the dead
    letter."""
    if isinstance(exc, Rejected) and not exc.requeue:
        return f"{exc.error}: {_reason(exc)}"
    return exc.error if isinstance(exc, Suspected) else label(exc)


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


def frames_of(traceback: str | None) -> Iterator[str]:
    """The places in the code of a formatted traceback, without any text of its exceptions."""
    return (line for line in (traceback or "").splitlines() if _FRAME.match(line))
