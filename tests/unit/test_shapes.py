"""Shapes: what was accepted before is read quicker, and just the same."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.messages import decode_json
from bench.bodies import celery, stock_celery
from sqs_broker.errors import Undecodable
from sqs_broker.rules.content import parsed
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.shapes import LONGEST, MOST, Fields, Shapes
from tests.bodies import (
    AWKWARD,
    NOTHING,
    NOTIFICATION,
    bodies,
    in_base64,
    json_values,
    places,
    replaced,
)
from tests.bodies import ENVELOPE as USUAL

MANY = settings(derandomize=True, database=None, max_examples=400)

FIELDS = Fields({}, (), (), ())

#: More of each type than the values of a message that all is right with.
OF_A_TYPE: dict[type, list[Any]] = {
    str: [
        "", "x" * 255, "x" * 256, "ä", "\ud800", "base64", "utf-8", "latin-1", "application/json",
        "application/x-python-serialize", "tomorrow", "2026-01-02T03:04:05Z", "celery.chain",
        "[]", "[[], {}, {}]", "[[], {}, null]", '[[], {}, {"chain": 1}]', "[[], {}, NaN]",
        '[[{"__type__": "uuid", "__value__": "Kim"}], {}, {}]', "[" * 70 + "]" * 70, "W10=",
    ],
    int: [-1, 0, 2**80],
    float: [-1.0, 1e308, float("nan"), float("inf")],
    bool: [True, False],
    list: [[], [None], [None, None], [1, 0.5], [-1, None], [1, True], ["a"], [[[[[[]]]]]]],
    dict: [{}, {"a": {"b": []}}, {"traceparent": "00-" + "1" * 32 + "-" + "1" * 16 + "-01"}],
}  # fmt: skip


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """Two envelopes: one with other fields than most, and one that may have the same shape."""
    first: Any = USUAL
    for _ in range(draw(st.integers(0, 3))):
        part = draw(st.sampled_from([(), ("headers",), ("properties",)]))
        name = draw(st.sampled_from([*NAMES, "x", "traceparent", "request_id", "is_eager"]))
        value = draw(st.just(NOTHING) | st.sampled_from(AWKWARD) | json_values)
        first = with_field(first, (*part, name), value)
    second = first
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from([place for place in places(second) if place]))
        values = OF_A_TYPE.get(type(at(second, place)), [None])
        second = replaced(second, place, draw(st.sampled_from(values)))
    how = draw(st.sampled_from([as_text, as_text, in_a_notification, twice_encoded]))
    return how(first), how(second)


NAMES = sorted({*USUAL, *USUAL["headers"], *USUAL["properties"]})


def with_field(content: Any, place: tuple[str, ...], value: Any) -> Any:
    """The same with one field more, less or changed."""
    *around, name = place
    inner = at(content, tuple(around))
    if not isinstance(inner, dict) or (value is NOTHING and name not in inner):
        return content
    left = {key: given for key, given in inner.items() if key != name}
    return replaced(content, tuple(around), left if value is NOTHING else {**inner, name: value})


def at(content: Any, place: tuple[str | int, ...]) -> Any:
    for key in place:
        content = content.get(key) if isinstance(content, dict) else content[key]
    return content


def as_text(content: Any) -> str:
    if isinstance(content.get("body"), list):
        content = content | {"body": json.dumps(content["body"])}
    return json.dumps(content)


def in_a_notification(content: Any) -> str:
    return json.dumps(NOTIFICATION | {"Message": as_text(content)})


def twice_encoded(content: Any) -> str:
    """As kombu's SQS transport writes it."""
    if isinstance(content.get("properties"), dict):
        properties = content["properties"] | {"body_encoding": "base64"}
        body = in_base64(json.dumps(content.get("body")))
        content = content | {"properties": properties, "body": body}
    return in_base64(json.dumps(content))


def decoded(body: str, shapes: Shapes, **facts: Any) -> str:
    """All that can be told apart of what a body becomes: repr shows each value with its type."""
    sent_at = datetime(2026, 1, 2, tzinfo=UTC)
    delivery = Delivery("1", "jobs", "m", "r", body, {}, 1, sent_at, 0.0, **facts)
    try:
        return repr(decode(delivery, decode_json, shapes))
    except Undecodable as exc:
        return f"Undecodable: {exc}"


@MANY
@given(bodies_=pairs() | st.tuples(bodies, bodies))
def test_a_message_is_decoded_the_same_whatever_was_decoded_before(
    bodies_: tuple[str, str],
) -> None:
    shapes = Shapes()
    for body in (*bodies_, *bodies_):
        assert decoded(body, shapes) == decoded(body, Shapes())


@pytest.mark.parametrize("make", [celery, stock_celery], ids=["this project", "stock Celery"])
def test_each_further_message_of_a_producer_needs_no_check_by_name(make: Any) -> None:
    shapes, body = Shapes(), make("register", "jobs")
    decoded(body("u1"), shapes)
    assert shapes.read(inside(body("u2"))) is not None


def inside(body: str) -> dict[str, Any]:
    text = body if body.startswith("{") else base64.b64decode(body).decode()
    content: dict[str, Any] = json.loads(text)
    return content


def test_a_message_with_limits_of_its_own_and_a_trace_needs_no_check_either() -> None:
    shapes = Shapes()
    headers = USUAL["headers"] | {"timelimit": [30, 20.5], "traceparent": "a", "x-own": {"a": [1]}}
    content = USUAL | {"headers": headers, "body": json.dumps(USUAL["body"])}
    decoded(json.dumps(content), shapes)
    assert shapes.read(content) is not None


#: With a string in each field that may have one.
ENCODED = USUAL | {"properties": USUAL["properties"] | {"body_encoding": "utf-8"}}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("headers", "task"), ""),
        (("headers", "task"), "x" * 256),
        (("headers", "task"), "\ud800"),
        (("headers", "id"), ""),
        (("headers", "id"), "x" * 256),
        (("headers", "id"), "\ud800"),
        (("headers", "timelimit"), [1]),
        (("headers", "timelimit"), [-1, None]),
        (("headers", "timelimit"), [None, float("nan")]),
        (("content-type",), "application/x-python-serialize"),
        (("content-encoding",), "latin-1"),
        (("properties", "body_encoding"), "latin-1"),
    ],
)
def test_a_value_that_is_refused_is_not_read_by_its_shape(
    place: tuple[str, ...], value: Any
) -> None:
    shapes = Shapes()
    shapes.remember(ENCODED, FIELDS)
    assert shapes.read(ENCODED) is not None
    assert shapes.read(replaced(ENCODED, place, value)) is None


@pytest.mark.parametrize(
    ("name", "value"), [("stamped_headers", ["a"]), ("compression", "application/x-gzip")]
)
def test_a_field_that_is_asked_for_more_than_a_type_is_checked_each_time(
    name: str, value: Any
) -> None:
    shapes = Shapes()
    content = USUAL | {"headers": USUAL["headers"] | {name: value}}
    shapes.remember(content, FIELDS)
    assert shapes.read(content) is None


def test_the_same_names_in_other_parts_are_another_shape() -> None:
    shapes = Shapes()
    shapes.remember(USUAL, FIELDS)
    headers = dict(USUAL["headers"])
    # The first name of the headers is now the last one around them.
    moved = USUAL | {"lang": headers.pop("lang"), "headers": headers}
    assert shapes.read(USUAL) is not None
    assert shapes.read(moved) is None


def test_so_many_shapes_are_remembered_and_no_long_ones() -> None:
    shapes = Shapes()
    shapes.remember(USUAL, FIELDS)
    for number in range(MOST):
        shapes.remember(USUAL | {f"n{number}": 0}, FIELDS)
    assert shapes.read(USUAL | {"n0": 0}) is None
    assert shapes.read(USUAL | {f"n{MOST - 1}": 0}) is not None
    long = USUAL | {"x" * LONGEST: 0}
    shapes.remember(long, FIELDS)
    assert shapes.read(long) is None


spaces = st.text(" \n\t\r\ufeff\u00a0", max_size=2)
json_texts = st.tuples(spaces, json_values.map(json.dumps) | st.text(max_size=6), spaces)


@MANY
@given(text=json_texts.map("".join))
def test_a_text_is_parsed_as_json_loads_does_it(text: str) -> None:
    assert outcome_of(parsed, text) == outcome_of(json.loads, text)


def outcome_of(parse: Any, text: str) -> str:
    try:
        return repr(parse(text))
    except ValueError as exc:
        return repr(exc)
