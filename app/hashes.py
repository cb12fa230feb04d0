"""The hash and the record of a message for a new document, from one pass over its values.

app/payload.py says what they are, and computes them for any message. Here a message is taken if all
of this is true. Any other one is left to app/payload.py.

    its model    has the fields of its `version_1` and no others; each is a single value, or a
                 required model like this one; nothing changes how pydantic dumps a value
    its values   are exactly of the types of their fields, which are in `_TEXTS`; those that differ
                 from the default were given
"""

import json.encoder
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any

from pydantic import BaseModel

from app.payload import (
    NOTHING,
    Carrier,
    Place,
    digest_of_text,
    hash_of_version_1,
    is_version_1,
    known_to,
    places,
    record,
    recorded,
    types_in,
)

_text = json.encoder.encode_basestring_ascii

#: The canonical JSON of a single value, by its type. Of other types, JSON and pydantic have more to
#: say: for example of a float that is not finite.
_TEXTS: Mapping[type, Callable[[Any], str]] = {
    str: _text,
    int: int.__repr__,
    bool: {True: "true", False: "false"}.__getitem__,
    NoneType: {None: "null"}.__getitem__,
}


#: In the schema of a model: what changes how a value is dumped.
_SERIALIZERS = frozenset({"serialization", "serialization_exclude", "serialization_exclude_if"})


@dataclass(frozen=True, slots=True)
class _Part:
    """A field of a model."""

    name: str
    key: str
    """Its name in JSON, with the colon."""
    texts: Mapping[type, Callable[[Any], str]]
    """What writes its value, for each type that it may have."""
    default: Any
    model: type[BaseModel] | None
    parts: "tuple[_Part, ...]"
    """The fields of `model`, in the order of canonical JSON."""


class _NotSimple(Exception):
    """The values of a message must be read as app/payload.py does."""


def hash_and_record(message: Carrier) -> tuple[str, dict[str, Any]]:
    """The results of `hash_of_version_1` and `record` for this message."""
    parts = _parts(type(message))
    if parts is None:
        return hash_of_version_1(message), record(message)
    try:
        filled, without_defaults = _texts(parts, message)
    except _NotSimple:
        return hash_of_version_1(message), record(message)
    return digest_of_text(filled), recorded(message, digest_of_text(without_defaults))


def _texts(parts: tuple[_Part, ...], message: Any) -> tuple[str, str]:
    """The canonical JSON of all values, and of those that differ from the default."""
    values, given = vars(message), message.__pydantic_fields_set__
    filled: list[str] = []
    without_defaults: list[str] = []
    for part in parts:
        name, value = part.name, values.get(part.name, NOTHING)
        kind = type(value)
        if (write := part.texts.get(kind)) is not None:
            filled.append(text := part.key + write(value))
            if kind is type(part.default) and value == part.default:
                continue
            without_defaults.append(text)
        elif kind is part.model:
            inner, inner_without = _texts(part.parts, value)
            filled.append(part.key + inner)
            without_defaults.append(part.key + inner_without)
        else:
            raise _NotSimple
        if name not in given:
            raise _NotSimple
    return f"{{{','.join(filled)}}}", f"{{{','.join(without_defaults)}}}"


@cache
def _parts(model: type[Carrier]) -> tuple[_Part, ...] | None:
    """The fields of a model whose messages can be simple."""
    if not is_version_1(model) or _has_serializer(model.__pydantic_core_schema__):
        return None
    return _parts_within(model, places(known_to(model)))


def _parts_within(model: type[BaseModel], place: Place) -> tuple[_Part, ...] | None:
    if model.model_config.get("extra") == "allow":
        return None
    found = []
    for name, known in sorted(place.parts.items()):
        annotation: Any = model.model_fields[name].annotation
        texts = {kind: _TEXTS[kind] for kind in types_in(annotation) if kind in _TEXTS}
        inner = annotation if known.parts else None
        within = _parts_within(inner, known) if inner else ()
        if within is None or (inner and known.default is not NOTHING):
            return None
        found.append(_Part(name, f"{_text(name)}:", texts, known.default, inner, within))
    return tuple(found)


def _has_serializer(schema: Any) -> bool:
    """Whether something else than pydantic dumps a value, by the schema of a model:
    https://docs.pydantic.dev/latest/api/pydantic_core_schema/"""
    if isinstance(schema, dict):
        return not _SERIALIZERS.isdisjoint(schema) or any(map(_has_serializer, schema.values()))
    return isinstance(schema, list | tuple) and any(map(_has_serializer, schema))
