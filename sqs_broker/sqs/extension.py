"""Extends leases with one call, and interprets the answer for each of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from sqs_broker.rules.lease import Delivery
from sqs_broker.sqs.queue import Queue

logger = logging.getLogger(__name__)

#: Why a lease was lost.
REFUSED = "SQS refused its receipt handle"
OVER = "its time ran out"


@dataclass
class Extension:
    """SQS's answer, by delivery tag. A delivery in neither field was not extended, but can still
    be."""

    until: dict[str, float] = field(default_factory=dict)
    """The new end of each lease, counted from the start of the call, in monotonic seconds."""
    lost: set[str] = field(default_factory=set)
    """Deliveries whose lease is lost."""


def extend(
    queue: Queue,
    wanted: Sequence[tuple[Delivery, int]],
    clock: Callable[[], float] = monotonic,
) -> Extension:
    """Extend each delivery's lease by the given seconds from now: at most ten, all of one queue.

    Never raises. An error of the call is logged without its text.
    """
    asked_at = clock()
    errors = queue.change_visibility([(d.receipt_handle, seconds) for d, seconds in wanted])
    extension = Extension()
    for (delivery, seconds), error in zip(wanted, errors, strict=True):
        if error is None:
            extension.until[delivery.tag] = asked_at + seconds
        elif not error.is_of_entry:
            # The whole call failed. The heartbeat tries again before a lease ends.
            logger.warning(
                "Leases could not be extended (%s).",
                error.code,
                extra={"event": "lease.failed", "error": error.code, "count": len(wanted)},
            )
            break
        elif error.is_lost_lease:
            extension.lost.add(delivery.tag)
    return extension
