"""Dead letters in a file: one JSON object per line, from which each message can be made again.

    {"version": 1, "dead_letter_queue": "jobs-dlq", "queue": "jobs", "id": "7f0c", …, "body": "…",
     "attributes": {"a": {"DataType": "Binary", "base64": "AAE="}}, "group": "shop-7"}

The file has the bodies, and with them personal data, so only its owner can read it.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from sqs_broker.options import Options
from sqs_broker.rules import dead_letter
from sqs_broker.rules.attributes import DEAD_LETTER, Attributes
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import DeadLetter
from sqs_broker.sqs.requests import TRACE_HEADER, Outgoing, name_of
from sqs_broker.tools.dead_letters import MOVED_BY_SQS, DeadLetterMessage

VERSION = 1


class BadLine(ValueError):
    """A line of a file from which no message can be made. The text says why, without its values."""


@dataclass(frozen=True)
class Letter:
    """A line of a file."""

    dead_letter_queue: str
    """The name of its dead-letter queue."""
    queue: str | None
    id: str
    body: str
    attributes: Attributes
    group: str | None
    trace_header: str | None = None
    """X-Ray's tracing header, which is a system attribute."""

    def outgoing(self, options: Options, dead_letter_url: str) -> Outgoing:
        """The message, as it was in the dead-letter queue.

        SQS lets nobody say from which queue it moved a message. So if several queues share the
        dead-letter queue, a message without a note gets one that says it.
        """
        sharing = [q for q in options.queues.values() if q.dead_letter_url == dead_letter_url]
        attributes = self.attributes
        if self.queue in options.queues and len(sharing) > 1 and DEAD_LETTER not in attributes:
            attributes = dead_letter.attributes_of(
                self._delivery(str(self.queue)),
                DeadLetter(MOVED_BY_SQS, ""),
                None,
                self.id,
                options.max_message_bytes,
            )
        header = self.trace_header
        return Outgoing(self.body, attributes, group=self.group, trace_header=header)

    def _delivery(self, queue: str) -> Delivery:
        now = datetime.now(UTC)
        return Delivery("", queue, self.id, "", self.body, self.attributes, 1, now, monotonic())


def line_of(message: DeadLetterMessage, dead_letter_url: str) -> str:
    """The line of a message, without its end."""
    delivery = message.delivery
    content = {
        "version": VERSION,
        "dead_letter_queue": name_of(dead_letter_url),
        "queue": message.queue,
        "id": message.id,
        "sqs_message_id": delivery.message_id,
        "task": message.task,
        "error": message.error,
        "reason": message.reason,
        "at": message.at,
        "group": delivery.fair_group,
        "attributes": {name: _as_json(value) for name, value in delivery.attributes.items()},
        "system": dict(message.system),
        "body": delivery.body,
    }
    # ASCII only: a terminal executes no control character, and a lone surrogate stays what it is.
    return json.dumps(content, ensure_ascii=True)


def letters_in(path: Path) -> Iterator[Letter]:
    """The lines of a file, one by one. Raises BadLine with the number of a line, and OSError."""
    with path.open(encoding="ascii", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield letter_in(line)
            except BadLine as exc:
                raise BadLine(f"line {number}: {exc}") from None


def letter_in(line: str) -> Letter:
    """Read one line. Raises BadLine."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise BadLine("it is not JSON; the file may have been cut") from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise BadLine(f"it is not a dead letter of version {VERSION}")
    system = content.get("system") or {}
    try:
        return Letter(
            dead_letter_queue=_text(content, "dead_letter_queue"),
            queue=None if content.get("queue") is None else _text(content, "queue"),
            id=_text(content, "id"),
            body=_text(content, "body"),
            attributes={name: _attribute(v) for name, v in content["attributes"].items()},
            group=None if content.get("group") is None else _text(content, "group"),
            trace_header=_text(system, TRACE_HEADER) if TRACE_HEADER in system else None,
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise BadLine("a field is missing or has another form") from None


def _text(content: Mapping[str, Any], name: str) -> str:
    if not isinstance(content[name], str):
        raise TypeError(name)
    text: str = content[name]
    return text


def _as_json(attribute: Mapping[str, Any]) -> dict[str, str]:
    kind = {"DataType": str(attribute["DataType"])}
    if (data := attribute.get("BinaryValue")) is not None:
        return kind | {"base64": base64.b64encode(data).decode()}
    return kind | {"StringValue": str(attribute.get("StringValue", ""))}


def _attribute(content: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = {"DataType": _text(content, "DataType")}
    if "base64" in content:
        data = base64.b64decode(_text(content, "base64"), validate=True)
        return kind | {"BinaryValue": data}
    return kind | {"StringValue": _text(content, "StringValue")}
