"""One call that lets leases last longer, and what SQS answers of each."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from sqs_broker.rules.lease import Delivery
from sqs_broker.sqs.calls import bare, error_code

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

logger = logging.getLogger(__name__)

#: Codes by which SQS says that a receipt handle has lost its right.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
LOST_CODES = frozenset({"InvalidParameterValue", "MessageNotInflight", "ReceiptHandleIsInvalid"})

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


def extend(client: "SQSClient", url: str, wanted: Sequence[tuple[Delivery, int]]) -> Extension:
    """Ask for so many seconds from now for each delivery of one queue, ten at the most.

    Never raises: whatever went wrong with the call is logged, without its text.
    """
    asked_at = monotonic()
    try:
        answer = client.change_message_visibility_batch(
            QueueUrl=url,
            Entries=[
                {
                    "Id": str(number),
                    "ReceiptHandle": delivery.receipt_handle,
                    "VisibilityTimeout": seconds,
                }
                for number, (delivery, seconds) in enumerate(wanted)
            ],
        )
        failed = {int(entry["Id"]): bare(entry["Code"]) for entry in answer.get("Failed", ())}
    except Exception as exc:
        # Broad on purpose: whatever went wrong, the heartbeat tries again before a lease ends.
        logger.warning(
            "Leases could not be extended (%s).",
            error_code(exc),
            extra={"event": "lease.failed", "error": error_code(exc), "count": len(wanted)},
        )
        return Extension()
    extension = Extension()
    for number, (delivery, seconds) in enumerate(wanted):
        if number not in failed:
            extension.until[delivery.tag] = asked_at + seconds
        elif failed[number] in LOST_CODES:
            extension.lost.add(delivery.tag)
    return extension
