"""The attributes of a message: the two that the broker adds, and the size of all."""

from collections.abc import Mapping
from typing import Any

Attributes = dict[str, Mapping[str, Any]]

#: Says why a message was dead-lettered (rules/dead_letter.py).
DEAD_LETTER = "dead-letter"

#: Says what a copy carries of the messages that it replaces (rules/attempts.py).
ATTEMPTS = "celery-attempts"


def size(body: str, attributes: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes of a message as SQS counts them: body, and each attribute's name, type and value."""
    total = len(body.encode("utf-8", "surrogatepass"))
    for name, value in attributes.items():
        data = value.get("BinaryValue")
        if data is None:
            data = value.get("StringValue", "").encode("utf-8", "surrogatepass")
        total += len(name.encode()) + len(value["DataType"].encode()) + len(data)
    return total
