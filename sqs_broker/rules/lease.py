"""A delivery of a message, and its lease: when it ends, and until when it may be extended."""

import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any

from sqs_broker.limits import LONGEST_VISIBILITY
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.policy import LONGEST_WAIT

#: Seconds for which a lease is still extended after the longest wait of its message. In this time
#: the message is released, or a pool process that was about to take it starts it.
WAIT_MARGIN = 30

#: Seconds for which the lease of a running task is still extended after its hard time limit.
LIMIT_MARGIN = 10


@dataclass(frozen=True)
class Delivery:
    """One receive of a message."""

    tag: str
    queue: str
    message_id: str
    """SQS's MessageId."""
    receipt_handle: str
    body: str
    attributes: Mapping[str, Mapping[str, Any]]
    """The message attributes, as SQS returned them."""
    count: int
    """ApproximateReceiveCount: how often SQS has delivered the message, this one included."""
    enqueued_at: datetime
    received_at: float
    """When the answer to the receive call arrived, in monotonic seconds."""
    waited: float = 0.0
    """Seconds that the receive call took. SQS delivered the message within this time."""

    @property
    def asked_at(self) -> float:
        """When the receive call was sent, in monotonic seconds. The lease cannot have begun
        earlier."""
        return self.received_at - self.waited


@dataclass
class Lease:
    """A delivery's right to its message, until `expires_at`; all times in monotonic seconds."""

    delivery: Delivery
    expires_at: float
    longest_wait: InitVar[float] = LONGEST_WAIT
    waits_until: float = field(init=False)
    """When the message is released if no pool process has taken it."""
    may_last_until: float = field(init=False)
    """The lease is never extended beyond this time."""
    started_at: float | None = None
    """When a pool process took the task."""
    job: Job | None = None
    """The job that the pool process runs, once it has taken the task."""
    is_promised: bool = False
    """Whether a pool process will take the task and can no longer be prevented from it."""

    def __post_init__(self, longest_wait: float) -> None:
        self.waits_until = self.delivery.received_at + longest_wait
        self.may_last_until = min(self.waits_until + WAIT_MARGIN, self._longest)

    @property
    def is_running(self) -> bool:
        """Whether a pool process has taken the task."""
        return self.started_at is not None

    @property
    def can_be_kept_back(self) -> bool:
        """Whether the task can still be prevented from starting."""
        return not (self.is_running or self.is_promised)

    def started(self, time_limit: float | None, now: float | None = None) -> None:
        """Record that the task started at `now`, in monotonic seconds; at this moment, if None.

        The task may run for `time_limit` seconds, but only until SQS's 12 hours are over."""
        self.started_at = monotonic() if now is None else now
        if time_limit is None:
            self.may_last_until = self._longest
        else:
            self.may_last_until = min(self.started_at + time_limit + LIMIT_MARGIN, self._longest)

    @property
    def _longest(self) -> float:
        return self.delivery.asked_at + LONGEST_VISIBILITY - 1


def longest_delay(delivery: Delivery, now: float) -> int:
    """Longest time, in whole seconds, that SQS can still hide a delivery's message: until 12 hours
    after the receive. Negative if these are over."""
    return LONGEST_VISIBILITY - math.ceil(now - delivery.asked_at) - 1
