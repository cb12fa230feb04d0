"""Whether a message carries the payload that is stored, though the release that stored it may know
other fields.

A stored payload is compared in the terms of the worker that stored it: by the fields which that
worker knew, with the defaults which they had then. So a field that is new, or not known any more,
and a default that has changed make no conflict; another value does.

    known   those fields and defaults: `index=0 stock_id user_info user_info.gender=""`; `*` stands
            for each element of a list or a mapping
    hash    SHA-256 of their values, but for those that are the default
    given   SHA-256 of all that the producer gave: where it is equal, nothing else matters

The releases before store and compare `payload_hash` alone, which is version 1. It is kept beside,
as they make it, so that workers of both may run at once, and those of before again.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from enum import Enum
from functools import cache, lru_cache
from typing import Any, ClassVar, Self, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, ModelWrapValidatorHandler, PrivateAttr, model_validator
from pydantic.alias_generators import to_camel

#: Of what `record` makes. A later release's has a higher one, and version 1 beside it too.
VERSION = 2

#: Stands in a name for each element of a list or a mapping.
EACH = "*"

#: In place of a value: there is none. None is one.
NOTHING: Any = object()

#: The other spelling of a field. Names come from outside, so not all are remembered.
_camel = lru_cache(maxsize=1024)(to_camel)


class Comparison(Enum):
    """Whether a message carries the payload that is stored."""

    SAME = "same"
    DIFFERENT = "different"
    UNREADABLE = "unreadable"
    """Nobody can say: somebody else wrote what is stored, or edited it."""


class Given:
    """What a model was made of. It equals any other and shows nothing, so that it changes neither
    how models compare nor what is told of them."""

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # as Python has it where there is an __eq__

    def __repr__(self) -> str:
        return "Given(…)"


class Carrier(BaseModel):
    """A model that remembers what it was made of, for comparisons and for nothing else."""

    #: What `known_to` said of the model in the last release that stored version 1 alone. None for
    #: a model that came later: its version 1 is of all its fields, and decides nothing.
    version_1: ClassVar[str | None] = None

    _given: Given | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _remember(cls, given: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        made = read(given)
        if isinstance(given, dict):
            made._given = Given(dict(given))
        return made

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's. With other values the copy is not what was given."""
        copied = super().model_copy(update=update, deep=deep)
        if update:
            copied._given = None
        return copied


def record(message: Carrier) -> dict[str, Any]:
    """What to store of a message's payload as `payload`, beside `payload_hash`."""
    known = known_to(type(message))
    stored = {"version": VERSION, "hash": _digest(_in_terms_of(known, message)), "known": known}
    given = _digest_given(message)
    return stored if given is None else {**stored, "given": given}


def compare(stored: Mapping[str, Any], message: Carrier) -> Comparison:
    """Compare a message with a document as MongoDB has it; raises nothing, whatever it holds.

    Its `payload_hash` stands in it or in its `registration`. Its `payload` is what `record` made;
    where there is none, an earlier release stored it.
    """
    holder = stored.get("registration", stored)
    version_1 = holder.get("payload_hash") if isinstance(holder, Mapping) else None
    if not isinstance(version_1, str):
        return Comparison.UNREADABLE
    payload = stored.get("payload")
    if payload is None or _is_of_a_later_release(payload):
        return _verdict(version_1 == hash_of_version_1(message))
    try:
        return _verdict(_is_recorded(payload, message))
    except (LookupError, TypeError, ValueError):
        return Comparison.UNREADABLE


def hash_of_version_1(message: Carrier) -> str:
    """SHA-256, in hex, of the values of version 1, with the defaults filled in."""
    if message.version_1 is None:
        return _digest(message.model_dump(mode="json"))
    return _digest(_in_terms_of(message.version_1, message, is_filled=True))


def _verdict(is_same: bool) -> Comparison:
    return Comparison.SAME if is_same else Comparison.DIFFERENT


def _is_of_a_later_release(payload: Any) -> bool:
    version = payload.get("version") if isinstance(payload, Mapping) else None
    return isinstance(version, int) and version > VERSION


def _is_recorded(payload: Any, message: Carrier) -> bool:
    """Raises LookupError, TypeError or ValueError where `record` did not make the payload."""
    known, hash_ = payload["known"], payload["hash"]
    if not (isinstance(known, str) and isinstance(hash_, str)):
        raise TypeError("a payload's `known` and `hash` are text")
    given = _digest_given(message)
    is_as_given = given is not None and payload.get("given") == given
    return is_as_given or hash_ == _digest(_in_terms_of(known, message))


def _digest_given(message: Carrier) -> str | None:
    """The same for both spellings of a name, since each worker knows only those of its own fields.
    None where it is not known, or not JSON."""
    if message._given is None:
        return None
    fields = message._given.fields
    try:
        spelt = {_camel(name): value for name, value in fields.items()}
        return _digest(spelt) if len(spelt) == len(fields) else None
    except (TypeError, ValueError):
        return None


# What a model knows --------------------------------------------------------------------------


@cache
def known_to(model: type[BaseModel]) -> str:
    """The names of a model's fields, nested ones too, each with its default where it has one."""
    defaults: dict[str, set[str]] = {}
    for name, default in _names(model, "", ()):
        defaults.setdefault(name, set()).add(default)
    # The models of a union may disagree on a default: then there is none.
    return " ".join(
        name + (found.pop() if len(found) == 1 else "") for name, found in sorted(defaults.items())
    )


def _names(
    model: type[BaseModel], prefix: str, within: tuple[type, ...]
) -> Iterator[tuple[str, str]]:
    optional = {name for name, info in model.model_fields.items() if not info.is_required()}
    defaults = model.model_construct().model_dump(mode="json", include=optional, by_alias=False)
    for name, info in model.model_fields.items():
        yield prefix + name, f"={_one_word(defaults[name])}" if name in defaults else ""
        yield from _names_within(info.annotation, prefix + name, (*within, model))


def _names_within(
    annotation: Any, name: str, within: tuple[type, ...]
) -> Iterator[tuple[str, str]]:
    """Those of the models that a field may hold, itself or as its elements."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # A model within itself is compared whole from there on.
        if annotation not in within:
            yield from _names(annotation, f"{name}.", within)
        return
    origin = get_origin(annotation)
    has_elements = isinstance(origin, type) and issubclass(origin, Collection)
    for argument in get_args(annotation):
        yield from _names_within(argument, f"{name}.{EACH}" if has_elements else name, within)


def _one_word(default: Any) -> str:
    # Spaces are inside of strings only.
    return _ENCODER.encode(default).replace(" ", "\\u0020")


@dataclass
class _Place:
    """What is known of one field: its default, and the fields within it."""

    spelling: str = ""
    """Its name in the other spelling."""
    default: Any = NOTHING
    parts: dict[str, "_Place"] = field(default_factory=dict)


@lru_cache(maxsize=256)
def _places(known: str) -> _Place:
    """Raises ValueError where a default is no JSON."""
    root = _Place()
    for word in known.split(" "):
        name, has_default, default = word.partition("=")
        place = root
        for part in name.split("."):
            place = place.parts.setdefault(part, _Place(_camel(part)))
        if has_default:
            place.default = json.loads(default)
    return root


# What a message holds of it ------------------------------------------------------------------


def _in_terms_of(known: str, message: Carrier, *, is_filled: bool = False) -> Any:
    """The values of the known fields as plain JSON, without those that are the default, or filled
    in with them.

    A value is what the message's model has read of it; where that does not know the field, what
    the producer gave.
    """
    read = message.model_dump(mode="json", by_alias=False, exclude_unset=True)
    return _told(_places(known), read, message, is_filled)


def _told(place: _Place, read: Any, given: Any, is_filled: bool) -> Any:
    value = given if read is NOTHING else read
    if not place.parts or not isinstance(value, dict | list):
        return value
    if each := place.parts.get(EACH):
        return _told_of_each(each, value, given, is_filled)
    return _told_of_fields(place, read, given, is_filled) if isinstance(value, dict) else value


def _told_of_each(each: _Place, value: Any, given: Any, is_filled: bool) -> Any:
    if isinstance(value, dict):
        return {k: _told(each, v, _at(given, k), is_filled) for k, v in value.items()}
    return [_told(each, v, _at(given, n), is_filled) for n, v in enumerate(value)]


def _told_of_fields(place: _Place, read: Any, given: Any, is_filled: bool) -> dict[str, Any]:
    given = _fields_of(given)
    told = {}
    for name, part in place.parts.items():
        value = _at(read, name)
        if value is NOTHING or part.parts:
            theirs = given.get(part.spelling, given.get(name, NOTHING))
            value = _told(part, value, theirs, is_filled)
        if is_filled and value is NOTHING:
            value = part.default
        if value is not NOTHING and (is_filled or not _is_default(value, part)):
            told[name] = value
    return told


def _fields_of(given: Any) -> dict[str, Any]:
    """What the producer gave, by the names it gave them."""
    if isinstance(given, dict):
        return given
    return given._given.fields if isinstance(given, Carrier) and given._given else {}


def _at(content: Any, key: str | int) -> Any:
    if isinstance(content, dict):
        return content.get(key, NOTHING)
    if isinstance(content, list) and isinstance(key, int) and key < len(content):
        return content[key]
    return NOTHING


def _is_default(value: Any, place: _Place) -> bool:
    if type(value) is not type(place.default):
        return False  # JSON's 1 is neither true nor 1.0.
    if isinstance(value, dict | list):
        default = _told(place, place.default, NOTHING, is_filled=False)
        return _ENCODER.encode(value) == _ENCODER.encode(default)
    return bool(value == place.default)


# Hashes --------------------------------------------------------------------------------------


def _plain(value: object) -> str:
    """What Celery's own JSON can hold beyond JSON (kombu 5.7 utils/json.py)."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain
)


def _digest(content: Any) -> str:
    """SHA-256, in hex, of the one way to write this content."""
    return hashlib.sha256(_ENCODER.encode(content).encode("ascii")).hexdigest()
