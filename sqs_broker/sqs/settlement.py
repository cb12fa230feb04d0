"""What SQS is to be told of one delivery."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from sqs_broker.limits import LONGEST_VISIBILITY
from sqs_broker.observers import log
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import Outcome, Released, Retry


@dataclass(frozen=True)
class Settlement:
    """One delivery, what becomes of it, and until when that can still be told."""

    delivery: Delivery
    outcome: Outcome
    task: str | None
    id: str | None
    expires_at: float
    not_before: float = 0.0


def told_visibility(settlement: Settlement, now: float) -> int:
    """The visibility; said where it is shorter than the task has asked for."""
    visibility = visibility_of(settlement, now)
    outcome = settlement.outcome
    if isinstance(outcome, Retry) and visibility < outcome.delay:
        log.clamped(settlement.delivery, visibility, settlement.task, settlement.id)
    return visibility


def visibility_of(settlement: Settlement, now: float) -> int:
    """Seconds, within what is left of SQS's 12 hours from the receive."""
    if not isinstance(settlement.outcome, Retry | Released):
        return 0
    age = math.ceil(now - settlement.delivery.asked_at)
    return max(0, min(settlement.outcome.delay, LONGEST_VISIBILITY - age - 1))


def by_queue(settlements: Iterable[Settlement]) -> Iterable[tuple[str, list[Settlement]]]:
    """The settlements of each queue: a call is for one."""
    ordered = sorted(settlements, key=lambda s: s.delivery.queue)
    return ((q, list(group)) for q, group in groupby(ordered, lambda s: s.delivery.queue))
