"""What is shown of arguments: the same by the quick way as by the model, and nothing hidden."""

from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictInt,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core.core_schema import no_info_after_validator_function

from app.celery import Registrations
from app.messages import Increment, Message, Registration, UserInfo, fields_of, read_strictly
from app.shown import LONGEST_SHOWN, quick_text, text_of
from tests.bodies import AWKWARD, json_values

MANY = settings(derandomize=True, database=None, max_examples=300)

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


class Colour(StrEnum):
    RED = "red"


class Inner(Message):
    """Has a name with two spellings, and a check of its own kind for each field."""

    first_name: Annotated[str, StringConstraints(strip_whitespace=True, max_length=5)]
    born_on: date | None = None
    amount: Decimal = Decimal(1)


class Checked(Message):
    """Changes what it is given."""

    first_name: str

    @field_validator("first_name")
    @classmethod
    def in_capitals(cls, name: str) -> str:
        return name.upper()


class Told(Message):
    """Has a text of its own."""

    first_name: str

    def __repr__(self) -> str:
        return "Told"


class Mixed(Message):
    """Fields of many kinds: what is shown may be another value than the one that was given."""

    shown = frozenset(
        {"count", "ratio", "colour", "told", "own", "trimmed", "either", "many", "at"}
    )

    count: int = 1
    ratio: float = 0.5
    colour: Colour = Colour.RED
    told: Told | None = None
    own: Told = Field(default_factory=lambda: Told(first_name="a"))
    inner: Inner | None = None
    one: Inner = Inner(first_name="a")
    checked: Checked = Checked(first_name="a")
    trimmed: Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)] = ""
    either: StrictInt | str | None = None
    many: list[Inner] = Field(default_factory=list)
    at: datetime | UUID | bytes | None = None
    doubled: Annotated[int, BeforeValidator(lambda value: value * 2)] = 1
    other_name: int = Field(1, validation_alias=AliasChoices("otherName", "third"))


class Free(Message):
    """Takes any other fields too."""

    model_config = ConfigDict(extra="allow")
    shown = frozenset({"name"})

    name: str


class Capital(Message):
    """Changes what it is given."""

    shown = frozenset({"name"})

    name: str
    other: str = ""

    @field_validator("name")
    @classmethod
    def in_capitals(cls, name: str) -> str:
        return name.upper()


class Moved(Message):
    """Reads another field."""

    shown = frozenset({"name"})

    name: str

    @model_validator(mode="before")
    @classmethod
    def old_name(cls, given: Any) -> Any:
        return {"name": given["old"]} if isinstance(given, dict) and "old" in given else given


class Late(Message):
    """Refuses after it was read."""

    shown = frozenset({"name"})

    name: str

    def model_post_init(self, context: Any, /) -> None:
        if vars(self).get("name") == "no":
            raise ValueError("no")


class Private(Message):
    """Has a value that is no field."""

    shown = frozenset({"name"})

    name: str
    _seen: int = PrivateAttr(default=0)


class Kept(Message):
    """Keeps its input in its own way."""

    shown = frozenset({"name"})

    name: str

    @model_validator(mode="wrap")
    @classmethod
    def _keep_input(cls, given: Any, validate: Any) -> Any:
        return validate({"name": "other"})


class Made(Message):
    """Is made in its own way."""

    shown = frozenset({"name"})

    name: str

    def __init__(self, **given: Any) -> None:
        super().__init__(name=f"{given.get('name')}!")


class Validated(Message):
    """Is validated in its own way."""

    shown = frozenset({"name"})

    name: str

    @classmethod
    def model_validate(cls, obj: Any, **how: Any) -> "Validated":
        return super().model_validate({"name": "other"}, **how)


class Described(Message):
    """Has a schema of its own."""

    shown = frozenset({"name"})

    name: str

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return no_info_after_validator_function(
            lambda model: cls.model_construct(), handler(source)
        )


class Crossed(Message):
    """The second spelling of each field is the name of the other one."""

    shown = frozenset({"left"})

    left: int = Field(1, alias="right")
    right: int = Field(2, alias="left")


class Heir(Registration):
    """Has one field more."""

    more: int = 0


MODELS: list[type[Message]] = [
    Registration, Increment, UserInfo, Mixed, Free, Capital, Moved, Late, Private, Kept, Made,
    Validated, Described, Crossed, Heir,
]  # fmt: skip


class Text(str):
    """A kind of string."""


class Fields(dict[str, Any]):
    """A kind of dict."""


#: What kombu converts, or a call in the same process gives, and what belongs to a field.
OTHERS = (
    Decimal("1.5"), date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC), UUID(int=1), b"kim", "red",
    Text("kim"), Fields(nickname="kim"), MappingProxyType({"nickname": "kim"}), " kim ", "5", 5,
    1.0, {"first_name": "kim"}, {"firstName": "kim"}, {"firstName": "kim", "first_name": "kim"},
    {"first_name": "kim", "bornOn": "2026-01-02"}, {"first_name": "kim", "unknown": 1},
    {"nickname": "kim", "gender": "f"}, {"nickname": ""}, [{"first_name": "kim"}], "no",
    UserInfo(nickname="kim"), Inner(first_name="kim"), Told(first_name="kim"),
)  # fmt: skip

VALUES = st.sampled_from(OTHERS) | st.sampled_from(AWKWARD) | json_values

#: Arguments that all is right with.
RIGHT: dict[type[Message], dict[str, Any]] = {
    Registration: {"stock_id": "s1", "user_id": "u1", "user_info": {"nickname": "kim"}},
    Increment: {"input": 1},
    UserInfo: {"nickname": "kim"},
    Crossed: {"left": 3},
    Mixed: {
        "own": {"first_name": "kim"},
        "count": 1,
        "told": {"firstName": "kim"},
        "one": {"first_name": "kim"},
        "at": "kim",
    },
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[type[Message], list[Any], dict[str, Any]]:
    """A model and the arguments of a call, most of them nearly right."""
    model = draw(st.sampled_from(MODELS))
    kwargs = dict(RIGHT.get(model, {"name": "kim"}))
    if model is Heir:
        kwargs = dict(RIGHT[Registration])
    spellings = [str(info.alias) for info in model.model_fields.values()]
    names = [*model.model_fields, *spellings, "third", "old", "xyzzy"]
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(names))
        if draw(st.booleans()):
            kwargs[name] = draw(VALUES)
        else:
            kwargs.pop(name, None)
    args = draw(st.lists(VALUES, max_size=3)) if draw(st.integers(0, 3)) == 0 else []
    return model, args, kwargs


def by_the_model(model: type[Message], args: list[Any], kwargs: dict[str, Any]) -> str | None:
    """The text of the message; None if these arguments are none, or have a field too many."""
    try:
        given = fields_of(model, tuple(args), dict(kwargs))
        return text_of(read_strictly(model, given))
    except (ValidationError, TypeError):
        return None


@MANY
@given(call=calls())
@example(call=(Crossed, [], {"left": 3, "right": 4}))
def test_the_quick_way_shows_the_same_or_leaves_it_to_the_model(
    call: tuple[type[Message], list[Any], dict[str, Any]],
) -> None:
    assert quick_text(*call) in (None, by_the_model(*call))


@pytest.fixture(scope="module")
def tasks() -> Any:
    """A task for each model."""
    app = Registrations("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    queues = {"jobs": {"url": "http://127.0.0.1:1/jobs"}}
    app.conf.broker_transport_options = {"region": "us-east-1", "predefined_queues": queues}

    def nothing(*_: Any) -> None: ...

    yield {
        model: app.task(shared=False, name=model.__name__, model=model)(nothing) for model in MODELS
    }
    app.close()


@MANY
@given(call=calls())
def test_a_task_shows_what_its_model_reads(
    tasks: Any, call: tuple[type[Message], list[Any], dict[str, Any]]
) -> None:
    model, args, kwargs = call
    try:
        given = fields_of(model, tuple(args), dict(kwargs))
        expected = "()", text_of(model.model_validate(given))
    except (ValidationError, TypeError):
        expected = f"({len(args)} hidden)" if args else "()", f"{{{len(kwargs)} hidden}}"
    assert tasks[model].shown(args, kwargs) == expected


#: Personal data, in each form that arguments can have.
PERSONAL = st.sampled_from(
    [MARKER, [MARKER], {MARKER: MARKER}, {"nickname": MARKER}, {"first_name": MARKER},
     {"nickname": MARKER, MARKER: 1}, MARKER * 50, MARKER.encode(), Text(MARKER),
     {"stock_id": MARKER}, Fields(nickname=MARKER), UserInfo(nickname=MARKER)]
)  # fmt: skip


@st.composite
def personal_calls(draw: st.DrawFn) -> tuple[type[Message], list[Any], dict[str, Any]]:
    """Personal data in every field that is not shown, and in fields that are none."""
    model, args, kwargs = draw(calls())
    hidden = [name for name in model.model_fields if name not in model.shown]
    spelt = [draw(st.sampled_from([name, str(model.model_fields[name].alias)])) for name in hidden]
    kwargs |= {name: draw(PERSONAL) for name in spelt if draw(st.booleans())}
    if draw(st.booleans()):
        kwargs[MARKER] = draw(PERSONAL)
    return model, args, kwargs


@MANY
@given(call=personal_calls())
def test_nothing_is_shown_of_a_hidden_field(
    tasks: Any, call: tuple[type[Message], list[Any], dict[str, Any]]
) -> None:
    model, args, kwargs = call
    assert MARKER not in "".join(tasks[model].shown(args, kwargs))


def test_a_hidden_value_is_not_shown_by_its_position_either(tasks: Any) -> None:
    shown = tasks[Registration].shown(["s1", "u1", {"nickname": MARKER}], {"money": 5})
    assert shown == ("()", "{stock_id: 's1', user_id: 'u1', user_info: hidden, money: hidden}")


@pytest.mark.parametrize("model", [Registration, Increment, Heir])
def test_the_messages_of_this_application_need_no_second_reading(model: type[Message]) -> None:
    assert quick_text(model, [], RIGHT.get(model, RIGHT[Registration])) is not None


@pytest.mark.parametrize("model", [Free, Capital, Moved, Late, Kept, Made, Validated, Described])
def test_a_model_with_code_of_its_own_reads_itself(model: type[Message]) -> None:
    assert quick_text(model, [], {"name": "kim"}) is None


def test_a_long_value_is_cut(tasks: Any) -> None:
    _, shown = tasks[Mixed].shown([], {"trimmed": "x" * 200})
    assert shown == "{trimmed: '" + "x" * (LONGEST_SHOWN - 1) + "}"
