"""The dead letter: the original body and attributes, and why, within what SQS takes."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sqs_broker.limits import MOST_ATTRIBUTES
from sqs_broker.rules.attributes import DEAD_LETTER, size
from sqs_broker.rules.dead_letter import (
    LONGEST_REASON,
    attributes_of,
    read_note,
    restored,
)
from sqs_broker.rules.outcomes import DeadLetter
from tests.unit.conftest import MakeDelivery

LIMIT = 262_144
OUTCOME = DeadLetter("no such task", "KeyError")

#: What SQS takes in a body and in the text of an attribute: the characters of XML 1.0.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
ALLOWED = re.compile("[\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")


def text(value: str) -> dict[str, Any]:
    return {"DataType": "String", "StringValue": value}


def binary(value: bytes) -> dict[str, Any]:
    return {"DataType": "Binary.png", "BinaryValue": value}


def many(number: int) -> dict[str, dict[str, Any]]:
    return {f"name-{n}": text(f"value-{n}") for n in range(number)}


def note_of(attributes: dict[str, Any]) -> dict[str, Any]:
    note = read_note(attributes)
    assert note is not None
    return note


def test_the_note_says_why_what_and_where_from(make_delivery: MakeDelivery) -> None:
    delivery = make_delivery(count=3, queue="jobs")
    note = note_of(attributes_of(delivery, OUTCOME, "registerUser", "id-1", LIMIT))
    at = datetime.fromisoformat(note.pop("at"))
    assert timedelta() <= datetime.now(UTC) - at < timedelta(minutes=1)
    assert note == {
        "reason": "no such task",
        "error": "KeyError",
        "task": "registerUser",
        "message_id": "id-1",
        "deliveries": 3,
        "source_queue": "jobs",
    }


def test_a_message_that_was_never_decoded_is_known_by_the_id_of_sqs(
    make_delivery: MakeDelivery,
) -> None:
    note = note_of(attributes_of(make_delivery(message_id="sqs-7"), OUTCOME, None, None, LIMIT))
    assert (note["task"], note["message_id"]) == (None, "sqs-7")


@pytest.mark.parametrize("number", [0, 1, 9])
def test_up_to_nine_attributes_stay_as_they_are(make_delivery: MakeDelivery, number: int) -> None:
    delivery = make_delivery(attributes=many(number))
    attributes = attributes_of(delivery, OUTCOME, None, None, LIMIT)
    note = attributes.pop(DEAD_LETTER)
    assert attributes == many(number)
    assert note["DataType"] == "String"


@pytest.mark.parametrize(
    ("last", "displaced"),
    [
        (text("정보"), {"DataType": "String", "StringValue": "정보"}),
        (
            {"DataType": "Number", "StringValue": "7"},
            {"DataType": "Number", "StringValue": "7"},
        ),
        (binary(b"\x00\xff"), {"DataType": "Binary.png", "base64": "AP8="}),
    ],
)
def test_the_last_of_ten_attributes_joins_the_note(
    make_delivery: MakeDelivery, last: dict[str, Any], displaced: dict[str, Any]
) -> None:
    delivery = make_delivery(attributes=many(9) | {"last": last})
    attributes = attributes_of(delivery, OUTCOME, None, None, LIMIT)
    assert len(attributes) == MOST_ATTRIBUTES
    assert note_of(attributes)["displaced"] == {"name": "last"} | displaced
    assert {n: v for n, v in attributes.items() if n != DEAD_LETTER} == many(9)


def test_the_note_of_an_earlier_dead_letter_is_replaced(make_delivery: MakeDelivery) -> None:
    # A message that was redriven, and failed again.
    delivery = make_delivery(attributes={DEAD_LETTER: text('{"reason": "earlier"}')} | many(9))
    attributes = attributes_of(delivery, OUTCOME, None, None, LIMIT)
    assert note_of(attributes)["reason"] == "no such task"
    assert "displaced" not in note_of(attributes)
    assert len(attributes) == MOST_ATTRIBUTES


def test_a_long_reason_is_cut(make_delivery: MakeDelivery) -> None:
    outcome = DeadLetter("x" * 5_000, "ValueError")
    note = note_of(attributes_of(make_delivery(), outcome, None, None, LIMIT))
    assert note["reason"] == "x" * LONGEST_REASON


def test_a_message_that_fits_exactly_keeps_its_whole_reason(make_delivery: MakeDelivery) -> None:
    delivery = make_delivery(body="b" * 5_000)
    exactly = size(delivery.body, attributes_of(delivery, OUTCOME, None, None, LIMIT))
    attributes = attributes_of(delivery, OUTCOME, None, None, exactly)
    assert note_of(attributes)["reason"] == "no such task"


@pytest.mark.parametrize("reason", ["no such task", "정보" * 100, "\x00\ud800" * 50])
def test_a_reason_that_does_not_fit_is_shortened(make_delivery: MakeDelivery, reason: str) -> None:
    outcome = DeadLetter(reason, "KeyError")
    delivery = make_delivery(body="b" * 5_000, attributes=many(2))
    limit = size(delivery.body, attributes_of(delivery, outcome, None, None, LIMIT)) - 8
    attributes = attributes_of(delivery, outcome, None, None, limit)
    shortened = note_of(attributes)["reason"]
    assert reason.startswith(shortened)
    assert 0 < len(shortened) < len(reason)
    assert size(delivery.body, attributes) <= limit


@pytest.mark.parametrize("room", [0, 20, 80])
@pytest.mark.parametrize("number", [0, 9, 10])
def test_a_note_that_does_not_fit_at_all_is_left_off(
    make_delivery: MakeDelivery, number: int, room: int
) -> None:
    delivery = make_delivery(body="b" * 5_000, attributes=many(number))
    limit = size(delivery.body, delivery.attributes) + room
    assert attributes_of(delivery, OUTCOME, None, None, limit) == many(number)


def test_where_the_note_does_not_fit_that_of_an_earlier_dead_letter_goes_too(
    make_delivery: MakeDelivery,
) -> None:
    # Else an operator reads a reason that is not that of this failure.
    attributes = many(1) | {DEAD_LETTER: text('{"reason": "earlier"}')}
    delivery = make_delivery(body="b" * 5_000, attributes=attributes)
    limit = size(delivery.body, delivery.attributes)
    assert attributes_of(delivery, OUTCOME, None, None, limit) == many(1)


@pytest.mark.parametrize("number", [0, 5, 9, 10])
@pytest.mark.parametrize("excess", [1, 50, 150, 300, 5_000])
def test_the_copy_is_never_beyond_the_limit(
    make_delivery: MakeDelivery, number: int, excess: int
) -> None:
    outcome = DeadLetter("\x00정" * 500, "KeyError")
    delivery = make_delivery(body="b" * 5_000, attributes=many(number))
    with_all = size(delivery.body, attributes_of(delivery, outcome, "task", "id", LIMIT))
    limit = max(with_all - excess, size(delivery.body, delivery.attributes))
    attributes = attributes_of(delivery, outcome, "task", "id", limit)
    assert size(delivery.body, attributes) <= limit
    assert len(attributes) <= MOST_ATTRIBUTES


@pytest.mark.parametrize(
    "hostile", ["\x00\x01\x1b\x7f", "\ud800", "\ufffe\uffff", "line\nline", 'quote"\\', "😀정보"]
)
def test_the_note_holds_only_characters_that_sqs_takes(
    make_delivery: MakeDelivery, hostile: str
) -> None:
    delivery = make_delivery(attributes=many(9) | {"last": text(hostile)}, queue="jobs")
    attributes = attributes_of(delivery, DeadLetter(hostile, hostile), hostile, hostile, LIMIT)
    assert ALLOWED.fullmatch(attributes[DEAD_LETTER]["StringValue"])
    note = note_of(attributes)
    assert note["reason"] == note["task"] == note["message_id"] == hostile
    assert note["displaced"]["StringValue"] == hostile


def test_the_name_of_the_note_is_one_that_sqs_takes() -> None:
    assert re.fullmatch(r"(?!AWS\.|Amazon\.)(?!\.)[A-Za-z0-9_.-]{1,256}(?<!\.)", DEAD_LETTER)


@pytest.mark.parametrize(
    ("body", "attributes", "bytes_"),
    [
        ("", {}, 0),
        ("body", {}, 4),
        ("정보", {}, 6),
        ("😀", {}, 4),
        # Never a reason to fail on the way to the dead-letter queue.
        ("\ud800", {"n": text("\udfff")}, 3 + 1 + 6 + 3),
        # Name, data type and value count; https://docs.aws.amazon.com/AWSSimpleQueueService/
        # latest/SQSDeveloperGuide/sqs-message-metadata.html#sqs-message-attributes
        ("body", {"name": text("value")}, 4 + 4 + 6 + 5),
        ("", {"n": {"DataType": "Number", "StringValue": "12"}}, 1 + 6 + 2),
        ("", {"n": text("정")}, 1 + 6 + 3),
        ("", {"n": binary(b"\x00\xff\xfe")}, 1 + 10 + 3),
        ("", {"n": binary(b"")}, 1 + 10),
        ("x", {"a": text("1"), "b": text("2")}, 1 + 8 + 8),
    ],
)
def test_the_size_is_counted_as_aws_documents_it(
    body: str, attributes: dict[str, Any], bytes_: int
) -> None:
    assert size(body, attributes) == bytes_


def test_a_dead_letter_that_sqs_moved_itself_has_no_note() -> None:
    assert read_note(many(2)) is None


def test_the_note_is_json_under_its_attribute(make_delivery: MakeDelivery) -> None:
    attributes = attributes_of(make_delivery(), OUTCOME, None, None, LIMIT)
    assert json.loads(attributes[DEAD_LETTER]["StringValue"]) == read_note(attributes)


@pytest.mark.parametrize("last", [text("정보"), binary(b"\x00\xff")])
@pytest.mark.parametrize("number", [0, 1, 9])
def test_the_attributes_come_back_as_they_were(
    make_delivery: MakeDelivery, number: int, last: dict[str, Any]
) -> None:
    before = many(number) | {"last": last}
    assert restored(
        attributes_of(make_delivery(attributes=before), OUTCOME, None, None, LIMIT)
    ) == (before)


@pytest.mark.parametrize(
    "note", ["", "[]", "no JSON", '{"displaced": 7}', '{"displaced": {"name": "a"}}']
)
def test_a_note_of_somebody_elses_is_only_taken_off(note: str) -> None:
    assert restored({DEAD_LETTER: text(note)} | many(2)) == many(2)
