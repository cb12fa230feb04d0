"""The numbers that decide how often, how late and how long: one frozen object, checked once."""

import math
import random
from dataclasses import dataclass, replace
from typing import Self

from sqs_broker.errors import ConfigurationError

#: Seconds a message may wait here for a free process of the pool.
LONGEST_WAIT = 900

#: Deliveries kept between our own limit and SQS's: redeliveries after a lost worker or lease, a
#: release and a pause count for SQS but are no failures.
SPARE_DELIVERIES = 3

#: Seconds that a lease must outlast the hard time limit: to kill the task and settle its message.
LEAST_MARGIN = 1


@dataclass(frozen=True)
class Policy:
    """When a message is retried, and when it is given up."""

    visibility_timeout: int = 60
    """Seconds of a lease."""
    max_attempts: int = 3
    """A failure in this delivery or a later one is final."""
    max_receive_count: int = 10
    """`maxReceiveCount` of the queue's redrive policy: SQS's backstop for what we cannot see."""
    backoff_base: float = 2.0
    """Seconds; the ceiling of the first retry's delay, doubled by each delivery."""
    heartbeat: bool = True
    """Whether leases are extended. Off, a task longer than its lease runs twice at a time."""
    cancel_on_lease_loss: bool = False
    """Whether a task is stopped whose lease was lost. Its redelivery runs either way."""
    backoff_max: int = 600
    """Seconds no retry waits longer than."""
    longest_wait: float = LONGEST_WAIT
    """Seconds after which a message that still waits here is handed back, so that another worker
    may have it, and a pool that is stuck keeps none."""

    def check(self, time_limit: float | None) -> None:
        """Raise ConfigurationError, with the two names, where the numbers contradict each other.

        `time_limit` is the longest hard time limit, in seconds, of any task that may run.
        """
        if self.max_attempts > self.max_receive_count - SPARE_DELIVERIES:
            raise ConfigurationError(
                f"max_attempts ({self.max_attempts}) must be at most max_receive_count "
                f"({self.max_receive_count}) less {SPARE_DELIVERIES}, or SQS dead-letters messages "
                "that have not failed so often. Raise max_receive_count, here and on the queue."
            )
        if time_limit is None:
            raise ConfigurationError(
                "task_time_limit is not set, so visibility_timeout cannot cover it. Set it."
            )
        if self.visibility_timeout < time_limit + LEAST_MARGIN:
            raise ConfigurationError(
                f"visibility_timeout ({self.visibility_timeout} s) must be longer than "
                f"task_time_limit ({time_limit} s), or SQS hands a running task's message to "
                "another worker. Raise the one or lower the other."
            )

    def limited_to(self, max_retries: int | None) -> Self:
        """The policy of a task that allows fewer retries than the queue."""
        if max_retries is None:
            return self
        return replace(self, max_attempts=min(self.max_attempts, max_retries + 1))

    def backoff(self, deliveries: int) -> int:
        """Whole seconds until the next delivery: exponential, with full jitter, at least one.

        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        doublings = min(max(deliveries - 1, 0), 32)
        ceiling = min(self.backoff_base * 2.0**doublings, float(self.backoff_max))
        return max(1, math.ceil(random.uniform(0, ceiling)))
