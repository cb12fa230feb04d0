"""happened(): what a run was, by its result or its exception; and nothing that a user typed."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.utils.serialization import UnpickleableExceptionWrapper
from pydantic import BaseModel

from sqs_broker.rules.happened import (
    ProcessTerminated,
    Rejected,
    Suspected,
    class_in,
    happened,
)
from sqs_broker.rules.outcomes import (
    Failed,
    Happened,
    Interrupted,
    Refused,
    RetryAsked,
    Succeeded,
)

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


class Quoting(Exception):
    """Has a `repr` of its own, as many an exception of a library has."""

    def __repr__(self) -> str:
        return f"{self.args[0]} is not possible"


class Model(BaseModel):
    number: int


def invalid() -> Exception:
    """pydantic's error, whose `repr` begins with a number."""
    with pytest.raises(ValueError, match=MARKER) as raised:
        Model(number=MARKER)
    return raised.value


def failed(error: str) -> Failed:
    return Failed(error, f"the task failed in the last attempt with {error}")


REJECTED = Failed("Reject", "the task rejected its message in the last attempt")
DIED = "the pool process died in the last attempt"
EXITED = "the pool process exited in the last attempt"
HARD, SOFT = (
    f"the task exceeded its {kind} time limit in the last attempt" for kind in ("hard", "soft")
)


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (7, Succeeded()),
        (None, Succeeded()),
        (Ignore(), Succeeded()),
        (Rejected("no such user", "Conflict"), Refused("no such user", "Conflict")),
        (Reject("not ours"), Refused("not ours", "Reject")),
        (Reject(), Refused("the task rejected the message", "Reject")),
        # Celery's own idiom: `raise Reject(exc, requeue=False)`.
        (Reject(KeyError(MARKER)), Refused("the task rejected the message (KeyError)", "Reject")),
        (Reject("later", requeue=True), REJECTED),
        (Rejected("x", "y", True), REJECTED),
        (Suspected("OSError", True, 7.0), RetryAsked(7.0, "OSError")),
        (Suspected("OSError", False, None), failed("OSError")),
        (Retry(), RetryAsked(None, "Retry")),
        (Retry(when=3), RetryAsked(3, "Retry")),
        (Retry(exc=KeyError(MARKER), when=0.7), RetryAsked(0.7, "KeyError")),
        (Retry(exc=Quoting(MARKER), when=7), RetryAsked(7, "Quoting")),
        (Retry(exc=f"KeyError('{MARKER}')", when=7), RetryAsked(7, "KeyError")),
        (WorkerLostError("signal 9"), Failed("WorkerLostError", DIED)),
        (ProcessTerminated(7), Interrupted("ProcessTerminated", 7)),
        (TimeLimitExceeded(30), Failed("TimeLimitExceeded", HARD)),
        (SoftTimeLimitExceeded(25), Failed("SoftTimeLimitExceeded", SOFT)),
        (SystemExit(1), Failed("SystemExit", EXITED)),
        (KeyboardInterrupt(), Failed("KeyboardInterrupt", EXITED)),
        (ValueError(MARKER), failed("ValueError")),
        (KeyError(MARKER), failed("KeyError")),
        (Exception(), failed("Exception")),
        (Quoting(MARKER), failed("Quoting")),
        (invalid(), failed("ValidationError")),
        (UnicodeDecodeError("utf-8", b"", 0, 1, MARKER), failed("UnicodeDecodeError")),
        # Stands for an exception that pickle refuses.
        (UnpickleableExceptionWrapper("m", "Local", [MARKER], MARKER), failed("Local")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_result_or_an_exception_says_what_the_run_was(result: Any, what: Happened) -> None:
    assert happened(result) == what


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=9)), None])
def test_a_retry_at_a_time_is_asked_for_in_seconds(zone: Any) -> None:
    in_utc = datetime.now(UTC) + timedelta(minutes=5)
    what = happened(Retry(when=in_utc.astimezone(zone) if zone else in_utc.replace(tzinfo=None)))
    assert isinstance(what, RetryAsked)
    assert what.delay == pytest.approx(300, abs=60)


@pytest.mark.parametrize(
    ("representation", "name"),
    [
        (f"KeyError('{MARKER}')", "KeyError"),
        (f"mongoengine.errors.NotUniqueError('{MARKER}')", "mongoengine.errors.NotUniqueError"),
        (f"<KeyError('{MARKER}')>", "KeyError"),
        ("KeyError()", "KeyError"),
        (f"{MARKER} is not possible", "Exception"),
        (f"reject requeue=False: {MARKER}", "Exception"),
        (f"1 validation error for {MARKER}", "Exception"),
        (MARKER, "Exception"),
        ("", "Exception"),
    ],
)
def test_of_the_text_of_an_exception_only_the_class_is_known(
    representation: str, name: str
) -> None:
    assert class_in(representation) == name
