"""How a delivery ends: `decide(what happened, delivery, policy) -> outcome`, a pure function.

Nothing else in the broker chooses between delete, retry and dead-letter.
"""

import math
from dataclasses import dataclass, field

from sqs_broker.limits import LONGEST_DELAY, LONGEST_VISIBILITY
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.policy import Policy

# What happened --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Succeeded:
    """The task returned, or raised Ignore, and must not run again."""

    result: str | None = field(default=None, compare=False, repr=False)
    """The result as Celery logs it, if it is known. It can hold personal data."""


@dataclass(frozen=True)
class Discarded:
    """The message was revoked or has expired, and must not run again."""

    reason: str
    """`revoked`, `terminated` (revoked while it ran) or `expired`."""


@dataclass(frozen=True)
class RetryAsked:
    """The task asked to run again."""

    delay: float | None
    """Seconds that the task asked for; if None, the policy's backoff."""
    error: str
    """Class of the exception that caused the retry."""
    reason: str = "the task asked for more retries than max_receive_count allows"
    """The reason on the dead letter if this attempt is the last. Without personal data."""


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
    """This worker has no task of this name. Another worker may have one."""

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
    | Discarded
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

#: A run went on beyond its hard time limit, because nothing can end a thread. The name of the error
#: is the one that the limit has in a pool of processes.
HUNG = Failed(
    "TimeLimitExceeded",
    "the task did not end at its hard time limit in the last attempt, and could not be ended",
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
    """Seconds until the message may run. If they are more than SQS's longest delay, the copy is
    replaced by another one when it arrives."""
    error: str | None = None
    """If the run failed, the class of the exception."""
    is_again: bool = False
    """Whether the message was due, and comes again: then the copy carries its attempts."""
    name = "postponed"


@dataclass(frozen=True)
class Released:
    """Release the message, at once or `delay` seconds from now: SQS delivers it again."""

    delay: int = 0
    name = "released"


Outcome = Done | Retry | DeadLetter | Postponed | Released


_DONE = Done()

#: Seconds of the shortest delay that a copy waits for in place of a hidden message.
SHORTEST_COPIED = 10


def decide(
    happened: Happened, delivery: Delivery, policy: Policy, *, is_crowded: bool = False
) -> Outcome:
    """The outcome of a delivery. `is_crowded`: whether the queue has so many messages in flight
    that a message which comes again much later should be replaced by a delayed copy."""
    match happened:
        case Succeeded() | Discarded() | Copied():
            return _DONE
        case Refused(reason, error):
            return DeadLetter(reason, error)
        case UnknownTask(name):
            delay = policy.grace(delivery.age, delivery.deliveries)
            if delay is None:
                return DeadLetter(f"unknown task {name[:LONGEST_NAME]!r}", "KeyError")
            again: Retry | Released = Released(delay)
        case NotDue(delay):
            return Postponed(min(delay, LONGEST_DELAY))
        case NotTaken():
            # No attempt, but it may happen again and again.
            again = Released(policy.backoff(delivery.deliveries))
        case NotStarted() | Interrupted():
            again = Released(happened.release_after)
        case Failed() | RetryAsked():
            if is_final(happened, delivery.attempt, policy):
                return DeadLetter(_with_counts(happened.reason, delivery), happened.error)
            again = Retry(retry_delay(happened, delivery.attempt, policy), happened.error)
    is_long = is_crowded and again.delay >= SHORTEST_COPIED
    return _copied(again) if is_long or policy.needs_copy(delivery.count) else again


def is_final(happened: Failed | RetryAsked, attempt: int, policy: Policy) -> bool:
    """Whether the attempt with this number was the last. No other function answers this."""
    # A task checks its own limit when it asks for a retry. The other limit is for tasks without
    # one, which would otherwise run for ever.
    most = policy.max_receive_count
    if isinstance(happened, Failed):
        most = min(policy.max_attempts, most)
    return attempt >= most


def _with_counts(reason: str, delivery: Delivery) -> str:
    if delivery.record is None:  # It is not known how many of the deliveries were failed runs.
        return f"{reason} (deliveries: {delivery.deliveries})"
    return f"{reason} (failed runs: {delivery.attempt}, deliveries: {delivery.deliveries})"


def retry_delay(happened: Failed | RetryAsked, attempt: int, policy: Policy) -> int:
    """Seconds until a failure is retried: as the task asked, or the policy's backoff."""
    asked = happened.delay if isinstance(happened, RetryAsked) else None
    if asked is None or math.isnan(asked):
        return policy.backoff(attempt)
    return math.ceil(min(max(asked, 0), LONGEST_VISIBILITY))


def _copied(again: Retry | Released) -> Postponed:
    error = again.error if isinstance(again, Retry) else None
    return Postponed(min(again.delay, LONGEST_VISIBILITY), error, is_again=True)
