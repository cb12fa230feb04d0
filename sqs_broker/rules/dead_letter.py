"""The copy that goes to the dead-letter queue: original body, original attributes, and why.

The reason is one JSON attribute, `dead-letter`. SQS's own rules for a message are kept here, since
no local server checks them all: at most ten attributes, body and attributes together within the
limit, characters that XML allows.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
"""

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from sqs_broker.limits import MOST_ATTRIBUTES
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import DeadLetter

ATTRIBUTE = "dead-letter"

#: Characters of a reason; more is cut, so that one long error does not fill the message.
LONGEST_REASON = 1_000

Attributes = dict[str, Mapping[str, Any]]


def attributes_of(
    delivery: Delivery, outcome: DeadLetter, task: str | None, id_: str | None, limit: int
) -> Attributes:
    """The attributes of the copy: the original ones and `dead-letter`.

    Where ten are there already, the last joins `dead-letter` under `displaced`. Where `limit`
    bytes leave too little room, the reason is shortened, then the note is left off: the body is
    never cut.
    """
    kept = _without_note(delivery)
    note: dict[str, Any] = {
        "reason": outcome.reason[:LONGEST_REASON],
        "error": outcome.error,
        "task": task,
        "message_id": id_ or delivery.message_id,
        "deliveries": delivery.count,
        "source_queue": delivery.queue,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    if len(kept) >= MOST_ATTRIBUTES:
        name = list(kept)[-1]
        note["displaced"] = {"name": name} | _as_json(kept.pop(name))
    while (excess := size(delivery.body, {**kept, ATTRIBUTE: _text(note)}) - limit) > 0:
        if not note["reason"]:
            return _without_note(delivery)
        note["reason"] = note["reason"][: -max(excess, 1)]
    return {**kept, ATTRIBUTE: _text(note)}


def size(body: str, attributes: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes of a message as SQS counts them: body, and name, type and value of each attribute."""
    total = len(body.encode("utf-8", "surrogatepass"))
    for name, value in attributes.items():
        data = value.get("BinaryValue")
        if data is None:
            data = value.get("StringValue", "").encode("utf-8", "surrogatepass")
        total += len(name.encode()) + len(value["DataType"].encode()) + len(data)
    return total


def read_note(attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The note on a dead letter; None where SQS moved it itself, which gives no reason."""
    try:
        note = json.loads(attributes.get(ATTRIBUTE, {}).get("StringValue", ""))
    except ValueError:
        return None
    return note if isinstance(note, dict) else None


def restored(attributes: Mapping[str, Mapping[str, Any]]) -> Attributes:
    """The attributes as they were before the message became a dead letter: without the note, and
    with what it displaced."""
    kept = {name: value for name, value in attributes.items() if name != ATTRIBUTE}
    match (read_note(attributes) or {}).get("displaced"):
        case {"name": str(name), "DataType": str(kind), "base64": str(data)}:
            with suppress(ValueError):  # Not ours, then.
                kept[name] = {"DataType": kind, "BinaryValue": base64.b64decode(data)}
        case {"name": str(name), "DataType": str(kind), "StringValue": str(text)}:
            kept[name] = {"DataType": kind, "StringValue": text}
    return kept


def _without_note(delivery: Delivery) -> Attributes:
    """The original attributes, but for the note of an earlier time as a dead letter."""
    return {name: value for name, value in delivery.attributes.items() if name != ATTRIBUTE}


def _text(note: Mapping[str, Any]) -> dict[str, str]:
    # ASCII only: every character it can hold is one that SQS allows.
    return {"DataType": "String", "StringValue": json.dumps(note, ensure_ascii=True)}


def _as_json(attribute: Mapping[str, Any]) -> dict[str, Any]:
    if (data := attribute.get("BinaryValue")) is not None:
        return {"DataType": attribute["DataType"], "base64": base64.b64encode(data).decode()}
    return {"DataType": attribute["DataType"], "StringValue": attribute.get("StringValue", "")}
