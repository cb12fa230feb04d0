"""Reads the event that Lambda makes of SQS messages. Pure functions.

https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqs_broker.rules.lease import Delivery, age_of

#: Longest time in seconds that Lambda collects messages before it calls the function. So a message
#: may have been received this much earlier.
#: https://docs.aws.amazon.com/lambda/latest/api/API_CreateEventSourceMapping.html
LONGEST_WINDOW = 300

#: The end of the name of each FIFO queue.
FIFO = ".fifo"


class MalformedEvent(Exception):
    """The event, or a record of it, is not one of SQS. The text contains nothing of it."""


@dataclass(frozen=True)
class Unreadable:
    """A record that is not an SQS message."""

    why: str
    """What is wrong, without anything of the record."""
    message_id: str | None
    """SQS's MessageId; None if the record has none, so that it cannot be returned to Lambda."""


def read(event: Any, received_at: float, now: float) -> list[Delivery | Unreadable]:
    """The records of an event, in its order. `received_at`: this moment in monotonic seconds;
    `now`: this moment in seconds since 1970.

    Raises MalformedEvent if the event has no list of records.
    """
    records = event.get("Records") if isinstance(event, Mapping) else None
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise MalformedEvent("The event has no list `Records`, so it is not an event of SQS.")
    return [_read(record, place, received_at, now) for place, record in enumerate(records)]


def _read(record: Any, place: int, received_at: float, now: float) -> Delivery | Unreadable:
    try:
        return _delivery(record, place, received_at, now)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        id_ = record.get("messageId") if isinstance(record, Mapping) else None
        is_id = isinstance(id_, str) and bool(id_)
        missing = exc.args[0] if isinstance(exc, KeyError) and exc.args[0] in _KEYS else None
        why = f"it has no {missing}" if missing else f"it cannot be read ({type(exc).__name__})"
        return Unreadable(why, id_ if is_id else None)


#: The keys that each record has.
_KEYS = (
    "messageId", "receiptHandle", "body", "attributes", "ApproximateReceiveCount", "SentTimestamp",
    "eventSourceARN", "MessageGroupId", "dataType",
)  # fmt: skip


def _delivery(record: Mapping[str, Any], place: int, received_at: float, now: float) -> Delivery:
    system = record["attributes"]
    queue = _text(record, "eventSourceARN").rpartition(":")[2]
    sent_at = datetime.fromtimestamp(int(system["SentTimestamp"]) / 1000, UTC)
    # A local server may leave it out.
    first = int(system.get("ApproximateFirstReceiveTimestamp", system["SentTimestamp"])) / 1000
    attributes = {
        name: _attribute(value) for name, value in (record.get("messageAttributes") or {}).items()
    }
    is_fifo = queue.endswith(FIFO)
    return Delivery(
        tag=str(place),
        queue=queue,
        message_id=_text(record, "messageId"),
        receipt_handle=_text(record, "receiptHandle"),
        body=_text(record, "body"),
        attributes=attributes,
        count=int(system["ApproximateReceiveCount"]),
        enqueued_at=sent_at,
        received_at=received_at,
        waited=LONGEST_WINDOW,
        first_received_at=first,
        age=age_of(attributes, first, now),
        group=_text(system, "MessageGroupId") if is_fifo else None,
        fair_group=None if is_fifo else system.get("MessageGroupId"),
        trace_header=system.get("AWSTraceHeader"),
    )


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _attribute(given: Mapping[str, Any]) -> dict[str, Any]:
    """The attribute as SendMessage takes it. Lambda spells its keys with a small first letter."""
    attribute: dict[str, Any] = {"DataType": _text(given, "dataType")}
    if given.get("binaryValue") is not None:
        attribute["BinaryValue"] = base64.b64decode(given["binaryValue"], validate=True)
    elif given.get("stringValue") is not None:
        attribute["StringValue"] = given["stringValue"]
    return attribute
