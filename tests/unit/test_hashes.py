"""The hash and the record of a new document are those of app/payload.py, for any message."""

import warnings
from enum import StrEnum
from typing import Annotated, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, PlainSerializer, computed_field, field_serializer

from app.hashes import hash_and_record
from app.messages import Increment, Message, Registration, UserInfo
from app.payload import hash_of_version_1, known_to, record

texts = st.text(st.characters(codec="utf-8"), max_size=12)
wholes = st.integers(0, 2**53)
infos = st.fixed_dictionaries(
    {"nickname": st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)},
    optional={"gender": texts, "introduction": texts, "x": texts},
)
ids = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)
bodies = st.fixed_dictionaries(
    {"stockId": ids, "user_id": ids, "userInfo": infos | infos.map(UserInfo.model_validate)},
    optional={
        "index": wholes,
        "money": st.none() | wholes,
        "loanCount": wholes,
        "unknown": texts | st.lists(texts, max_size=2) | st.floats(),
    },
)


def by_the_payload(message: Message) -> tuple[str, dict[str, Any]]:
    return hash_of_version_1(message), record(message)


@settings(derandomize=True, database=None, max_examples=300)
@given(body=bodies)
@example({"stockId": "s", "user_id": "u", "userInfo": {"nickname": "김"}, "money": 0, "index": 0})
@example({"stockId": "s", "user_id": "u", "userInfo": {"nickname": '\x00"\\/\u2028', "gender": ""}})
def test_they_are_those_of_the_payload_for_any_registration(body: dict[str, Any]) -> None:
    message = Registration.model_validate(body)
    assert hash_and_record(message) == by_the_payload(message)
    copied = message.model_copy(update={"index": 5})
    assert hash_and_record(copied) == by_the_payload(copied)


@settings(derandomize=True, database=None, max_examples=100)
@given(number=st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False))
def test_they_are_those_of_the_payload_for_any_number(number: float) -> None:
    message = Increment.model_validate({"input": number})
    assert hash_and_record(message) == by_the_payload(message)


class Colour(StrEnum):
    RED = "red"


unchecked = texts | st.booleans() | st.integers() | st.none() | st.sampled_from(Colour)


@settings(derandomize=True, database=None, max_examples=200)
@given(
    fields=st.fixed_dictionaries(
        {
            "user_info": st.builds(UserInfo, nickname=st.just("kim")) | infos,
            "stock_id": st.just("s") | unchecked,
            "user_id": st.just("u"),
        },
        optional=dict.fromkeys(("index", "money", "loan_count"), unchecked),
    ),
    is_set=st.booleans(),
)
def test_they_are_those_of_the_payload_for_values_that_nobody_checked(
    fields: dict[str, Any], is_set: bool
) -> None:
    message = Registration.model_construct(None if is_set else set(), **fields)
    with warnings.catch_warnings(action="ignore"):
        assert hash_and_record(message) == by_the_payload(message)


# Models whose messages pydantic dumps in another way, or not as their version 1 says.


class Newer(Registration):
    referred_by: str = ""


class NewerInfo(UserInfo):
    home_town: str = ""


class NewerWithin(Registration):
    user_info: NewerInfo


class Renamed(Registration):
    model_config = ConfigDict(serialize_by_alias=True)


class Open(Registration):
    model_config = ConfigDict(extra="allow")


class Shouts(Registration):
    @field_serializer("stock_id")
    def _shout(self, value: str) -> str:
        return value.upper() + "!"


class Annotates(Registration):
    user_id: Annotated[str, PlainSerializer(lambda value: value * 2)]


class Computes(Registration):
    @computed_field
    def both(self) -> str:
        return self.stock_id + self.user_id


class Hides(Registration):
    user_id: str = Field(exclude=True)


class HidesSome(Registration):
    user_id: str = Field(exclude_if=lambda value: value == "u")


class OptionalInfo(Registration):
    user_info: UserInfo = UserInfo(nickname="kim")


class MadeDefault(Registration):
    index: int = Field(default_factory=iter(range(9)).__next__)


class First(Registration):
    version_1 = None


class Either(Message):
    flag: bool | int = 0
    index: int | None = None


for late in (OptionalInfo, MadeDefault, Either):
    late.version_1 = known_to(late)

MODELS: list[type[Message]] = [
    Newer, NewerWithin, Renamed, Open, Shouts, Annotates, Computes, Hides, HidesSome,
    OptionalInfo, MadeDefault, Either, First,
]  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"index": 2, "referredBy": "ann", "money": 0, "flag": False}])
@pytest.mark.parametrize("model", MODELS)
def test_they_are_those_of_the_payload_for_other_models(
    model: type[Message], more: dict[str, Any]
) -> None:
    message = model.model_validate(
        {"stock_id": "s", "user_id": "u", "userInfo": {"nickname": "kim", "homeTown": "x"}} | more
    )
    assert hash_and_record(message) == by_the_payload(message)


def test_the_dump_of_a_subclass_has_only_the_fields_of_the_declared_model() -> None:
    class Rich(UserInfo):
        shoe_size: int = 0

    message = Registration(stock_id="s", user_id="u", user_info=Rich(nickname="kim", shoe_size=43))
    assert hash_and_record(message) == by_the_payload(message)
