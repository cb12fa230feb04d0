"""One call that lets leases last longer, and what SQS answers of each."""

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
    """What SQS answered, by delivery tag. What is in neither was not extended, and may still be."""

    until: dict[str, float] = field(default_factory=dict)
    """When the lease ends now, counted from when the call was sent, in monotonic seconds."""
    lost: set[str] = field(default_factory=set)
    """Those whose right to the message is gone."""


def extend(
    queue: Queue,
    wanted: Sequence[tuple[Delivery, int]],
    clock: Callable[[], float] = monotonic,
) -> Extension:
    """Ask for so many seconds from now for each delivery of one queue, ten at the most.

    Never raises: whatever went wrong with the call is logged, without its text.
    """
    asked_at = clock()
    errors = queue.change_visibility([(d.receipt_handle, seconds) for d, seconds in wanted])
    extension = Extension()
    for (delivery, seconds), error in zip(wanted, errors, strict=True):
        if error is None:
            extension.until[delivery.tag] = asked_at + seconds
        elif not error.is_of_entry:
            # Of the whole call: the heartbeat tries again before a lease ends.
            logger.warning(
                "Leases could not be extended (%s).",
                error.code,
                extra={"event": "lease.failed", "error": error.code, "count": len(wanted)},
            )
            break
        elif error.is_lost_lease:
            extension.lost.add(delivery.tag)
    return extension
