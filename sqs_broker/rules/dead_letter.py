"""The copy of a message for the dead-letter queue: original body and attributes, and the reason.

The reason is in one more attribute, `dead-letter`, as JSON. This module keeps SQS's rules for a
message, because no local server checks all of them: at most ten attributes, body and attributes
together within the size limit, only characters that XML allows.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
"""

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from sqs_broker.limits import MOST_ATTRIBUTES
from sqs_broker.rules.attempts import without_ours
from sqs_broker.rules.attributes import DEAD_LETTER, Attributes, size
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import DeadLetter

#: Most characters of a reason. A longer one is cut, so that it does not fill the message.
LONGEST_REASON = 1_000

#: Most characters that the name of an error is taken to have.
LONGEST_ERROR = 50


def attributes_of(
    delivery: Delivery, outcome: DeadLetter, task: str | None, id_: str | None, limit: int
) -> Attributes:
    """The attributes of the copy: the original ones and `dead-letter`.

    If the message has ten attributes already, the last one moves into `dead-letter` as `displaced`.
    If the copy is larger than `limit` bytes, the reason is shortened; if that is not enough,
    `dead-letter` is left out. The body is never cut.
    """
    kept = without_ours(delivery.attributes)
    note: dict[str, Any] = {
        "reason": outcome.reason[:LONGEST_REASON],
        "error": outcome.error,
        "task": task,
        "message_id": id_ or delivery.message_id,
        "deliveries": delivery.deliveries,
        "source_queue": delivery.queue,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    if len(kept) >= MOST_ATTRIBUTES:
        name = list(kept)[-1]
        note["displaced"] = {"name": name} | _as_json(kept.pop(name))
    while (excess := size(delivery.body, {**kept, DEAD_LETTER: _text(note)}) - limit) > 0:
        if not note["reason"]:
            return without_ours(delivery.attributes)
        note["reason"] = note["reason"][: -max(excess, 1)]
    return {**kept, DEAD_LETTER: _text(note)}


def has_room_for_note(delivery: Delivery, task: str | None, limit: int) -> bool:
    """Whether a note without a reason fits beside a dead letter that has none, as far as that is
    known afterwards: of the note, the name of the error is not."""
    outcome = DeadLetter("", "E" * LONGEST_ERROR)
    return DEAD_LETTER in attributes_of(delivery, outcome, task, None, limit)


def read_note(attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The content of `dead-letter`; None if there is none: SQS itself moved the message, without a
    reason."""
    try:
        note = json.loads(attributes.get(DEAD_LETTER, {}).get("StringValue", ""))
    except ValueError:
        return None
    return note if isinstance(note, dict) else None


def restored(attributes: Mapping[str, Mapping[str, Any]]) -> Attributes:
    """The attributes from before the message was dead-lettered: without those of the broker, and
    with the attribute that `dead-letter` displaced."""
    kept = without_ours(attributes)
    match (read_note(attributes) or {}).get("displaced"):
        case {"name": str(name), "DataType": str(kind), "base64": str(data)}:
            with suppress(ValueError):  # Another program wrote this attribute.
                kept[name] = {"DataType": kind, "BinaryValue": base64.b64decode(data)}
        case {"name": str(name), "DataType": str(kind), "StringValue": str(text)}:
            kept[name] = {"DataType": kind, "StringValue": text}
    return kept


def _text(note: Mapping[str, Any]) -> dict[str, str]:
    # ASCII only: SQS allows every character that this JSON can contain.
    return {"DataType": "String", "StringValue": json.dumps(note, ensure_ascii=True)}


def _as_json(attribute: Mapping[str, Any]) -> dict[str, Any]:
    if (data := attribute.get("BinaryValue")) is not None:
        return {"DataType": attribute["DataType"], "base64": base64.b64encode(data).decode()}
    return {"DataType": attribute["DataType"], "StringValue": attribute.get("StringValue", "")}
