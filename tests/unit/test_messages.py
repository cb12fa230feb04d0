"""The message models: what is accepted, in either spelling; what is refused, without its value."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from app.messages import (
    LARGEST_INTEGER,
    Increment,
    Message,
    Registration,
    decode_json,
    field_faults,
    fields_of,
)

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"

SNAKE = {
    "stock_id": "s1",
    "user_id": "u1",
    "user_info": {"nickname": "kim", "gender": "F", "introduction": "hi"},
    "index": 3,
    "money": 500,
    "loan_count": 2,
}
CAMEL = {
    "stockId": "s1",
    "userId": "u1",
    "userInfo": {"nickname": "kim", "gender": "F", "introduction": "hi"},
    "index": 3,
    "money": 500,
    "loanCount": 2,
}


def registration(**changes: Any) -> dict[str, Any]:
    return SNAKE | changes


def user_info(**changes: Any) -> dict[str, Any]:
    return registration(user_info={"nickname": "kim"} | changes)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in SNAKE.items() if key != name}


def faults(model: type[Message], content: Any) -> str:
    with pytest.raises(ValidationError) as raised:
        model.model_validate(content)
    return field_faults(raised.value)


# What is accepted


@pytest.mark.parametrize(
    "content",
    [
        CAMEL,
        without("user_id") | {"userId": "u1"},
        # A field that is not known yet.
        registration(referrer=MARKER),
    ],
)
def test_both_spellings_say_the_same_and_may_be_mixed(content: dict[str, Any]) -> None:
    assert Registration.model_validate(content) == Registration.model_validate(SNAKE)


def test_what_is_optional_has_a_default() -> None:
    least = {"stock_id": "s1", "user_id": "u1", "user_info": {"nickname": "kim"}}
    made = Registration.model_validate(least)
    assert (made.index, made.money, made.loan_count) == (0, None, 0)
    assert (made.user_info.gender, made.user_info.introduction) == ("", "")


def test_a_message_cannot_be_changed() -> None:
    message = Registration.model_validate(SNAKE)
    with pytest.raises(ValidationError, match="frozen"):
        message.stock_id = "s2"  # type: ignore[misc]


@pytest.mark.parametrize(
    "content",
    [
        registration(stock_id="s", user_id="u" * 128),
        registration(stock_id="종목", user_id="u 1"),
        user_info(nickname="n" * 100, gender="g" * 16, introduction="i" * 2_000),
        user_info(nickname="😀", gender="", introduction=""),
        registration(index=0, money=LARGEST_INTEGER, loan_count=LARGEST_INTEGER),
    ],
)
def test_values_at_their_bounds_are_accepted(content: dict[str, Any]) -> None:
    assert Registration.model_validate(content)


@pytest.mark.parametrize(
    "number", [0, -1, 2.5, -0.0, 1e308, 5e-324, LARGEST_INTEGER, -LARGEST_INTEGER]
)
def test_any_finite_number_can_be_incremented(number: float) -> None:
    given = Increment.model_validate({"input": number}).input
    # An integer is not made a float on its way.
    assert (given, type(given)) == (number, type(number))


# What is refused


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "stock_id"),
        (without("stock_id"), "stock_id"),
        (without("user_id"), "user_id"),
        (without("user_info"), "user_info"),
        (registration(stock_id=None), "stock_id"),
        (registration(stock_id=""), "stock_id"),
        (registration(stock_id=7), "stock_id"),
        (registration(stock_id="s" * 129), "stock_id"),
        (registration(stock_id={"$gt": ""}), "stock_id"),
        (registration(user_id={"$gt": ""}), "user_id"),
        (registration(user_id=["u1"]), "user_id"),
        (registration(user_id="line\nline"), "user_id"),
        (registration(user_id="u1\n"), "user_id"),
        (registration(user_id="nul\x00"), "user_id"),
        (registration(user_id="\ud800"), "user_id"),
        (registration(user_info=None), "user_info"),
        (registration(user_info="kim"), "user_info"),
        (registration(user_info=[]), "user_info"),
        (registration(user_info={}), "user_info.nickname"),
        (user_info(nickname=""), "user_info.nickname"),
        (user_info(nickname="n" * 101), "user_info.nickname"),
        (user_info(nickname="n" * 10_000), "user_info.nickname"),
        (user_info(nickname={"$gt": ""}), "user_info.nickname"),
        (user_info(nickname=7), "user_info.nickname"),
        (user_info(nickname="\ud800"), "user_info.nickname"),
        (user_info(gender="g" * 17), "user_info.gender"),
        (user_info(gender=None), "user_info.gender"),
        (user_info(gender={"$ne": 1}), "user_info.gender"),
        (user_info(introduction="i" * 2_001), "user_info.introduction"),
        (user_info(introduction=["i"]), "user_info.introduction"),
        (registration(index=-1), "index"),
        (registration(index=None), "index"),
        (registration(index="3"), "index"),
        (registration(index=3.5), "index"),
        (registration(index=True), "index"),
        (registration(money=-1), "money"),
        (registration(money="500"), "money"),
        (registration(money=LARGEST_INTEGER + 1), "money"),
        (registration(money=10**400), "money"),
        (registration(money=float("nan")), "money"),
        (registration(money={"$inc": 1}), "money"),
        (registration(loan_count=-1), "loan_count"),
        (registration(loan_count=False), "loan_count"),
        (CAMEL | {"loanCount": -1}, "loan_count"),
        (CAMEL | {"userInfo": {"nickname": ""}}, "user_info.nickname"),
    ],
)
def test_a_wrong_field_is_named_in_either_spelling(content: dict[str, Any], field: str) -> None:
    assert faults(Registration, content).startswith(f"{field}: ")


@pytest.mark.parametrize(
    "number",
    [
        True,
        False,
        float("nan"),
        float("inf"),
        float("-inf"),
        LARGEST_INTEGER + 1,
        -LARGEST_INTEGER - 1,
        2**60,
        10**400,
        "1",
        "",
        None,
        [1],
        {"$gt": 0},
        b"1",
    ],
)
def test_what_is_no_finite_number_cannot_be_incremented(number: Any) -> None:
    assert faults(Increment, {"input": number}).startswith("input")


def test_every_wrong_field_is_named() -> None:
    told = faults(Registration, registration(index="3", money="500", user_info={}))
    assert told == (
        "user_info.nickname: Field required; index: Input should be a valid integer; "
        "money: Input should be a valid integer"
    )


@pytest.mark.parametrize("content", [None, 7, "text", [MARKER]])
def test_what_is_no_object_is_no_message(content: Any) -> None:
    assert faults(Registration, content).startswith("message: ")


@pytest.mark.parametrize(
    ("model", "content"),
    [
        (Registration, registration(stock_id=MARKER * 40)),
        (Registration, registration(user_id=f"{MARKER}\n")),
        (Registration, user_info(nickname=MARKER * 40)),
        (Registration, user_info(nickname={MARKER: MARKER})),
        (Registration, registration(user_info=MARKER)),
        (Registration, registration(user_info={MARKER: MARKER})),
        (Registration, registration(index=MARKER, money=[MARKER], loan_count={MARKER: 1})),
        (Increment, {"input": MARKER}),
        (Increment, {"input": {MARKER: MARKER}}),
        (Increment, [MARKER]),
    ],
)
def test_no_refusal_tells_a_value(model: type[Message], content: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        model.model_validate(content)
    assert MARKER not in field_faults(raised.value)
    assert MARKER not in str(raised.value)
    assert MARKER not in repr(raised.value)


def test_personal_data_is_not_among_what_may_be_shown() -> None:
    assert Registration.shown == {"stock_id", "user_id"}
    assert "user_info" in Registration.model_fields


# The payload's hash


def hash_of(content: dict[str, Any]) -> str:
    return Registration.model_validate(content).payload_hash()


@pytest.mark.parametrize(
    "same",
    [
        CAMEL,
        dict(reversed(SNAKE.items())),
        registration(user_info=dict(reversed(SNAKE["user_info"].items()))),  # type: ignore[attr-defined]
        registration(unknown=MARKER),
        decode_json({"action": "registerUser", "data": CAMEL}).kwargs,
        json.loads(json.dumps(CAMEL, indent=3)),
        fields_of(Registration, tuple(SNAKE.values()), {}),
    ],
)
def test_the_same_payload_has_the_same_hash_in_any_spelling_order_and_door(
    same: dict[str, Any],
) -> None:
    assert hash_of(same) == hash_of(SNAKE)


def test_different_payloads_have_different_hashes() -> None:
    different = [
        SNAKE,
        registration(stock_id="s2"),
        registration(user_id="s1", stock_id="u1"),
        registration(index=4),
        registration(index=2, loan_count=3),
        registration(money=0),
        without("money"),
        user_info(nickname="Kim"),
        user_info(nickname="kim", gender="hi"),
        user_info(nickname="kim", introduction="hi"),
        user_info(nickname="é"),
        user_info(nickname="e\u0301"),
    ]
    assert len({hash_of(content) for content in different}) == len(different)


# Positional arguments


@pytest.mark.parametrize(
    ("args", "kwargs", "given"),
    [
        ((), {}, {}),
        (("s1",), {"user_id": "u1"}, {"stock_id": "s1", "user_id": "u1"}),
        (("s1", "u1"), {}, {"stock_id": "s1", "user_id": "u1"}),
        ((), {"userId": "u1"}, {"user_id": "u1"}),
        ((), {"unknown": 1}, {"unknown": 1}),
    ],
)
def test_positions_are_the_fields_in_their_order(
    args: tuple[Any, ...], kwargs: dict[str, Any], given: dict[str, Any]
) -> None:
    assert fields_of(Registration, args, kwargs) == given


@pytest.mark.parametrize(
    ("args", "kwargs", "fault"),
    [
        ((MARKER,) * 7, {}, r"at most 6 arguments \(stock_id, user_id, user_info"),
        (("s1", "u1"), {"user_id": "u2"}, "multiple values for argument 'user_id'"),
        (("s1", "u1"), {"userId": "u2"}, "multiple values for argument 'user_id'"),
        # Else one of the two is dropped without a word, and nobody can say which.
        ((), {"user_id": "u1", "userId": "u2"}, "multiple values for argument 'user_id'"),
        ((), {"userId": "u2", "user_id": "u1"}, "multiple values for argument 'user_id'"),
    ],
)
def test_too_many_positions_or_a_field_given_twice_are_refused(
    args: tuple[Any, ...], kwargs: dict[str, Any], fault: str
) -> None:
    with pytest.raises(TypeError, match=fault):
        fields_of(Registration, args, kwargs)
