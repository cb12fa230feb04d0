"""The message models, and the reader of plain JSON messages.

A message model is the whole contract of a task. Its fields are the task's arguments. They are
checked when `.delay` is called, and again in the worker. Each field is accepted in both spellings
(`stock_id`, `stockId`). An unknown field is an error for a Python caller. A worker ignores it, so a
producer may be newer than the worker.
"""

import re
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StringConstraints,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from app.payload import Carrier, hash_of_version_1, known_to
from sqs_broker import ForeignMessage, Undecodable
from sqs_broker.rules.provenance import Provenance as Provenance
from sqs_broker.rules.provenance import Source as Source

#: The largest integer that all JSON readers and BSON represent exactly.
LARGEST_INTEGER = 2**53

#: A name as programs write it. Any other name of a field could be personal data, and is not shown.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)

#: Stands for a name that is not shown.
HIDDEN = "…"

#: pydantic's type of the fault of an unknown field.
#: https://docs.pydantic.dev/latest/errors/validation_errors/#extra_forbidden
UNKNOWN = "extra_forbidden"

#: An id of this application: 1 to 128 characters, and no control character, so no line end. It is
#: short and printable, because logs show it and an index key contains it. Nothing else is checked
#: or changed: spaces count, and an id of spaces alone is an id like any other.
Id = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Model = TypeVar("Model", bound=BaseModel)
Whole = Annotated[int, Field(strict=True, ge=0, le=LARGEST_INTEGER)]


class Message(Carrier):
    """The base of every message model."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        allow_inf_nan=False,
        loc_by_alias=False,
        # The text of the error is logged, and a refused value may be personal data.
        hide_input_in_errors=True,
    )

    #: The fields whose values logs, events and Flower may show. No other value is ever shown.
    shown: ClassVar[frozenset[str]] = frozenset()

    def payload_hash(self) -> str:
        """SHA-256, in hex, of the payload: equal for equal payloads in any spelling.

        Every release can compare this hash. app/payload.py stores more beside it."""
        return hash_of_version_1(self)


class UserInfo(Message):
    """What users say about themselves. Personal data: never shown.

    Each text is stored as it is given: spaces and line ends count. `nickname` has 1 to 100
    characters, `gender` at most 16, and `introduction` at most 2,000. `gender` is any text, not one
    of a list: the producers agree on its values. "" means that the user did not say it.
    """

    nickname: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    gender: Annotated[str, StringConstraints(max_length=16)] = ""
    introduction: Annotated[str, StringConstraints(max_length=2_000)] = ""


class Registration(Message):
    """A user registers for a session of the game.

    `index`, `money` and `loan_count` are whole numbers from 0 to 2**53. Without `money`, or with
    None, the user gets the setting STARTING_MONEY.
    """

    shown = frozenset({"stock_id", "user_id"})
    version_1 = (
        "index=0 loan_count=0 money=null stock_id user_id user_info "
        'user_info.gender="" user_info.introduction="" user_info.nickname'
    )

    stock_id: Id
    user_id: Id
    user_info: UserInfo
    index: Whole = 0
    money: Whole | None = Field(None, description="Default: the setting STARTING_MONEY.")
    loan_count: Whole = 0


def _exact(number: float) -> float:
    if isinstance(number, int) and abs(number) > LARGEST_INTEGER:
        raise ValueError(f"should be at most {LARGEST_INTEGER} from zero")
    return number


class Increment(Message):
    """Adds one to the running count: the simplest effect that must not happen twice."""

    shown = frozenset({"input"})
    version_1 = "input"

    input: Annotated[StrictInt | StrictFloat, AfterValidator(_exact)]


def read_strictly(model: type[Model], fields: dict[str, Any]) -> Model:
    """Read a caller's fields. Raises ValidationError, also for an unknown field, unless the model
    itself says what becomes of those."""
    if model.model_config.get("extra") != "ignore":
        return model.model_validate(fields)
    return model.model_validate(fields, extra="forbid")


def unknown_fields(model: type[BaseModel], fields: dict[str, Any]) -> list[str]:
    """What is wrong with each unknown field, as `field_faults` says it. Of the other fields nothing
    is checked: some may still be missing."""
    try:
        read_strictly(model, fields)
    except ValidationError as exc:
        return [_fault(one, model) for one in _faults(exc) if one["type"] == UNKNOWN]
    return []


def names_of_unknown(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """The names of the unknown fields in an error of `read_strictly`, such as `user_info.gendr`.

    A name that is near to that of a field is shown. Any other one comes from outside and may be
    personal data: `…` stands for it.
    """
    return [
        _place(one["loc"]) if _nearest(model, str(one["loc"][-1])) else HIDDEN
        for one in _faults(error)
        if one["type"] == UNKNOWN
    ]


def field_faults(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Name each invalid field and what it should be, without any value from the message. With the
    model, an unknown field gets the nearest name that the model knows."""
    return "; ".join(_fault(one, model) for one in _faults(error))


def _faults(error: ValidationError) -> list[Any]:
    return list(error.errors(include_url=False, include_input=False, include_context=False))


def _fault(one: Any, model: type[BaseModel] | None) -> str:
    if model is None or one["type"] != UNKNOWN:
        return f"{'.'.join(str(part) for part in one['loc']) or 'message'}: {one['msg']}"
    nearest = _nearest(model, str(one["loc"][-1]))
    hint = f"; did you mean {nearest}?" if nearest else f"; the fields are {_listed(model)}"
    return f"{_place(one['loc'])}: there is no such field{hint}"


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(
        str(part) if isinstance(part, int) or NAME.fullmatch(part) else HIDDEN for part in location
    )


def _nearest(model: type[BaseModel], name: str) -> str | None:
    """The known field, also a nested one, whose name is nearest to this one in either spelling."""
    places: dict[str, str] = {}
    for place in _places_of(model):
        last = place.rpartition(".")[2]
        places |= {last: place, to_camel(last): place}
    near = get_close_matches(name, places, n=1)
    return places[near[0]] if near else None


def _listed(model: type[BaseModel]) -> str:
    return ", ".join(_places_of(model))


@cache
def _places_of(model: type[BaseModel]) -> list[str]:
    return [word.partition("=")[0] for word in known_to(model).split(" ")]


def fields_of(
    model: type[Message], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by the names of the model's fields, in any order and spelling.

    Raises TypeError, like a function call, if there are too many or if one is given twice.
    """
    names, spellings = _names_of(model)
    if not args and spellings.keys().isdisjoint(kwargs):
        return dict(kwargs)
    if len(args) > len(names):
        raise TypeError(f"takes at most {len(names)} arguments ({', '.join(names)})")
    given = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        name = spellings.get(key, key)
        if name in given:
            raise TypeError(f"got multiple values for argument {name!r}")
        given[name] = value
    return given


@cache
def _names_of(model: type[Message]) -> tuple[list[str], dict[str | None, str]]:
    """The names of the model's fields in order, and a mapping from each other spelling to the
    name."""
    fields = model.model_fields
    others = {field.alias: name for name, field in fields.items() if field.alias != name}
    return list(fields), others


def decode_json(content: dict[str, Any]) -> ForeignMessage:
    """Read a plain JSON message: `{"id": …, "action": "registerUser", "data": {…}}`.

    `type` is accepted in place of `action`. Raises Undecodable for anything else.
    """
    try:
        plain = PlainJson.model_validate(content)
    except ValidationError as exc:
        raise Undecodable(f"the plain JSON message: {field_faults(exc)}") from None
    name = plain.action or plain.type
    if name is None:
        raise Undecodable("the plain JSON message has neither action nor type")
    return ForeignMessage(task=name, kwargs=plain.data, id=plain.id)


class PlainJson(BaseModel):
    """A plain JSON message."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    id: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    action: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    type: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    timestamp: Any = None
    """When the producer made the message. Nothing reads it: SQS says when it took the message."""
    data: dict[str, Any]
