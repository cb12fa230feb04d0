"""What becomes of a delivery: `decide(what happened, deliveries, policy) -> outcome`, a pure
function. Nothing else in the broker chooses between delete, retry and dead-letter.
"""

import math
from dataclasses import dataclass

from sqs_broker.limits import LONGEST_DELAY, LONGEST_VISIBILITY
from sqs_broker.rules.policy import Policy

# What happened --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Succeeded:
    """The task returned; or it was revoked, expired or ignored, and shall not run again."""


@dataclass(frozen=True)
class RetryAsked:
    """The task asked to run again."""

    delay: float | None
    """Seconds it asked for; None leaves it to the policy."""
    error: str
    """Class of the exception behind it."""
    reason: str = "a retry was asked for in the last delivery SQS allows"
    """A sentence without personal data, for the case that no delivery is left."""


@dataclass(frozen=True)
class Failed:
    """A run ended without an answer: an exception, the hard time limit, a lost pool process."""

    error: str
    """Class of the exception."""
    reason: str
    """A sentence without personal data."""


@dataclass(frozen=True)
class Refused:
    """It can never succeed: a bad body, an unknown task, invalid data, a permanent error."""

    reason: str
    error: str = "Reject"


@dataclass(frozen=True)
class UnknownTask:
    """This worker has no task of this name."""

    name: str


@dataclass(frozen=True)
class NotDue:
    """It arrived before its time: SQS delays by 900 s at the most."""

    delay: int
    """Seconds until it is due."""


@dataclass(frozen=True)
class NotStarted:
    """The worker stops, or pauses, before the task was started."""

    release_after: int = 0
    """Seconds until another worker may have it."""


@dataclass(frozen=True)
class NotTaken:
    """A fault of this machine (no memory, no room for a thread) kept the task from being started:
    nothing of the message, and no attempt."""

    error: str
    """Class of the exception."""


@dataclass(frozen=True)
class Copied:
    """In an earlier delivery its copy was sent, and SQS did not hear the delete."""


@dataclass(frozen=True)
class Interrupted:
    """A run ended because the worker stopped, or something it depends on was away: no failure of
    the message, and none that counts."""

    error: str
    """Class of the exception."""
    release_after: int
    """Seconds until another worker may have it."""


Happened = (
    Succeeded
    | RetryAsked
    | Failed
    | Refused
    | UnknownTask
    | NotDue
    | NotStarted
    | NotTaken
    | Copied
    | Interrupted
)

#: Characters of a task's name that a reason shows.
LONGEST_NAME = 100

# Outcomes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """Delete the message."""

    name = "done"


@dataclass(frozen=True)
class Retry:
    """Let SQS deliver the same message again, `delay` seconds from now."""

    delay: int
    error: str
    name = "retry"


@dataclass(frozen=True)
class DeadLetter:
    """Send a copy with the reason to the dead-letter queue, then delete the message."""

    reason: str
    error: str
    name = "dead-letter"


@dataclass(frozen=True)
class Postponed:
    """Send the message on with SQS's own delay, then delete this one: its deliveries count from
    one again."""

    delay: int
    name = "postponed"


@dataclass(frozen=True)
class Released:
    """Hand the message back, at once or `delay` seconds from now."""

    delay: int = 0
    name = "released"


Outcome = Done | Retry | DeadLetter | Postponed | Released


def decide(happened: Happened, deliveries: int, policy: Policy) -> Outcome:
    """The outcome of a delivery.

    `deliveries` is SQS's ApproximateReceiveCount, this delivery included.
    """
    match happened:
        case Succeeded() | Copied():
            return Done()
        case Refused(reason, error):
            return DeadLetter(reason, error)
        case UnknownTask(name):
            return DeadLetter(f"unknown task {name[:LONGEST_NAME]!r}", "KeyError")
        case NotDue(delay):
            return Postponed(min(delay, LONGEST_DELAY))
        case NotStarted() | NotTaken() | Interrupted():
            return _handed_back(_wait(happened, deliveries, policy), deliveries, policy)
        case Failed() | RetryAsked():
            if is_final(happened, deliveries, policy):
                return DeadLetter(happened.reason, happened.error)
            return Retry(_retry_delay(happened, deliveries, policy), happened.error)


def is_final(happened: Failed | RetryAsked, deliveries: int, policy: Policy) -> bool:
    """Whether no run follows this one: the one answer to "is this the last attempt?"."""
    # Who asks for a retry has kept its own limit where it asked; SQS's is the one left to keep.
    most = policy.max_receive_count
    if isinstance(happened, Failed):
        most = min(policy.max_attempts, most)
    return deliveries >= most


def _retry_delay(happened: Failed | RetryAsked, deliveries: int, policy: Policy) -> int:
    asked = happened.delay if isinstance(happened, RetryAsked) else None
    if asked is None or math.isnan(asked):
        return policy.backoff(deliveries)
    return math.ceil(min(max(asked, 0), LONGEST_VISIBILITY))


def _wait(happened: NotStarted | NotTaken | Interrupted, deliveries: int, policy: Policy) -> int:
    if isinstance(happened, NotTaken):
        return policy.backoff(deliveries)
    return happened.release_after


def _handed_back(delay: int, deliveries: int, policy: Policy) -> Outcome:
    if deliveries >= policy.max_receive_count:
        # Beyond the last delivery SQS would dead-letter it, for nothing that it did.
        return Postponed(min(delay, LONGEST_DELAY))
    return Released(delay)
