"""What SQS would refuse is refused at the caller; what is sent, a stock worker reads."""

import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from kombu.transport.SQS import Channel as StockChannel

from sqs_broker.errors import EtaTooFar, MessageTooLarge, PublishError
from sqs_broker.limits import LONGEST_DELAY, MOST_ATTRIBUTES
from sqs_broker.rules.due import ETA_MAX, seconds_until_due
from sqs_broker.rules.short_form import shortened
from sqs_broker.sqs.publisher import message_for

LIMIT = 262_144
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def message(body: Any = "[[], {}, {}]", eta: Any = None, **properties: Any) -> dict[str, Any]:
    """A message as kombu hands it to a channel."""
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "t", "id": "1", "eta": eta},
        "properties": {"delivery_info": {}, "priority": 0, "body_encoding": None} | properties,
    }


def attributes(number: int) -> dict[str, Any]:
    return {f"n{n}": {"DataType": "String", "StringValue": "v"} for n in range(number)}


def test_a_message_that_is_due_has_no_attributes_and_no_delay() -> None:
    sent = message_for(message(), LIMIT)
    assert (sent.attributes, sent.delay) == ({}, None)


def test_the_body_is_json_without_base64() -> None:
    sent = message_for(message('[[], {"nickname": "정보"}, {}]'), LIMIT)
    envelope = json.loads(sent.body)
    assert json.loads(envelope["body"]) == [[], {"nickname": "정보"}, {}]
    assert envelope == shortened(message('[[], {"nickname": "정보"}, {}]'))


def test_a_stock_worker_reads_what_we_send() -> None:
    # The stock path without its constructor, which opens a connection.
    stock = object.__new__(StockChannel)
    text = stock._decode_python_message_body(message_for(message(), LIMIT).body).decode()
    payload = stock._prepare_json_payload(text)
    tagged = payload | {"properties": payload["properties"] | {"delivery_tag": 1}}
    read = StockChannel.Message(tagged, channel=stock)
    assert read.decode() == [[], {}, {}]
    assert read.headers["task"] == "t"


def test_attributes_travel_beside_the_body_and_not_in_it() -> None:
    sent = message_for(message(message_attributes=attributes(1)), LIMIT)
    assert sent.attributes == attributes(1)
    assert "message_attributes" not in json.loads(sent.body)["properties"]


# Refused before any call


def body_of_size(bytes_: int, **properties: Any) -> dict[str, Any]:
    """A message that is so many bytes on the wire, attributes included."""
    around = message_for(message("", **properties), LIMIT).size
    return message("x" * (bytes_ - around), **properties)


@pytest.mark.parametrize("limit", [1_024, 262_144, 1_048_576])
def test_a_message_at_the_limit_is_sent(limit: int) -> None:
    assert len(message_for(body_of_size(limit), limit).body.encode()) == limit


@pytest.mark.parametrize("limit", [1_024, 262_144, 1_048_576])
def test_a_message_a_byte_beyond_the_limit_is_refused(limit: int) -> None:
    with pytest.raises(MessageTooLarge, match=f"{limit + 1} bytes; the queue accepts {limit}"):
        message_for(body_of_size(limit + 1), limit)


def test_attributes_count_towards_the_limit() -> None:
    at_the_limit = body_of_size(LIMIT)
    at_the_limit["properties"]["message_attributes"] = attributes(1)
    with pytest.raises(MessageTooLarge):
        message_for(at_the_limit, LIMIT)


def test_bytes_are_refused() -> None:
    # `compression=` makes bytes of a body.
    with pytest.raises(PublishError, match="without compression"):
        message_for(message(b"\x78\x9c"), LIMIT)


def test_ten_attributes_are_sent_and_eleven_refused() -> None:
    sent = message_for(message(message_attributes=attributes(MOST_ATTRIBUTES)), LIMIT)
    assert len(sent.attributes) == MOST_ATTRIBUTES
    with pytest.raises(PublishError, match="10 attributes; there are 11"):
        message_for(message(message_attributes=attributes(11)), LIMIT)


# Delays


@pytest.mark.parametrize(
    ("due_in", "seconds"),
    [
        (timedelta(0), 0),
        (timedelta(seconds=-1), 0),
        (timedelta(days=-400), 0),
        (timedelta(microseconds=1), 1),
        (timedelta(seconds=1), 1),
        (timedelta(seconds=1, microseconds=1), 2),
        (timedelta(seconds=9.9), 10),
        (timedelta(days=2), 172_800),
    ],
)
@pytest.mark.parametrize("offset", [timedelta(0), timedelta(hours=9), timedelta(hours=-5)])
def test_the_time_until_a_task_is_due_is_rounded_up_in_any_time_zone(
    due_in: timedelta, seconds: int, offset: timedelta
) -> None:
    eta = (NOW + due_in).astimezone(timezone(offset)).isoformat()
    assert seconds_until_due({"eta": eta}, NOW) == seconds


@pytest.mark.parametrize("eta", ["2026-01-02T03:04:15", "2026-01-02T03:04:15Z"])
def test_an_eta_without_a_time_zone_is_utc(eta: str) -> None:
    assert seconds_until_due({"eta": eta}, NOW) == 10


@pytest.mark.parametrize("headers", [{}, {"eta": None}])
def test_a_task_without_an_eta_is_due(headers: dict[str, Any]) -> None:
    assert seconds_until_due(headers) == 0


@pytest.mark.parametrize("days", [15, 3_000])
def test_an_eta_that_is_too_far_is_refused(days: float) -> None:
    eta = (datetime.now(UTC) + timedelta(days=days)).isoformat()
    with pytest.raises(EtaTooFar, match=r"more than 1209600 s from now.*`eta_max`"):
        message_for(message(eta=eta), LIMIT)
    assert message_for(message(eta=eta), LIMIT, eta_max=days * 86_400).delay == LONGEST_DELAY


def test_an_eta_at_the_limit_is_sent() -> None:
    eta = (datetime.now(UTC) + timedelta(seconds=ETA_MAX)).isoformat()
    assert message_for(message(eta=eta), LIMIT).delay == LONGEST_DELAY


def test_the_error_can_be_pickled() -> None:
    assert str(pickle.loads(pickle.dumps(EtaTooFar(60)))) == str(EtaTooFar(60))


@pytest.mark.parametrize(("due_in", "delay"), [(10, 10), (899, 899), (900, 900), (901, 900)])
def test_an_eta_becomes_a_delay_of_sqs_up_to_its_maximum(due_in: int, delay: int) -> None:
    eta = (datetime.now(UTC) + timedelta(seconds=due_in)).isoformat()
    sent = message_for(message(eta=eta), LIMIT)
    assert sent.delay == delay
    # What SQS cannot wait for, the worker does: it needs the time.
    assert json.loads(sent.body)["headers"]["eta"] == eta


# What a caller asks of SQS


@pytest.mark.parametrize("name", ["DelaySeconds", "delay_seconds"])
@pytest.mark.parametrize(("asked", "delay"), [(0, 0), (7, 7), (0.5, 1), (900, 900), (None, None)])
def test_a_delay_is_that_of_sqs(name: str, asked: Any, delay: int | None) -> None:
    assert message_for(message(**{name: asked}), LIMIT).delay == delay


@pytest.mark.parametrize(("asked", "delay"), [(30, 60), (90, 90)])
def test_of_a_delay_and_an_eta_the_longer_one_counts(asked: int, delay: int) -> None:
    eta = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    assert message_for(message(eta=eta, DelaySeconds=asked), LIMIT).delay == delay


@pytest.mark.parametrize("delay", [-1, 901, float("nan"), float("inf"), True, "7", {}])
def test_a_delay_that_sqs_does_not_have_is_refused(delay: Any) -> None:
    with pytest.raises(PublishError, match=r"`DelaySeconds` must be a number .* from 0 to 900"):
        message_for(message(DelaySeconds=delay), LIMIT)


@pytest.mark.parametrize("group", ["g", "a" * 128, "shop-7:!~"])
def test_a_message_group_is_sent(group: str) -> None:
    assert message_for(message(MessageGroupId=group), LIMIT).group == group


@pytest.mark.parametrize("group", ["", "a" * 129, "a b", "정보", 7])
def test_a_message_group_that_sqs_would_refuse_is_refused(group: Any) -> None:
    with pytest.raises(PublishError, match="`MessageGroupId` must be a text"):
        message_for(message(MessageGroupId=group), LIMIT)


@pytest.mark.parametrize(
    ("name", "value"), [("priority", 5), ("expiration", "4000"), ("MessageDeduplicationId", "d")]
)
def test_what_a_standard_queue_does_not_have_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(PublishError, match=f"SQS has no `{name}`"):
        message_for(message(**{name: value}), LIMIT)


def test_what_celery_sets_beside_expires_is_not_refused() -> None:
    expiring = message(expiration=4)
    expiring["headers"]["expires"] = "2999-01-02T03:04:05Z"
    assert message_for(expiring, LIMIT).delay is None


@pytest.mark.parametrize("id_", ["", "a" * 256, "\ud800"])
def test_an_id_that_no_worker_reads_is_refused(id_: str) -> None:
    sent = message()
    sent["headers"]["id"] = id_
    with pytest.raises(PublishError, match="`task_id`"):
        message_for(sent, LIMIT)


def test_in_a_message_of_a_running_task_a_priority_has_no_effect() -> None:
    callback = message(priority=5)
    callback["headers"]["parent_id"] = "2"
    assert message_for(callback, LIMIT).delay is None
