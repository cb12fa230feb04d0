"""A delivery of a message, and the lease it has: for how long, and how far it may be extended."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any

from sqs_broker.limits import LONGEST_VISIBILITY
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.policy import LONGEST_WAIT

#: Seconds beyond its longest wait for which the lease of a message is still extended: to hand it
#: back in, or for the process to start it that it was promised to at the last moment.
WAIT_MARGIN = 30

#: Seconds beyond the hard time limit of a running task for which its lease is still extended.
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
    """The message attributes, as SQS gave them."""
    count: int
    """ApproximateReceiveCount: how often SQS has delivered the message, this one included."""
    enqueued_at: datetime
    received_at: float
    """Monotonic seconds when the answer came that brought it."""
    waited: float = 0.0
    """Seconds for which the receive call was open: SQS handed the message out within them."""

    @property
    def asked_at(self) -> float:
        """Monotonic seconds when the receive call was sent: the lease began no earlier."""
        return self.received_at - self.waited


@dataclass
class Lease:
    """A delivery's right to its message, until `expires_at`; all times in monotonic seconds."""

    delivery: Delivery
    expires_at: float
    longest_wait: InitVar[float] = LONGEST_WAIT
    waits_until: float = field(init=False)
    """When it is handed back, where no process of the pool has taken it."""
    may_last_until: float = field(init=False)
    """No extension reaches further."""
    started_at: float | None = None
    """When a process of the pool took the task."""
    job: Job | None = None
    """What the process runs, once it has taken the task."""
    is_promised: bool = False
    """Whether a process of the pool will take it, and cannot be kept from it any more."""

    def __post_init__(self, longest_wait: float) -> None:
        self.waits_until = self.delivery.received_at + longest_wait
        self.may_last_until = min(self.waits_until + WAIT_MARGIN, self._longest)

    @property
    def is_running(self) -> bool:
        """Whether a process of the pool has taken the task."""
        return self.started_at is not None

    @property
    def can_be_kept_back(self) -> bool:
        """Whether the task can still be kept from starting."""
        return not (self.is_running or self.is_promised)

    def started(self, time_limit: float | None) -> None:
        """The task runs now; it may for `time_limit` seconds, or until SQS's 12 hours are over."""
        self.started_at = monotonic()
        if time_limit is None:
            self.may_last_until = self._longest
        else:
            self.may_last_until = min(self.started_at + time_limit + LIMIT_MARGIN, self._longest)

    @property
    def _longest(self) -> float:
        return self.delivery.asked_at + LONGEST_VISIBILITY - 1
