"""Remembers the shapes of envelopes that were read, so that most messages need no check by name.

A shape is the name and the type of each field of an envelope, of its headers and of its properties.
Producers write few of them. envelope.py asks most fields for no more than a type. So what it has
accepted once, it accepts in each envelope of the same shape, and the rest follows from the names:
which fields are missing, and which headers the task gets.

    remembered      what envelope.py has accepted, if each field that is asked for more than a type
                    is null, or one that `read` looks at
    looked at       `read` asks these fields for the same as envelope.py does, in each envelope: the
                    task's name, the id, the time limits, the content type, and the encodings
    anything else   `read` returns None. Then envelope.py decides, and says what is wrong
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqs_broker.rules.envelope import (
    ENCODINGS,
    ENVELOPE,
    HEADERS,
    JSON_TYPE,
    LONGEST_ID,
    PROPERTIES,
    UTF_8,
    Wrong,
    time_limits,
)

#: Most shapes that are remembered. If there are more, all are forgotten.
MOST = 256

#: Most characters of all names in a shape that is remembered.
LONGEST = 4096

#: The fields that `read` looks at.
_LOOKED_AT = frozenset(
    {"headers", "properties", "task", "id", "timelimit", "content-type", "content-encoding",
     "body_encoding"}
)  # fmt: skip

#: Those of the headers and the properties that must be null in a shape.
_NULL_HEADERS = HEADERS.asked_for_more - _LOOKED_AT
_NULL_PROPERTIES = PROPERTIES.asked_for_more - _LOOKED_AT
assert ENVELOPE.asked_for_more <= _LOOKED_AT

NO_LIMITS = [None, None]


@dataclass(frozen=True)
class Fields:
    """What follows from the names of the headers and properties of an envelope."""

    missing: Mapping[str, Any]
    """The headers that are missing, with their defaults."""
    dropped: tuple[str, ...]
    """The headers that the task does not get."""
    custom: tuple[str, ...]
    """The headers that are the producer's own."""
    passed_on: tuple[str, ...]
    """The properties that the task gets."""


class Shapes:
    """The shapes of one place that reads envelopes. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Fields] = {}

    def read(self, content: dict[str, Any]) -> Fields | None:
        """What follows from the names in this envelope; None if it must be checked."""
        sent, properties = content.get("headers"), content["properties"]
        if type(sent) is not dict or type(properties) is not dict:
            return None
        fields = self._known.get(_shape(content, sent, properties))
        if fields is None:
            return None
        task, id_, limits = sent["task"], sent["id"], sent.get("timelimit")
        if (
            content["content-type"] == JSON_TYPE
            and content["content-encoding"] == UTF_8
            and 0 < len(task) <= LONGEST_ID
            and 0 < len(id_) <= LONGEST_ID
            # Others may be ones that cannot be encoded.
            and task.isascii()
            and id_.isascii()
            and properties.get("body_encoding") in (None, *ENCODINGS)
            and (limits is None or limits == NO_LIMITS or _are_limits(limits))
        ):
            return fields
        return None

    def remember(self, content: dict[str, Any], fields: Fields) -> None:
        """Remember the shape of an envelope that envelope.py accepts as it is."""
        sent, properties = content["headers"], content["properties"]
        if (
            all(sent.get(name) is None for name in _NULL_HEADERS)
            and all(properties.get(name) is None for name in _NULL_PROPERTIES)
            and sum(map(len, (*content, *sent, *properties))) <= LONGEST
        ):
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[_shape(content, sent, properties)] = fields


def _shape(
    content: dict[str, Any], sent: dict[str, Any], properties: dict[str, Any]
) -> tuple[Any, ...]:
    # None is no name, so it says where the next names begin.
    return (
        *content, None, *sent, None, *properties, None,
        *map(type, content.values()), *map(type, sent.values()), *map(type, properties.values()),
    )  # fmt: skip


def _are_limits(value: Any) -> bool:
    try:
        time_limits(value)
    except Wrong:
        return False
    return True
