"""Compares a message with a stored payload, although another release may have stored it.

The comparison uses only the fields that the storing worker knew, with the defaults that they had
then. So a new field, a removed field or a changed default does not cause a conflict, but another
value does. Stored are:

    known   the fields and their defaults: `index=0 stock_id user_info user_info.gender=""`; `*`
            means each element of a list or a mapping
    hash    SHA-256 of their values, without values that equal the default
    given   SHA-256 of all that the producer sent: if it is equal, the payloads are the same

Earlier releases store and compare only `payload_hash`, which is version 1. It is still stored in
their form, so that workers of both releases can run together, and a rollback is possible.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from enum import Enum
from functools import cache, lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, ModelWrapValidatorHandler, RootModel, model_validator
from pydantic.alias_generators import to_camel

#: The version of the format of `record`. A later release has a higher one, and also stores version
#: 1.
VERSION = 2

#: In a name: each element of a list or a mapping.
EACH = "*"

#: Means that there is no value. (None is a value.)
NOTHING: Any = object()

#: A union of types, which `isinstance` accepts too, would be created for each call.
_CONTAINERS = (dict, list)

#: The camel-case spelling of a field. The cache is limited, because names come from outside.
_camel = lru_cache(maxsize=1024)(to_camel)


class Comparison(Enum):
    """Whether a message has the same payload as the stored one."""

    SAME = "same"
    DIFFERENT = "different"
    UNREADABLE = "unreadable"
    """Unknown: another program wrote the stored payload, or it was edited."""


class Given:
    """The input of a model. It is equal to any other Given and its repr shows nothing, so it does
    not change how models compare or print."""

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # Python's default for a class with __eq__

    def __repr__(self) -> str:
        return "Given(…)"


class Carrier(BaseModel):
    """A model that keeps its input, only for comparisons."""

    #: The result of `known_to` for the model in the last release that stored only version 1. None
    #: for a newer model: its version 1 covers all its fields and is not used to compare.
    version_1: ClassVar[str | None] = None

    #: The input, in the instance's `__dict__`, as functools.cached_property does it: a private
    #: attribute of pydantic would take more time than all of the validation.
    _given: ClassVar[Given | None] = None

    @model_validator(mode="wrap")
    @classmethod
    def _keep_input(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        model = validate(given)
        if isinstance(given, dict):
            vars(model)["_given"] = Given(dict(given))
        return model

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Like pydantic's method. A copy with other values does not keep the input."""
        copied = super().model_copy(update=update, deep=deep)
        if update:
            vars(copied).pop("_given", None)
        return copied


def record(message: Carrier) -> dict[str, Any]:
    """What to store as `payload` for a message, beside `payload_hash`."""
    return recorded(message, _digest(_in_terms_of(known_to(type(message)), message)))


def recorded(message: Carrier, hash_: str) -> dict[str, Any]:
    """What `record` returns for a message whose values have this hash."""
    stored = {"version": VERSION, "hash": hash_, "known": known_to(type(message))}
    given = _digest_given(message)
    if given is not None:
        stored["given"] = given
    return stored


def compare(stored: Mapping[str, Any], message: Carrier) -> Comparison:
    """Compare a message with a document of MongoDB. Never raises, whatever the document contains.

    The document has `payload_hash` at the top or in `registration`, and `payload` as `record`
    returns it. Without `payload`, an earlier release stored the document.
    """
    holder = stored.get("registration", stored)
    version_1 = holder.get("payload_hash") if isinstance(holder, Mapping) else None
    if not isinstance(version_1, str):
        return Comparison.UNREADABLE
    payload = stored.get("payload")
    if payload is None or _is_of_a_later_release(payload):
        return _comparison(version_1 == hash_of_version_1(message))
    try:
        return _comparison(_is_recorded(payload, message))
    except (LookupError, TypeError, ValueError):
        return Comparison.UNREADABLE


def hash_of_version_1(message: Carrier) -> str:
    """SHA-256, in hex, of the values of version 1, with defaults for missing values."""
    if message.version_1 is None:
        return _digest(message.model_dump(mode="json"))
    if is_version_1(type(message)):
        return _digest(message.model_dump(mode="json", by_alias=False))
    return _digest(_in_terms_of(message.version_1, message, is_filled=True))


@cache
def is_version_1(model: type[Carrier]) -> bool:
    """Whether a model has the fields of its version 1, and no others. Then its own values are those
    of version 1, and it takes a tenth of the time to read them."""
    return known_to(model) == model.version_1 and _is_simple(model)


def _comparison(is_same: bool) -> Comparison:
    return Comparison.SAME if is_same else Comparison.DIFFERENT


def _is_of_a_later_release(payload: Any) -> bool:
    version = payload.get("version") if isinstance(payload, Mapping) else None
    return isinstance(version, int) and version > VERSION


def _is_recorded(payload: Any, message: Carrier) -> bool:
    """Whether a message equals a payload of `record`. Raises LookupError, TypeError or ValueError
    if `record` did not create the payload."""
    known, hash_ = payload["known"], payload["hash"]
    if not (isinstance(known, str) and isinstance(hash_, str)):
        raise TypeError("`known` and `hash` of a payload must be strings")
    given = _digest_given(message)
    is_as_given = given is not None and payload.get("given") == given
    return is_as_given or hash_ == _digest(_in_terms_of(known, message))


def _digest_given(message: Carrier) -> str | None:
    """The hash of the input; None if the input is not known or not JSON. It is the same for both
    spellings of a name, because a worker knows the spellings only of its own fields."""
    if message._given is None:
        return None
    fields = message._given.fields
    try:
        in_camel = {_camel(name): value for name, value in fields.items()}
        return _digest(in_camel) if len(in_camel) == len(fields) else None
    except (TypeError, ValueError):
        return None


# What a model knows --------------------------------------------------------------------------


@cache
def known_to(model: type[BaseModel]) -> str:
    """The names of a model's fields, also nested ones, each with its default if it has one."""
    defaults: dict[str, set[str]] = {}
    for name, default in _names(model, "", ()):
        defaults.setdefault(name, set()).add(default)
    # If the models of a union have different defaults, the field has none.
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


def _is_simple(model: type[BaseModel]) -> bool:
    """Whether each field is a single value or a model like this one, and a dump has all fields and
    nothing else."""
    decorators = model.__pydantic_decorators__
    return not (decorators.model_serializers or decorators.computed_fields) and all(
        not info.exclude and (_is_single(info.annotation) or _is_simple_model(info.annotation))
        for info in model.model_fields.values()
    )


def _is_simple_model(annotation: Any) -> bool:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return is_model and not issubclass(annotation, RootModel) and _is_simple(annotation)


def _is_single(annotation: Any) -> bool:
    return all(kind in (str, int, float, bool, NoneType) for kind in types_in(annotation))


def types_in(annotation: Any) -> list[Any]:
    """The types that an annotation allows."""
    if get_origin(annotation) is Annotated:
        return types_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for each in get_args(annotation) for kind in types_in(each)]
    return [annotation]


def _names_within(
    annotation: Any, name: str, within: tuple[type, ...]
) -> Iterator[tuple[str, str]]:
    """The fields of the models that a field may contain, directly or as elements."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # A model that contains itself is compared as a whole from there on.
        if annotation not in within:
            yield from _names(annotation, f"{name}.", within)
        return
    origin = get_origin(annotation)
    has_elements = isinstance(origin, type) and issubclass(origin, Collection)
    for argument in get_args(annotation):
        yield from _names_within(argument, f"{name}.{EACH}" if has_elements else name, within)


def _one_word(default: Any) -> str:
    # In this JSON, spaces occur only inside strings.
    return _ENCODER.encode(default).replace(" ", "\\u0020")


@dataclass
class Place:
    """One known field: its default and its inner fields."""

    spelling: str = ""
    """Its name in camel case."""
    default: Any = NOTHING
    parts: dict[str, "Place"] = field(default_factory=dict)


@lru_cache(maxsize=256)
def places(known: str) -> Place:
    """The fields in `known`, as a tree. Raises ValueError if a default is not JSON."""
    root = Place()
    for word in known.split(" "):
        name, has_default, default = word.partition("=")
        place = root
        for part in name.split("."):
            place = place.parts.setdefault(part, Place(_camel(part)))
        if has_default:
            place.default = json.loads(default)
    return root


# The values of a message ---------------------------------------------------------------------


def _in_terms_of(known: str, message: Carrier, *, is_filled: bool = False) -> Any:
    """The values of the known fields as plain JSON: without values that equal the default, or, if
    `is_filled`, with defaults for missing values.

    If the message's model knows a field, its value is the validated one. Otherwise it is the value
    that the producer sent.
    """
    read = message.model_dump(mode="json", by_alias=False, exclude_unset=True)
    return _value(places(known), read, message, is_filled)


def _value(place: Place, read: Any, given: Any, is_filled: bool) -> Any:
    value = given if read is NOTHING else read
    if not place.parts or not isinstance(value, _CONTAINERS):
        return value
    if each := place.parts.get(EACH):
        return _elements(each, value, given, is_filled)
    return _fields(place, read, given, is_filled) if isinstance(value, dict) else value


def _elements(each: Place, value: Any, given: Any, is_filled: bool) -> Any:
    if isinstance(value, dict):
        return {k: _value(each, v, _at(given, k), is_filled) for k, v in value.items()}
    return [_value(each, v, _at(given, n), is_filled) for n, v in enumerate(value)]


def _fields(place: Place, read: Any, given: Any, is_filled: bool) -> dict[str, Any]:
    own = read if isinstance(read, dict) else {}
    theirs: dict[str, Any] | None = None
    fields = {}
    for name, part in place.parts.items():
        value = own.get(name, NOTHING)
        if value is NOTHING or part.parts:
            if theirs is None:
                theirs = _fields_given(given)
            sent = theirs.get(part.spelling, theirs.get(name, NOTHING))
            value = _value(part, value, sent, is_filled)
        if is_filled and value is NOTHING:
            value = part.default
        if value is not NOTHING and (is_filled or not _is_default(value, part)):
            fields[name] = value
    return fields


def _fields_given(given: Any) -> dict[str, Any]:
    """The fields that the producer sent, by the names that it used."""
    if isinstance(given, dict):
        return given
    kept = given._given if isinstance(given, Carrier) else None
    return {} if kept is None else kept.fields


def _at(content: Any, key: str | int) -> Any:
    if isinstance(content, dict):
        return content.get(key, NOTHING)
    if isinstance(content, list) and isinstance(key, int) and key < len(content):
        return content[key]
    return NOTHING


def _is_default(value: Any, place: Place) -> bool:
    if type(value) is not type(place.default):
        return False  # In JSON, 1 is neither true nor 1.0.
    if isinstance(value, _CONTAINERS):
        default = _value(place, place.default, NOTHING, is_filled=False)
        return _ENCODER.encode(value) == _ENCODER.encode(default)
    return bool(value == place.default)


# Hashes --------------------------------------------------------------------------------------


def _plain(value: object) -> str:
    """A string for a type that Celery's JSON supports but plain JSON does not (kombu 5.7
    utils/json.py)."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain
)


def _digest(content: Any) -> str:
    """SHA-256, in hex, of the content in canonical JSON."""
    return digest_of_text(_ENCODER.encode(content))


def digest_of_text(text: str) -> str:
    """SHA-256, in hex, of canonical JSON."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()
