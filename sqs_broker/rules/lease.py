"""A delivery of a message, and its lease: when it ends, and until when it may be extended."""

import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from sqs_broker.limits import LONGEST_VISIBILITY
from sqs_broker.rules.attempts import Carried, Record, carried_in
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.policy import LONGEST_WAIT

#: Seconds for which a lease is still extended after the longest wait of its message. In this time
#: the message is released, or a pool process that was about to take it starts it.
WAIT_MARGIN = 30

#: Seconds that a run has to end after its hard time limit. A run that has not ended by then hangs.
LIMIT_MARGIN = 10

#: Seconds for which the lease of a run that hangs is still extended. In this time its delivery is
#: ended as a failed attempt.
HUNG_MARGIN = 30


@dataclass
class Delivery:
    """One receive of a message. Nothing changes it.

    It is not frozen, because each message is made into one: to set the fields of a frozen dataclass
    takes twice as long."""

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
    record: Record | None = None
    """What is recorded about this message. None if nothing is recorded at all: then each earlier
    delivery counts as a failed run."""
    first_received_at: float | None = None
    """When SQS first delivered this message, by its own clock, in seconds since 1970."""
    age: float = 0.0
    """Seconds from then to this receive. If the message is a copy, from the first receive of the
    first message."""
    group: str | None = None
    """The message group whose order must be kept; None in a standard queue."""
    fair_group: str | None = None
    """The message group in a standard queue, which has no order. Copies keep it."""
    trace_header: str | None = None
    """X-Ray's tracing header, which SQS keeps beside the message as `AWSTraceHeader`."""

    carried: Carried = field(init=False, compare=False)
    """What the message says about those that it replaces."""
    deliveries: int = field(init=False, compare=False)
    """How often SQS has delivered the message, this delivery and those of the messages that it
    replaces included."""
    first_sent: datetime = field(init=False, compare=False)
    """When the producer sent the message, in UTC; if this is a copy, the first message. A time
    after SQS's own is not believed."""
    failed: int = field(init=False, compare=False)
    """How many earlier runs failed, as far as is known."""

    def __post_init__(self) -> None:
        self.carried = carried = carried_in(self.attributes)
        self.deliveries = carried.deliveries + self.count
        earlier = self.count - 1 if self.record is None else _before(self.count, self.record.failed)
        self.failed = carried.failed + earlier
        self.first_sent = self._first_sent()

    def _first_sent(self) -> datetime:
        sent_at = self.enqueued_at
        if sent_at.tzinfo is not UTC:
            sent_at = sent_at.astimezone(UTC)
        if self.carried.sent is not None:
            with suppress(ValueError, OverflowError, OSError):
                return min(datetime.fromtimestamp(self.carried.sent, UTC), sent_at)
        return sent_at

    @property
    def attempt(self) -> int:
        """The number of this attempt: one more than the runs that failed before."""
        return self.failed + 1

    @property
    def may_share(self) -> bool:
        """Whether the message may run together with others: no earlier run failed, and it is known
        how each earlier delivery ended."""
        return self.failed == 0 and self._released >= self.deliveries - 1

    @property
    def _released(self) -> int:
        recorded = _before(self.count, self.record.released) if self.record else 0
        return self.carried.released + recorded

    def passed_on(self, *, has_failed: bool, due: float | None) -> Carried:
        """What a copy of the message must carry. `has_failed`: whether the run of this delivery
        failed. `due`: when the copy may run, in seconds since 1970."""
        # Without a record it is not known whether the earlier deliveries failed.
        is_known = self.record is not None or has_failed
        return Carried(
            failed=(self.failed if is_known else self.carried.failed) + has_failed,
            released=self._released + (not has_failed),
            deliveries=self.deliveries,
            first=_earliest(self.carried.first, self.first_received_at),
            due=due,
            id=self.carried.id or self.message_id,
            sent=self.first_sent.timestamp(),
        )

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
    limit_at: float | None = None
    """When the run reaches its hard time limit. None if it has no limit, or if its end is known."""
    job: Job | None = None
    """The job that the pool process runs, once it has taken the task."""
    is_promised: bool = False
    """Whether a pool process will take the task and can no longer be prevented from it."""
    facts: Any = field(default=None, compare=False, repr=False)
    """What observers got last about the message: its Facts, which it has again if nothing
    has changed."""

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
            self.limit_at = self.started_at + time_limit
            self.may_last_until = min(self.limit_at + LIMIT_MARGIN + HUNG_MARGIN, self._longest)

    def overrun(self, now: float) -> float:
        """Seconds that the task has run beyond its hard time limit; negative before the limit."""
        return -math.inf if self.limit_at is None else now - self.limit_at

    @property
    def _longest(self) -> float:
        return self.delivery.asked_at + LONGEST_VISIBILITY - 1


def age_of(
    attributes: Mapping[str, Mapping[str, Any]], first_received_at: float, now: float
) -> float:
    """Seconds from the first receive of a message until now; both in seconds since 1970. If the
    message is a copy, from the first receive of the first message."""
    # What a copy carries cannot be later than its own first receive.
    first = (carried_in(attributes).first if attributes else None) or first_received_at
    return max(now - min(first, first_received_at), 0.0)


def _before(count: int, deliveries: Collection[int]) -> int:
    """How many of these deliveries came before the one with this number."""
    return sum(number < count for number in deliveries) if deliveries else 0


def _earliest(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)


def longest_delay(delivery: Delivery, now: float) -> int:
    """Longest time, in whole seconds, that SQS can still hide a delivery's message: until 12 hours
    after the receive. Negative if these are over."""
    return LONGEST_VISIBILITY - math.ceil(now - delivery.asked_at) - 1
