"""The numbers for attempts, retry delays and leases: one frozen object, checked once."""

import math
from dataclasses import dataclass, replace
from typing import Self

from sqs_broker.errors import ConfigurationError
from sqs_broker.rules.backoff import MOST_DOUBLINGS, full_jitter

#: Longest time in seconds that a received message waits for a free pool process.
LONGEST_WAIT = 900

#: Deliveries kept between `max_attempts` and SQS's own limit. SQS also counts deliveries that end
#: without a failure: in a lost worker, a lost lease, a release or a pause.
SPARE_DELIVERIES = 3

#: Deliveries that stay unused before SQS's own limit: from so many before it on, a message that
#: must come again is replaced by a copy. So a killed worker does not make SQS dead-letter it.
UNUSED_DELIVERIES = 2

#: Longest delay before a message of an unknown task comes again: the first, which doubles with each
#: delivery, and the longest at all, in seconds.
FIRST_GRACE, LONGEST_GRACE = 5, 320

#: Seconds by which a lease must be longer than the hard time limit: time to kill the task and
#: settle its message.
LEAST_MARGIN = 1


@dataclass(frozen=True)
class Policy:
    """When a message is retried, and when it is dead-lettered."""

    visibility_timeout: int = 60
    """Length of a lease, in seconds."""
    max_attempts: int = 3
    """So many failed runs dead-letter the message."""
    max_receive_count: int = 10
    """`maxReceiveCount` of the queue's redrive policy: after so many deliveries SQS itself
    dead-letters the message."""
    backoff_base: float = 2.0
    """Longest delay before the first retry, in seconds. It doubles with each attempt."""
    heartbeat: bool = True
    """Whether leases are extended. If not, a task that runs longer than its lease is delivered
    again while it runs."""
    cancel_on_lease_loss: bool = False
    """Whether to stop a task that lost its lease; prefork only. SQS delivers its message again in
    any case."""
    backoff_max: int = 600
    """Longest delay before a retry, in seconds."""
    longest_wait: float = LONGEST_WAIT
    """Seconds after which a message that still waits for a pool process is released, so that
    another worker can run it. A stuck pool thus keeps no message."""
    unknown_task_grace: float = 600
    """Seconds after its first receive in which a message of an unknown task is released, so that a
    worker of another release can run it. After that it is dead-lettered."""

    def check(self, time_limit: float | None) -> None:
        """Raise ConfigurationError, with both names, if two numbers contradict each other.

        `time_limit` is the longest hard time limit, in seconds, of any task that may run.
        """
        self.check_attempts()
        self.check_lease(time_limit)

    def check_attempts(self) -> None:
        """Raise ConfigurationError if SQS would dead-letter a message before its last attempt."""
        if self.max_attempts > self.max_receive_count - SPARE_DELIVERIES:
            raise ConfigurationError(
                f"max_attempts ({self.max_attempts}) must be at most max_receive_count "
                f"({self.max_receive_count}) minus {SPARE_DELIVERIES}. Otherwise SQS dead-letters "
                "messages before they have failed max_attempts times. Raise max_receive_count, "
                "here and on the queue."
            )

    def check_lease(self, time_limit: float | None) -> None:
        """Raise ConfigurationError if a task may run longer than its first lease."""
        if time_limit is None:
            raise ConfigurationError(
                "task_time_limit is not set, so visibility_timeout cannot cover it. Set it."
            )
        if self.visibility_timeout < time_limit + LEAST_MARGIN:
            raise ConfigurationError(
                f"visibility_timeout ({self.visibility_timeout} s) must be at least "
                f"{LEAST_MARGIN} s longer than task_time_limit ({time_limit} s). Otherwise SQS "
                "delivers a running task's message to another worker. Raise visibility_timeout or "
                "lower task_time_limit."
            )

    def limited_to(self, max_retries: int | None) -> Self:
        """This policy with at most `max_retries` retries; unchanged if that is None."""
        if max_retries is None:
            return self
        return replace(self, max_attempts=min(self.max_attempts, max_retries + 1))

    def backoff(self, attempt: int) -> int:
        """Seconds until the next attempt: exponential backoff with full jitter, at least 1 s."""
        return max(1, math.ceil(full_jitter(self.backoff_base, attempt, self.backoff_max)))

    def grace(self, age: float, deliveries: int) -> int | None:
        """Seconds until a message of an unknown task comes again; None if it must not. `age`:
        seconds since its first receive."""
        if age >= self.unknown_task_grace:
            return None
        return int(min(FIRST_GRACE * 2 ** min(deliveries - 1, MOST_DOUBLINGS), LONGEST_GRACE))

    def needs_copy(self, count: int) -> bool:
        """Whether SQS allows so few deliveries after the one with this number that the message must
        be replaced by a copy."""
        return count >= self.max_receive_count - UNUSED_DELIVERIES
