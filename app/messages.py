"""The message models, and the reader of plain JSON messages.

A message model is the whole contract of a task. Its fields are the task's arguments. They are
checked when `.delay` is called, and again in the worker. Each field is accepted in both spellings
(`stock_id`, `stockId`). Unknown fields are ignored, so a producer may be newer than the worker.
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

#: The largest integer that all JSON readers and BSON represent exactly.
LARGEST_INTEGER = 2**53

#: An id of this application. It is short and printable, because logs show it and an index key
#: contains it.
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
    """What users say about themselves. Personal data: never shown."""

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


def field_faults(error: ValidationError) -> str:
    """Name each invalid field and what it should be, without any value from the message."""
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'message'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False, include_context=False)
    )


def fields_of(
    model: type[Message], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by the names of the model's fields, in any order and spelling.

    Raises TypeError, like a function call, if there are too many or if one is given twice.
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
    """The names of the model's fields in order, and a mapping from alias to name."""
    fields = model.model_fields
    return list(fields), {field.alias: name for name, field in fields.items()}


def decode_json(content: dict[str, Any]) -> ForeignMessage:
    """Read a plain JSON message: `{"id": …, "action": "registerUser", "data": {…}}`.

    `type` is accepted in place of `action`. Raises Undecodable for anything else.
    """
    try:
        plain = _PlainJson.model_validate(content)
    except ValidationError as exc:
        raise Undecodable(f"the plain JSON message: {field_faults(exc)}") from None
    name = plain.action or plain.type
    if name is None:
        raise Undecodable("the plain JSON message has neither action nor type")
    return ForeignMessage(task=name, kwargs=plain.data, id=plain.id)


class _PlainJson(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    id: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    action: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    type: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    data: dict[str, Any]
