"""A stored payload is compared across releases: in the terms of the worker that stored it."""

import hashlib
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, computed_field

from app.messages import Increment, Message, Registration, UserInfo, fields_of
from app.payload import Comparison, compare, known_to, record

SAME, DIFFERENT, UNREADABLE = Comparison.SAME, Comparison.DIFFERENT, Comparison.UNREADABLE

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"

LEAST = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": "kim"}}


# Releases


class UserInfoOfBefore(BaseModel):
    nickname: str
    gender: str = ""
    introduction: str = ""


class RegistrationOfBefore(BaseModel):
    """What the release knew that stored version 1 alone."""

    stock_id: str
    user_id: str
    user_info: UserInfoOfBefore
    index: int = 0
    money: int | None = None
    loan_count: int = 0


class NewerInfo(UserInfo):
    home_town: str = ""


class Newer(Registration):
    """The release after this one: an optional field more, and one more within another."""

    user_info: NewerInfo
    referred_by: str = ""
    level: int | None = None


class Newest(Newer):
    """And the one after that: an optional model, and a default that has changed."""

    class Wallet(Message):
        currency: str = "KRW"
        limit: int = 0

    wallet: Wallet | None = None
    index: int = 1


class Reduced(Message):
    """A release that has given up fields."""

    version_1 = Registration.version_1

    stock_id: str
    user_id: str


RELEASES = [Registration, Newer, Newest, Reduced]

#: What producers of these releases send.
BODIES = {
    "the least": LEAST,
    "all of today": LEAST
    | {"index": 3, "money": 0, "loanCount": 2}
    | {"userInfo": {"nickname": "kim", "gender": "F", "introduction": "hi"}},
    "a new field": LEAST | {"referredBy": "ann"},
    "a new field within another": LEAST | {"userInfo": {"nickname": "kim", "homeTown": "Seoul"}},
    "all of the newest": LEAST
    | {"referredBy": "ann", "level": 4, "wallet": {"limit": 5}, "index": 1}
    | {"userInfo": {"nickname": "kim", "homeTown": "Seoul"}},
    "what no release knows": LEAST | {"colour": "red", "userInfo": {"nickname": "kim", "x": [1]}},
}


def snake(content: Any) -> Any:
    """The same in the other spelling."""
    if not isinstance(content, dict):
        return content
    letters = {k: "".join(f"_{c.lower()}" if c.isupper() else c for c in k) for k in content}
    return {letters[k]: snake(value) for k, value in content.items()}


def read(model: type[Message], body: dict[str, Any]) -> Message:
    """As a worker of that release reads it."""
    return model.model_validate(fields_of(model, (), json.loads(json.dumps(body))))


def stored_by(model: type[Message], body: dict[str, Any]) -> dict[str, Any]:
    """The document of a worker of that release."""
    message = read(model, body)
    hash_ = message.payload_hash()
    return {"registration": {"payload_hash": hash_}, "payload": record(message)}


def stored_before(body: dict[str, Any]) -> dict[str, Any]:
    """The document of a worker of the release that stored version 1 alone."""
    content = RegistrationOfBefore.model_validate(snake(body)).model_dump(mode="json")
    return {"registration": {"payload_hash": old_hash(content)}}


def old_hash(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


# The same message again


Writer = type[Message] | None


def stored_by_any(writer: Writer, body: dict[str, Any]) -> dict[str, Any]:
    """The document of a worker of a release; of the one before all of these if None."""
    return stored_before(body) if writer is None else stored_by(writer, body)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("reader", RELEASES)
@pytest.mark.parametrize("writer", [None, *RELEASES])
def test_a_redelivery_is_the_same_in_every_release_and_in_either_spelling(
    writer: Writer, reader: type[Message], body: dict[str, Any]
) -> None:
    for spelt in (body, snake(body)):
        assert compare(stored_by_any(writer, body), read(reader, spelt)) is SAME


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("writer", RELEASES)
def test_the_release_of_before_reads_what_a_newer_one_stored(
    writer: type[Message], body: dict[str, Any]
) -> None:
    stored = stored_by(writer, body)["registration"]["payload_hash"]
    assert stored == stored_before(body)["registration"]["payload_hash"]


def test_version_1_is_what_the_release_of_before_has_made() -> None:
    # Stored in databases: it must not change with the models.
    body = LEAST | {"money": 0, "userInfo": {"nickname": "é", "gender": "F"}}
    assert read(Registration, body).payload_hash() == (
        "38f5c875376d5530a1b689b439cc4a95ff115c41e2035872c2a61cf88b7a0888"
    )
    assert Increment(input=1.5).payload_hash() == (
        "507d34051aa5714dfc43fd74dd783b72e7d9d6a426e29b272599e02f4a05e352"
    )


class Cat(Message):
    kind: Literal["cat"] = "cat"
    name: str = "Tom"


class Dog(Message):
    kind: Literal["dog"] = "dog"
    name: str = "Rex"


class Keeper(Message):
    version_1 = 'pet pet.kind pet.name since=""'

    pet: Cat | Dog
    since: str = ""


class Quiet(Message):
    version_1 = "name secret"

    name: str
    secret: str = Field(exclude=True)


class Counted(Message):
    version_1 = "name"

    name: str

    @computed_field
    def length(self) -> int:
        return len(self.name)


@pytest.mark.parametrize(
    ("model", "body", "stored"),
    [
        (Keeper, {"pet": {"kind": "dog"}}, {"pet": {"kind": "dog"}, "since": ""}),
        (Quiet, {"name": "a", "secret": "b"}, {"name": "a", "secret": "b"}),
        (Counted, {"name": "a"}, {"name": "a"}),
    ],
    ids=["one of several models", "a field that is not dumped", "a field that is computed"],
)
def test_version_1_has_its_fields_and_no_others_whatever_a_dump_of_the_model_has(
    model: type[Message], body: dict[str, Any], stored: dict[str, Any]
) -> None:
    # Otherwise what an earlier release has stored would be another payload.
    assert known_to(model) == model.version_1
    assert read(model, body).payload_hash() == old_hash(stored)


# Another payload, or the same: neither more nor less than what the worker knew that stored it

NEWEST = BODIES["all of the newest"]


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    """A body with one field less; of `userInfo`, only what is optional is missing."""
    least = {"userInfo": {"nickname": "kim"}} if name == "userInfo" else {}
    return {key: value for key, value in body.items() if key != name} | least


#: (what they differ in, the workers that see it, two payloads)
OTHERS: list[tuple[str, list[Writer], dict[str, Any], dict[str, Any]]] = [
    *(
        (f"{change}", [None, Registration, Newer, Newest], LEAST, LEAST | change)
        for change in (
            {"index": 7},
            {"money": 0},
            {"loanCount": 1},
            {"userInfo": {"nickname": "lee"}},
            {"userInfo": {"nickname": "kim", "gender": "F"}},
            {"userInfo": {"nickname": "kim", "introduction": "hi"}},
        )
    ),
    *(
        (f"{change} of {len(body)}", [Newest], body, body | change)
        for body in (NEWEST, LEAST)
        for change in (
            {"referredBy": "bob"},
            {"level": 0},
            {"wallet": {}},
            {"wallet": {"limit": 1}},
            {"userInfo": {"nickname": "kim", "homeTown": "Busan"}},
        )
    ),
    *(
        (f"no {name}", [Newest], NEWEST | {"index": 3}, without(NEWEST | {"index": 3}, name))
        for name in ("referredBy", "level", "wallet", "index", "userInfo")
    ),
    ("a default that has changed", [Newest], LEAST, LEAST | {"index": 0}),
    ("a value that is a later default", [Registration], LEAST, LEAST | {"index": 1}),
]

#: The same to these workers.
SAMES: list[tuple[str, list[Writer], dict[str, Any], dict[str, Any]]] = [
    ("unknown to all", list(RELEASES), LEAST | {"colour": "red"}, LEAST | {"colour": "blue"}),
    ("not known yet", [Registration], LEAST, LEAST | {"referredBy": "ann", "level": 3}),
    ("a default of then", [Registration], LEAST, LEAST | {"index": 0}),
    *(
        (f"the default {default}", [Newer], LEAST, LEAST | default)
        for default in (
            {"index": 0, "loanCount": 0, "money": None},
            {"userInfo": {"nickname": "kim", "gender": "", "introduction": ""}},
            {"referredBy": "", "level": None},
            {"userInfo": {"nickname": "kim", "homeTown": ""}},
        )
    ),
]


@pytest.mark.parametrize("reader", RELEASES)
@pytest.mark.parametrize(
    ("writers", "one", "other", "verdict"),
    [
        pytest.param(writers, one, other, verdict, id=f"{verdict.name}: {what}")
        for verdict, cases in ((DIFFERENT, OTHERS), (SAME, SAMES))
        for what, writers, one, other in cases
    ],
)
def test_a_payload_is_another_one_in_every_release_if_it_is_to_the_worker_that_stored_it(
    writers: list[Writer],
    reader: type[Message],
    one: dict[str, Any],
    other: dict[str, Any],
    verdict: Comparison,
) -> None:
    for writer in writers:
        for stored, sent in ((one, other), (other, one)):
            for spelt in (sent, snake(sent)):
                assert compare(stored_by_any(writer, stored), read(reader, spelt)) is verdict


values = {
    "index": st.integers(0, 2),
    "money": st.none() | st.integers(0, 1),
    "referredBy": st.sampled_from(["", "ann"]),
    "level": st.none() | st.integers(0, 1),
    "wallet": st.none()
    | st.fixed_dictionaries(
        {}, optional={"limit": st.integers(0, 1), "currency": st.sampled_from(["KRW", "EUR"])}
    ),
    "colour": st.sampled_from(["red", "blue"]),
}
bodies = st.fixed_dictionaries(
    {
        "stockId": st.just("s1"),
        "userId": st.just("u1"),
        "userInfo": st.fixed_dictionaries(
            {"nickname": st.sampled_from(["kim", "lee"])},
            optional={"gender": st.sampled_from(["", "F"]), "homeTown": st.sampled_from(["", "S"])},
        ),
    },
    optional=values,
)


@given(
    writer=st.sampled_from(RELEASES),
    reader=st.sampled_from(RELEASES),
    one=bodies,
    other=bodies,
    is_snake=st.booleans(),
)
def test_two_payloads_are_the_same_if_they_are_to_the_worker_that_stored_one(
    writer: type[Message],
    reader: type[Message],
    one: dict[str, Any],
    other: dict[str, Any],
    is_snake: bool,
) -> None:
    to_the_writer = read(writer, one).model_dump() == read(writer, other).model_dump()
    compared = compare(stored_by(writer, one), read(reader, snake(other) if is_snake else other))
    assert compared is (SAME if to_the_writer else DIFFERENT)


# Fields of every shape


class Reading(Message):
    """A model whose fields are read as something else than what was given."""

    name: str
    read_at: datetime | None = None
    score: float = 0
    tags: set[str] = Field(default_factory=set)
    price: Decimal | None = None


class Unread(Message):
    name: str


@pytest.mark.parametrize("reader", [Reading, Unread])
@pytest.mark.parametrize("writer", [Reading, Unread])
def test_what_is_read_as_something_else_is_the_same_when_it_comes_again(
    writer: type[Message], reader: type[Message]
) -> None:
    body = {"name": "n", "readAt": "2026-01-02T03:04:05+00:00", "score": 1, "tags": ["b", "a"] * 3}
    body |= {"price": "1.50"}
    assert compare(stored_by(writer, body), read(reader, body)) is SAME
    other = body | {"name": "m"}
    assert compare(stored_by(writer, body), read(reader, other)) is DIFFERENT


class Item(Message):
    sku: str
    count: int = 1


class Order(Message):
    items: list[Item] = Field(default_factory=list)
    by_name: dict[str, Item] = Field(default_factory=dict)
    best: Item = Item(sku="none")


class NewerItem(Item):
    gift_wrap: bool = False


class NewerOrder(Message):
    items: list[NewerItem] = Field(default_factory=list)
    by_name: dict[str, NewerItem] = Field(default_factory=dict)
    best: NewerItem = NewerItem(sku="none")


ORDER = {
    "items": [{"sku": "a"}, {"sku": "b", "count": 2}],
    "byName": {"x": {"sku": "c"}},
    "best": {"sku": "d", "count": 1},
}
WRAPPED = {
    "items": [{"sku": "a", "giftWrap": True}, {"sku": "b", "count": 2}],
    "byName": {"x": {"sku": "c", "gift_wrap": True}},
    "best": {"sku": "d", "count": 1},
}


@pytest.mark.parametrize("reader", [Order, NewerOrder])
@pytest.mark.parametrize("writer", [Order, NewerOrder])
def test_a_new_field_of_the_elements_of_a_field_is_no_other_payload(
    writer: type[Message], reader: type[Message]
) -> None:
    stored = stored_by(writer, ORDER)
    assert compare(stored, read(reader, {**ORDER, "best": {"sku": "d"}})) is SAME
    assert compare(stored, read(reader, {**ORDER, "byName": {}})) is DIFFERENT
    assert compare(stored, read(reader, {**ORDER, "items": ORDER["items"][::-1]})) is DIFFERENT
    is_known = writer is NewerOrder
    assert compare(stored, read(reader, WRAPPED)) is (DIFFERENT if is_known else SAME)
    assert compare(stored_by(writer, WRAPPED), read(reader, snake(WRAPPED))) is SAME


class Owner(Message):
    pet: Cat | Dog


class Tree(Message):
    name: str = ""
    branches: tuple["Tree", ...] = ()


class Anything(Message):
    value: Any = 0
    text: str = "two words = more"


CATS = [{"name": "Max"}, {"kind": "cat", "name": "Rex"}, {"kind": "cat", "name": "Tom"}]
DOGS = [{"kind": "dog", "name": "Max"}, {"kind": "dog"}, {"kind": "dog", "name": "Tom"}]
TREE, OTHER_TREE = (
    {"name": "a", "branches": [{"name": "b", "branches": [{"name": leaf}]}]} for leaf in "cd"
)
LEAST_ORDER = without(ORDER, "best")
TEXT = {"text": "two words = more"}


@pytest.mark.parametrize(
    ("model", "one", "other", "verdict"),
    [
        # A field that is left out is its default, also if that is a model, or any text.
        (Order, LEAST_ORDER, LEAST_ORDER | {"best": {"sku": "none"}}, SAME),
        (Order, LEAST_ORDER, LEAST_ORDER | {"best": {"sku": "none", "count": 1}}, SAME),
        (Order, LEAST_ORDER, LEAST_ORDER | {"best": {"sku": ""}}, DIFFERENT),
        (Anything, TEXT, {}, SAME),
        (Anything, TEXT, {"text": "two"}, DIFFERENT),
        # Two models that one field may hold are told apart.
        *((Owner, {"pet": pet}, {"pet": pet}, SAME) for pet in CATS + DOGS),
        *(
            (Owner, {"pet": one}, {"pet": other}, DIFFERENT)
            for cat, dog in zip(CATS, DOGS, strict=True)
            for one, other in ((cat, dog), (dog, cat))
        ),
        # Their defaults differ: neither is that of the field.
        (Owner, {"pet": {"kind": "dog"}}, {"pet": {"kind": "dog", "name": "Tom"}}, DIFFERENT),
        (Owner, {"pet": {"kind": "cat"}}, {"pet": {"kind": "cat", "name": "Rex"}}, DIFFERENT),
        # A model within itself is compared whole.
        (Tree, TREE, TREE, SAME),
        (Tree, TREE, OTHER_TREE, DIFFERENT),
        # Values of several types are told apart.
        *(
            (Anything, one, other, DIFFERENT)
            for value in (1, 1.0, True, "1", [1], {"1": 1}, None, False, 0.0, "")
            for one, other in (
                ({"value": value}, {}),
                ({}, {"value": value}),
                ({"value": [value]}, {"value": [0]}),
            )
        ),
    ],
    ids=str,
)
def test_fields_of_every_shape_are_compared(
    model: type[Message], one: dict[str, Any], other: dict[str, Any], verdict: Comparison
) -> None:
    assert compare(stored_by(model, one), read(model, other)) is verdict


@pytest.mark.parametrize(
    "value", [datetime(2026, 1, 2, tzinfo=UTC), date(2026, 1, 2), Decimal("1.5"), object()]
)
def test_what_a_producer_in_python_gives_beyond_json_is_compared(value: Any) -> None:
    for body in ({"value": 1, "more": value}, {"more": [value]}):
        message = Anything.model_validate(body)
        stored = {"payload_hash": message.payload_hash(), "payload": record(message)}
        assert compare(stored, Anything.model_validate(body)) is SAME


# Models without a frozen version 1


def test_a_model_of_later_is_compared_by_what_it_was_when_it_was_stored() -> None:
    stored = stored_by(Item, {"sku": "a"})
    assert compare(stored, read(NewerItem, {"sku": "a"})) is SAME
    assert stored["registration"]["payload_hash"] == old_hash({"sku": "a", "count": 1})


# What cannot be read

GOOD = {"payload_hash": read(Registration, LEAST).payload_hash()} | {
    "payload": record(read(Registration, LEAST))
}


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"payload_hash": None},
        {"payload_hash": 5},
        {"registration": None},
        {"registration": "text"},
        {"registration": {"message_id": "m1"}},
        GOOD | {"payload_hash": None},
        GOOD | {"payload": "text"},
        GOOD | {"payload": []},
        GOOD | {"payload": {}},
        GOOD | {"payload": {"version": 2}},
        GOOD | {"payload": GOOD["payload"] | {"hash": None}},
        GOOD | {"payload": GOOD["payload"] | {"known": ["stock_id"], "given": 5}},
        GOOD | {"payload": GOOD["payload"] | {"known": "stock_id={", "given": None}},
    ],
    ids=str,
)
def test_what_somebody_edited_is_neither_the_same_nor_another(stored: dict[str, Any]) -> None:
    assert compare(stored, read(Registration, LEAST)) is UNREADABLE


@pytest.mark.parametrize(("hash_", "expected"), [(None, SAME), ("x", DIFFERENT)])
def test_of_a_later_release_version_1_is_read(hash_: str | None, expected: Comparison) -> None:
    stored = {"payload_hash": hash_ or GOOD["payload_hash"], "payload": {"version": 3, "x": 1}}
    assert compare(stored, read(Registration, LEAST)) is expected


NAMES = ["version", "hash", "known", "given", "payload_hash", "payload", "registration"]
documents = st.recursive(
    st.none() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner),
)


@given(documents)
def test_no_document_makes_a_comparison_fail(content: Any) -> None:
    for stored in ({"payload_hash": "x", "payload": content}, {"registration": content}):
        assert compare(stored, read(Registration, LEAST)) in Comparison


# What a message was made of changes nothing else


def test_what_a_model_does_not_know_is_nowhere_to_be_seen() -> None:
    body = LEAST | {"more": MARKER, "userInfo": {"nickname": "kim", "more": MARKER}}
    message = read(Registration, body)
    plain = read(Registration, LEAST)
    assert MARKER not in f"{message!r} {message} {message.model_dump()} {dict(message)}"
    assert (
        MARKER not in f"{message.model_dump_json()} {vars(message)} {message.__pydantic_private__}"
    )
    assert message == plain
    assert hash(message) == hash(plain)
    assert message.model_fields_set == plain.model_fields_set
    assert not hasattr(message, "more")


def test_nothing_of_a_message_is_in_its_record() -> None:
    body = LEAST | {"more": MARKER, "userInfo": {"nickname": MARKER, "introduction": MARKER}}
    assert MARKER not in str(record(read(Registration, body)))


def test_a_copy_with_another_value_is_another_payload() -> None:
    message = read(Registration, LEAST)
    stored = {"payload_hash": message.payload_hash(), "payload": record(message)}
    assert compare(stored, message.model_copy()) is SAME
    assert compare(stored, message.model_copy(update={"index": 5})) is DIFFERENT


def test_a_message_that_was_made_in_python_is_compared_too() -> None:
    made = Registration(stock_id="s1", user_id="u1", user_info=UserInfo(nickname="kim"))
    constructed = Registration.model_construct(
        stock_id="s1", user_id="u1", user_info=UserInfo(nickname="kim")
    )
    for message in (made, constructed):
        stored = {"payload_hash": message.payload_hash(), "payload": record(message)}
        assert compare(stored, read(Registration, LEAST)) is SAME
        assert compare(stored, read(Registration, LEAST | {"index": 2})) is DIFFERENT
    assert made == constructed == read(Registration, LEAST)


def test_what_a_model_knows_is_told_in_one_line() -> None:
    assert known_to(Newest) == (
        'index=1 level=null loan_count=0 money=null referred_by="" stock_id user_id user_info '
        'user_info.gender="" user_info.home_town="" user_info.introduction="" user_info.nickname '
        'wallet=null wallet.currency="KRW" wallet.limit=0'
    )
