"""How a delivery ends: `decide(what happened, deliveries, policy) -> outcome`, a pure function.

Nothing else in the broker chooses between delete, retry and dead-letter.
"""

import math
from dataclasses import dataclass

from sqs_broker.limits import LONGEST_DELAY, LONGEST_VISIBILITY
from sqs_broker.rules.policy import Policy

# What happened --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Succeeded:
    """The task returned; or it was revoked, expired or ignored, and must not run again."""


@dataclass(frozen=True)
class RetryAsked:
    """The task asked to run again."""

    delay: float | None
    """Seconds that the task asked for; if None, the policy's backoff."""
    error: str
    """Class of the exception that caused the retry."""
    reason: str = "the task asked for a retry in the last delivery that SQS allows"
    """The reason on the dead letter if no delivery is left. Without personal data."""


@dataclass(frozen=True)
class Failed:
    """A run failed: an exception, the hard time limit, a lost pool process."""

    error: str
    """Class of the exception."""
    reason: str
    """The reason on the dead letter if this attempt is the last. Without personal data."""


@dataclass(frozen=True)
class Refused:
    """The message can never succeed: a bad body, invalid data, a permanent error."""

    reason: str
    error: str = "Reject"


@dataclass(frozen=True)
class UnknownTask:
    """This worker has no task of this name."""

    name: str


@dataclass(frozen=True)
class NotDue:
    """The message arrived before it was due. SQS can delay a message by at most 900 s."""

    delay: int
    """Seconds until the message is due."""


@dataclass(frozen=True)
class NotStarted:
    """The worker stopped or paused before it started the task."""

    release_after: int = 0
    """Seconds until another worker may receive the message."""


@dataclass(frozen=True)
class NotTaken:
    """The task could not start because this machine lacks a resource (memory, a thread). This is
    not an attempt."""

    error: str
    """Class of the exception."""


@dataclass(frozen=True)
class Copied:
    """An earlier delivery sent the message's copy, but its delete did not reach SQS."""


@dataclass(frozen=True)
class Interrupted:
    """A run ended because the worker stopped, or because a service that the task needs was
    unavailable. This is not a failure of the message and does not count as one."""

    error: str
    """Class of the exception."""
    release_after: int
    """Seconds until another worker may receive the message."""


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

#: Most characters of a task's name in a reason.
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
    """Send a copy of the message with SQS's own delay, then delete the message. SQS counts the
    copy's deliveries from one."""

    delay: int
    name = "postponed"


@dataclass(frozen=True)
class Released:
    """Release the message, at once or `delay` seconds from now: SQS delivers it again."""

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
            return _release(_release_delay(happened, deliveries, policy), deliveries, policy)
        case Failed() | RetryAsked():
            if is_final(happened, deliveries, policy):
                return DeadLetter(happened.reason, happened.error)
            return Retry(_retry_delay(happened, deliveries, policy), happened.error)


def is_final(happened: Failed | RetryAsked, deliveries: int, policy: Policy) -> bool:
    """Whether this was the last attempt. No other function answers this."""
    # A task checks its own limit when it asks for a retry, so only SQS's limit is left here.
    most = policy.max_receive_count
    if isinstance(happened, Failed):
        most = min(policy.max_attempts, most)
    return deliveries >= most


def _retry_delay(happened: Failed | RetryAsked, deliveries: int, policy: Policy) -> int:
    asked = happened.delay if isinstance(happened, RetryAsked) else None
    if asked is None or math.isnan(asked):
        return policy.backoff(deliveries)
    return math.ceil(min(max(asked, 0), LONGEST_VISIBILITY))


def _release_delay(
    happened: NotStarted | NotTaken | Interrupted, deliveries: int, policy: Policy
) -> int:
    if isinstance(happened, NotTaken):
        return policy.backoff(deliveries)
    return happened.release_after


def _release(delay: int, deliveries: int, policy: Policy) -> Outcome:
    if deliveries >= policy.max_receive_count:
        # After the last delivery SQS would dead-letter the message, which has not failed.
        return Postponed(min(delay, LONGEST_DELAY))
    return Released(delay)
