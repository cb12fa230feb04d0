"""The messages on the wire, and where each came from.

A message model is the whole contract of a task: its fields are the task's arguments, its checks
run at the caller of `.delay` and again in the worker, and every field is accepted in both
spellings (`stock_id`, `stockId`). Fields that a model does not name are ignored, so that a
producer may be newer than the worker.
"""

from functools import cache
from typing import Annotated, Any, ClassVar

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

from app.payload import Carrier, hash_of_version_1
from sqs_broker import ForeignMessage, Undecodable
from sqs_broker.rules.provenance import Provenance as Provenance
from sqs_broker.rules.provenance import Source as Source

#: The largest integer that every JSON reader and BSON agree on.
LARGEST_INTEGER = 2**53

#: An id of ours: it is printed in logs and is part of an index key, so it is short and printable.
Id = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
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
        # A refused value may be personal data, and the text of the error is logged.
        hide_input_in_errors=True,
    )

    #: The fields whose values may be shown in logs, events and Flower. No other ever is.
    shown: ClassVar[frozenset[str]] = frozenset()

    def payload_hash(self) -> str:
        """SHA-256, in hex, of what the producer gave: equal for equal payloads in any spelling.

        What every release can compare; app/payload.py has more beside it."""
        return hash_of_version_1(self)


class UserInfo(Message):
    """What the user said of themself. Personal data: shown nowhere."""

    nickname: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    gender: Annotated[str, StringConstraints(max_length=16)] = ""
    introduction: Annotated[str, StringConstraints(max_length=2_000)] = ""


class Registration(Message):
    """A user registers for a session of the game."""

    shown = frozenset({"stock_id", "user_id"})
    version_1 = (
        "index=0 loan_count=0 money=null stock_id user_id user_info "
        'user_info.gender="" user_info.introduction="" user_info.nickname'
    )

    stock_id: Id
    user_id: Id
    user_info: UserInfo
    index: Whole = 0
    money: Whole | None = Field(None, description="Without it, the setting STARTING_MONEY.")
    loan_count: Whole = 0


def _exact(number: float) -> float:
    if isinstance(number, int) and abs(number) > LARGEST_INTEGER:
        raise ValueError(f"should be at most {LARGEST_INTEGER} from zero")
    return number


class Increment(Message):
    """Adds one to the running count; the smallest thing that may not happen twice."""

    shown = frozenset({"input"})
    version_1 = "input"

    input: Annotated[StrictInt | StrictFloat, AfterValidator(_exact)]


def field_faults(error: ValidationError) -> str:
    """Name each field that is wrong and what it should be, without any value from the message."""
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'message'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False, include_context=False)
    )


def fields_of(
    model: type[Message], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments by the names of the model's fields, whatever their order or spelling.

    Raises TypeError, as a call of a function would, for too many of them or one given twice.
    """
    names, spellings = _names_of(model)
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
    """The names of the model's fields in order, and each by its alias."""
    fields = model.model_fields
    return list(fields), {field.alias: name for name, field in fields.items()}


def decode_json(content: dict[str, Any]) -> ForeignMessage:
    """Read a plain JSON message: `{"id": …, "action": "registerUser", "data": {…}}`.

    `type` may say what `action` does. Raises Undecodable for anything else.
    """
    try:
        plain = _PlainJson.model_validate(content)
    except ValidationError as exc:
        raise Undecodable(f"the plain JSON message: {field_faults(exc)}") from None
    name = plain.action or plain.type
    if name is None:
        raise Undecodable("the plain JSON message: neither action nor type is given")
    return ForeignMessage(task=name, kwargs=plain.data, id=plain.id)


class _PlainJson(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    id: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    action: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    type: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    data: dict[str, Any]
