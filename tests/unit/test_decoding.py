"""decode(): three doors in, one kind of payload or a reason out, and no reason tells of a body."""

import base64
import json
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

import pytest
from celery import Celery, chain, group, signature
from celery.app.task import Context
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Connection
from kombu.asynchronous.aws.sqs.message import AsyncMessage
from kombu.compression import compress
from kombu.transport import virtual
from kombu.utils.json import dumps, register_type

from app.messages import decode_json
from sqs_broker.errors import Undecodable
from sqs_broker.limits import MOST_BYTES
from sqs_broker.rules.decoding import DEEPEST, REFUSED, decode
from sqs_broker.rules.foreign import ForeignMessage
from tests.unit.conftest import MakeDelivery

#: Stands where a user could have typed something. No reason may hold it.
MARKER = "Kim-1f9c"

#: What `registerUser` is given in these tests, by any door.
FIELDS = {"stock_id": "s1", "user_id": "u1", "user_info": {"nickname": MARKER}}


def envelope(**changes: Any) -> dict[str, Any]:
    """An envelope as our own producers write it: kombu's, without base64."""
    return {
        "body": json.dumps([[], FIELDS, {"callbacks": None, "chain": None}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "registerUser", "id": "id-1", "retries": 0, "eta": None},
        "properties": {
            "correlation_id": "id-1",
            "reply_to": "reply-1",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "jobs"},
            "priority": 0,
            "body_encoding": None,
            "delivery_tag": "of-the-producer",
        },
    } | changes


def with_headers(**headers: Any) -> dict[str, Any]:
    ours = envelope()
    return ours | {"headers": ours["headers"] | headers}


def with_properties(**properties: Any) -> dict[str, Any]:
    ours = envelope()
    return ours | {"properties": ours["properties"] | properties}


def with_embed(embed: Any) -> dict[str, Any]:
    return envelope(body=json.dumps([[], FIELDS, embed]))


def without(name: str, content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


def plain(**changes: Any) -> dict[str, Any]:
    """Plain JSON, as a program in another language writes it."""
    return {
        "id": "id-1",
        "action": "registerUser",
        "timestamp": "2026-01-02T03:04:05Z",
        "data": {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": MARKER}},
    } | changes


def notification(message: Any, **changes: Any) -> dict[str, Any]:
    """What SNS puts around a message where raw delivery is off."""
    return {
        "Type": "Notification",
        "MessageId": "sns-1",
        "TopicArn": "arn:aws:sns:us-east-1:123456789012:registrations",
        "Message": message,
        "Timestamp": "2026-01-02T03:04:05Z",
    } | changes


#: What Celery's canvas puts into the embed.
SIGNATURE = json.loads(dumps(signature("increment", args=(1,), kwargs={"input": 2}, countdown=3)))
CANVAS = json.loads(dumps(group(chain(signature("a"), signature("b")), signature("c"))))


def outer_base64(text: str) -> str:
    """kombu's SQS transport around an envelope (kombu 5.7 SQS `_put`)."""
    encoded: str = AsyncMessage().encode(text)
    return encoded


def inner_base64(content: dict[str, Any]) -> dict[str, Any]:
    """kombu's virtual channel around a body (kombu 5.7 virtual `basic_publish`)."""
    body = virtual.Base64().encode(content["body"])
    properties = content["properties"] | {"body_encoding": "base64"}
    return content | {"body": body, "properties": properties}


@pytest.fixture
def decoded(make_delivery: MakeDelivery) -> Callable[..., dict[str, Any]]:
    """Decodes a body, given as text or as what it is the JSON of."""

    def decode_it(body: Any, **facts: Any) -> dict[str, Any]:
        text = body if isinstance(body, str) else json.dumps(body)
        return decode(make_delivery(body=text, **facts), decode_json)

    return decode_it


Decoded = Callable[..., dict[str, Any]]


# The doors


@pytest.mark.parametrize(
    "body",
    [
        dumps(envelope()),
        outer_base64(dumps(envelope())),
        dumps(inner_base64(envelope())),
        outer_base64(dumps(inner_base64(envelope()))),
        outer_base64(outer_base64(dumps(inner_base64(envelope())))),
        f"\n {outer_base64(dumps(inner_base64(envelope())))}\n",
    ],
    ids=["none", "outer", "inner", "both", "outer twice", "both, in white space"],
)
def test_an_envelope_arrives_as_it_was_sent_in_any_layers_of_base64(
    decoded: Decoded, body: Any
) -> None:
    payload = decoded(body)
    assert payload["body"] == [[], FIELDS, {"callbacks": None, "chain": None}]
    headers, properties = payload["headers"], payload["properties"]
    assert (headers["task"], headers["lang"]) == ("registerUser", "py")
    assert (properties["correlation_id"], properties["reply_to"]) == ("id-1", "reply-1")
    assert (headers["delivery"].source, headers["delivery"].has_producer_id) == ("celery", True)


@pytest.mark.parametrize(
    ("body", "source"),
    [
        (plain(), "json"),
        (without("action", plain()) | {"type": "registerUser"}, "json"),
        (notification(json.dumps(plain())), "sns"),
        (notification(outer_base64(json.dumps(plain()))), "sns"),
    ],
    ids=["action", "type", "SNS", "SNS around base64"],
)
def test_plain_json_names_its_task_and_its_data_are_the_keyword_arguments(
    decoded: Decoded, body: dict[str, Any], source: str
) -> None:
    payload = decoded(body)
    assert payload["headers"]["task"] == "registerUser"
    assert payload["headers"]["delivery"].source == source
    assert payload["body"] == [[], plain()["data"], {}]


def in_notification(content: dict[str, Any]) -> dict[str, Any]:
    return notification(outer_base64(json.dumps(content)))


def test_an_envelope_in_a_notification_passes_data_to_its_task(decoded: Decoded) -> None:
    payload = decoded(in_notification(with_headers(timelimit=[1, 1])))
    assert payload["body"][:2] == [[], FIELDS]
    assert payload["headers"]["delivery"].source == "sns"
    assert payload["headers"]["timelimit"] is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (with_headers(task="celery.chunks"), "cannot reach Celery's own tasks"),
        (with_headers(task="celery.backend_cleanup"), "cannot reach Celery's own tasks"),
        (with_embed({"callbacks": [SIGNATURE]}), "cannot have callbacks"),
        (with_embed({"errbacks": [SIGNATURE]}), "cannot have callbacks"),
        (with_embed({"chain": [SIGNATURE]}), "cannot have callbacks"),
        (with_embed({"chord": SIGNATURE}), "cannot have callbacks"),
    ],
)
def test_a_notification_cannot_make_celery_call_more_than_its_task(
    decoded: Decoded, content: dict[str, Any], reason: str
) -> None:
    assert decoded(content)
    with pytest.raises(Undecodable, match=reason):
        decoded(in_notification(content))


@pytest.mark.parametrize("body", [with_properties(priority=7), plain()], ids=["envelope", "plain"])
def test_a_body_is_read_once_and_kombu_has_it_as_it_is(
    decoded: Decoded, body: dict[str, Any]
) -> None:
    payload = decoded(body)
    with Connection("memory://") as connection:
        message = virtual.Message(payload, channel=connection.channel())
        message.accept = {"application/json"}
        assert message.decode() is payload["body"]
        assert message.properties["priority"] == (7 if "properties" in body else 0)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 11, 24, tzinfo=UTC),
        date(2026, 11, 24),
        time(1, 2),
        UUID(int=7),
        Decimal("1.5"),
        b"\xff",
    ],
    ids=lambda value: type(value).__name__,
)
def test_in_an_envelope_values_are_read_as_celery_reads_them(decoded: Decoded, value: Any) -> None:
    assert decoded(envelope(body=dumps([[], {"it": value}, {}])))["body"][1] == {"it": value}


# The encodings of a stock producer


def compressed(content: dict[str, Any], name: str = "gzip") -> dict[str, Any]:
    """The envelope as kombu sends it with `compression` (kombu 5.7 messaging.py)."""
    data, type_ = compress(content["body"], name)
    headers = content["headers"] | {"compression": type_}
    properties = content["properties"] | {"body_encoding": "base64"}
    body = base64.b64encode(data).decode()
    return content | {"body": body, "headers": headers, "properties": properties}


def test_a_body_in_gzip_is_read(decoded: Decoded) -> None:
    payload = decoded(compressed(envelope()))
    assert payload["body"] == decoded(envelope())["body"]
    # kombu would decompress again what has a compression.
    assert payload["headers"]["compression"] is None


def of_size(bytes_: int) -> dict[str, Any]:
    """An envelope whose body has so many bytes."""
    around = len(json.dumps([[], {"it": ""}, {}]))
    return envelope(body=json.dumps([[], {"it": "a" * (bytes_ - around)}, {}]))


def test_a_body_in_gzip_may_be_as_large_as_one_without(decoded: Decoded) -> None:
    assert decoded(compressed(of_size(MOST_BYTES)))
    with pytest.raises(Undecodable, match="larger than 1048576 bytes"):
        decoded(compressed(of_size(MOST_BYTES + 1)))


def test_a_body_that_explodes_costs_no_more_than_any_other(decoded: Decoded) -> None:
    bomb = compressed(of_size(100 * MOST_BYTES))
    text = json.dumps(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable, match="larger than 1048576 bytes"):
            decoded(text)
        assert tracemalloc.get_traced_memory()[1] < 8 * MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (compressed(envelope(), "bzip2"), "headers.compression: Input should be 'application/x-g"),
        (with_headers(compression="application/x-gzip"), "compressed, but not in base64"),
        (
            inner_base64(with_headers(compression="application/x-gzip")),
            "not gzip, as its headers say",
        ),
        (
            compressed(envelope()) | {"body": compressed(envelope())["body"][:40]},
            "body is cut off",
        ),
    ],
    ids=["bzip2", "no base64", "not compressed", "cut off"],
)
def test_what_is_not_gzip_is_refused_for_a_reason(
    decoded: Decoded, content: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Undecodable, match=reason):
        decoded(content)


@pytest.mark.parametrize(
    ("serializer", "name"), [("pickle", "a pickle"), ("yaml", "YAML"), ("msgpack", "msgpack")]
)
def test_another_serializer_is_refused_by_its_name(
    decoded: Decoded, serializer: str, name: str
) -> None:
    (type_,) = {t for t in REFUSED if t.endswith(serializer.replace("pickle", "serialize"))}
    with pytest.raises(Undecodable, match=f"its body is {name} "):
        decoded(envelope(**{"content-type": type_}))


def sent_by(protocol: int, **options: Any) -> dict[str, Any]:
    """The envelope of a call, by a Celery producer with this `task_protocol`."""
    app = Celery("tests", set_as_current=False)
    create = app.amqp.as_task_v1 if protocol == 1 else app.amqp.as_task_v2
    message = create("id-1", "registerUser", (1,), FIELDS, **options)
    given = {
        "headers": message.headers | {"x-mine": 1},
        "properties": envelope()["properties"] | message.properties,
        "body": dumps(message.body),
    }
    made: dict[str, Any] = json.loads(dumps(envelope() | given))
    return made


@pytest.mark.parametrize("around", [lambda it: it, inner_base64, compressed])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eta": "2026-01-02T03:04:05+00:00", "expires": "2999-01-02T03:04:05+00:00"},
        {"time_limit": 20, "soft_time_limit": 10},
        {"group_id": "g", "group_index": 1},
        {"callbacks": [SIGNATURE], "errbacks": [SIGNATURE], "chord": SIGNATURE},
        {"reply_to": "r"},
    ],
    ids=["plain", "times", "limits", "group", "canvas", "reply"],
)
def test_a_message_of_protocol_1_is_read_as_one_of_protocol_2(
    decoded: Decoded, options: Any, around: Any
) -> None:
    old, new = decoded(around(sent_by(1, **options))), decoded(sent_by(2, **options))
    assert old["body"] == new["body"]
    names = ("task", "id", "eta", "expires", "group", "group_index", "x-mine", "retries")
    assert {n: old["headers"][n] for n in names} == {n: new["headers"][n] for n in names}
    assert (old["headers"]["timelimit"] or [None, None]) == new["headers"]["timelimit"]
    assert old["properties"]["correlation_id"] == "id-1"
    assert old["headers"]["delivery"].source == "celery"


def test_a_group_of_protocol_1_may_have_its_old_name(decoded: Decoded) -> None:
    body = {"task": "registerUser", "id": "id-1", "taskset": "g"}
    payload = decoded(envelope(headers={}, body=json.dumps(body)))
    assert payload["headers"]["group"] == "g"
    assert payload["body"][:2] == [[], {}]


@pytest.mark.parametrize(
    "body",
    [
        {"task": "registerUser"},
        {"task": 7, "id": "id-1"},
        {"task": "registerUser", "id": "id-1", "args": {}},
        {"task": "registerUser", "id": "id-1", "kwargs": [MARKER]},
        {"task": "registerUser", "id": "id-1", "callbacks": MARKER},
        {"task": "registerUser", "id": "id-1", "timelimit": 7},
        {"task": "registerUser", "id": "id-1", "eta": MARKER},
        [[], FIELDS, {}],
    ],
)
def test_a_message_of_protocol_1_is_checked_like_any_other(decoded: Decoded, body: Any) -> None:
    with pytest.raises(Undecodable) as raised:
        decoded(envelope(headers={}, body=json.dumps(body)))
    assert MARKER not in raised.value.reason


# What Celery's protocol names


def test_all_that_the_protocol_names_reaches_the_task(decoded: Decoded) -> None:
    eta, nested = "2026-01-02T03:04:05+00:00", {"sentry-trace": "1-2"}
    content = with_headers(origin="gen7@host", eta=eta, headers=nested, **{"x-mine": 1})
    content["properties"] |= {"app_id": "shop", "expiration": "900"}
    payload = decoded(content)
    args, kwargs, _ = payload["body"]
    context = Context(
        payload["headers"] | {"properties": payload["properties"]}, args=args, kwargs=kwargs
    )
    assert (context.origin, context.eta, context.headers) == ("gen7@host", eta, nested)
    assert context.get("x-mine") == 1
    assert (context.properties["app_id"], context.properties["expiration"]) == ("shop", "900")


def test_a_property_that_the_broker_sets_is_not_the_producers(decoded: Decoded) -> None:
    content = with_properties(application_headers={"a": 1}, delivery_tag="theirs", anything=1)
    properties = decoded(content, tag="tag-9")["properties"]
    assert properties["delivery_tag"] == "tag-9"
    assert not {"application_headers", "anything", "body_encoding"} & set(properties)


#: What kombu's JSON would make of values: it cannot, or it makes no JSON of them.
TYPED = [
    {"__type__": type_, "__value__": value}
    for type_, value in [
        ("nosuch", MARKER),
        ("decimal", MARKER),
        ("datetime", MARKER),
        ("datetime", "2026-01-02T03:04:05"),
        ("date", 7),
        ("time", "25:00"),
        ("uuid", {"hex": "0", "more": 1}),
        ("uuid", [MARKER]),
        ("base64", 7),
        ("base64", "x"),
        ("bytes", None),
        ([], MARKER),
        ({}, MARKER),
        (None, None),
    ]
]


@pytest.mark.parametrize("value", TYPED, ids=json.dumps)
@pytest.mark.parametrize("door", ["json", "sns"])
def test_in_plain_json_every_value_is_data(decoded: Decoded, value: Any, door: str) -> None:
    data = {**plain()["data"], "note": value, "more": [[value]]}
    body = plain(data=data)
    given = decoded(notification(json.dumps(body)) if door == "sns" else body)
    assert given["body"] == [[], data, {}]
    assert json.dumps(given["body"])


@pytest.mark.parametrize("key", ["__type__", r"\u005f_type__", r"__t\u0079pe__", r"__type_\u005F"])
def test_a_marked_value_is_converted_in_any_spelling_of_its_mark(
    decoded: Decoded, key: str
) -> None:
    text = f'[[{{"{key}": "decimal", "__value__": "1.5"}}], {{}}, {{}}]'
    assert decoded(envelope(body=text))["body"] == [[Decimal("1.5")], {}, {}]


class Unsendable:
    """Has no way to another process."""

    def __reduce__(self) -> Any:
        raise TypeError(MARKER)


class Unreadable:
    """Can be sent to another process, which cannot read it."""

    def __reduce__(self) -> Any:
        return int, (MARKER,)


def register(make: Callable[[Any], Any]) -> None:
    """Let kombu make a value of the type `ours` as the function does. It cannot forget a type."""
    register_type(type("Ours", (), {}), "ours", str, make)


def raises(exc: BaseException) -> Callable[[Any], Any]:
    def make(_: Any) -> Any:
        raise exc

    return make


OF_A_TYPE = [{"__type__": "ours", "__value__": MARKER}]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        *[
            (raises(exc), f"kombu cannot convert ({type(exc).__name__})")
            for exc in (ValueError(MARKER), InvalidOperation(), KeyError(MARKER), RecursionError())
        ],
        (raises(AssertionError(MARKER)), "kombu cannot convert (AssertionError)"),
        (lambda _: Unsendable(), "cannot go to another process (TypeError)"),
        (lambda _: Unreadable(), "cannot go to another process (ValueError)"),
        (lambda _: lambda: None, "cannot go to another process"),
    ],
)
def test_a_value_that_cannot_be_made_or_sent_to_a_process_is_the_fault_of_the_body(
    decoded: Decoded, make: Any, reason: str
) -> None:
    register(make)
    with pytest.raises(Undecodable) as raised:
        decoded(envelope(body=json.dumps([OF_A_TYPE, {}, {}])))
    assert reason in raised.value.reason
    assert MARKER not in raised.value.reason


@pytest.mark.parametrize("fault", [MemoryError(), OSError(24, "Too many open files")], ids=repr)
def test_a_fault_of_the_machine_is_not_the_bodys(decoded: Decoded, fault: Exception) -> None:
    register(raises(fault))
    with pytest.raises(type(fault)) as raised:
        decoded(envelope(body=json.dumps([OF_A_TYPE, {}, {}])))
    assert raised.value is fault


@pytest.mark.parametrize("body", [plain(), with_properties(correlation_id=None, priority=None)])
def test_without_a_word_the_id_correlates_and_no_priority_is_given(
    decoded: Decoded, body: dict[str, Any]
) -> None:
    properties = decoded(body)["properties"]
    assert (properties["correlation_id"], properties["priority"]) == ("id-1", 0)


@pytest.mark.parametrize(
    ("body", "id_", "is_producers"),
    [
        (plain(id="abc"), "abc", True),
        # Without an id a message is known by that of SQS.
        (without("id", plain()), "sqs-7", False),
        (plain(id=None), "sqs-7", False),
        (envelope(), "id-1", True),
    ],
)
def test_a_message_keeps_the_id_of_its_producer(
    decoded: Decoded, body: dict[str, Any], id_: str, is_producers: bool
) -> None:
    headers = decoded(body, message_id="sqs-7")["headers"]
    assert (headers["id"], headers["delivery"].message_id) == (id_, id_)
    assert headers["delivery"].has_producer_id is is_producers
    assert headers["root_id"] == (None if "properties" in body else id_)


@pytest.mark.parametrize("around", [lambda id_: with_headers(id=id_), lambda id_: plain(id=id_)])
def test_an_id_may_have_255_characters(
    decoded: Decoded, around: Callable[[str], dict[str, Any]]
) -> None:
    assert decoded(around("i" * 255))["headers"]["id"] == "i" * 255
    with pytest.raises(Undecodable):
        decoded(around("i" * 256))


@pytest.mark.parametrize(
    "body",
    [
        notification({"not": "text"}),
        notification(json.dumps(plain()), Type="SubscriptionConfirmation"),
        without("TopicArn", notification(json.dumps(plain()))),
    ],
)
def test_what_only_resembles_a_notification_is_not_unwrapped(
    decoded: Decoded, body: dict[str, Any]
) -> None:
    with pytest.raises(Undecodable, match="plain JSON message"):
        decoded(body)


def test_plain_json_is_refused_where_no_decoder_is_given(make_delivery: MakeDelivery) -> None:
    with pytest.raises(Undecodable, match="takes no plain JSON"):
        decode(make_delivery(body=json.dumps(plain())), None)


# What SQS says


@pytest.mark.parametrize("body", [envelope(), plain()], ids=["envelope", "plain"])
@pytest.mark.parametrize("count", [1, 4])
def test_what_sqs_says_of_the_delivery_reaches_the_task(
    decoded: Decoded, body: dict[str, Any], count: int
) -> None:
    enqueued_at = datetime.fromisoformat("2026-01-02T05:04:05+02:00")
    payload = decoded(body, count=count, queue="mail", tag="tag-9", enqueued_at=enqueued_at)
    assert payload["headers"]["retries"] == count - 1
    delivery = payload["headers"]["delivery"]
    assert delivery.deliveries == count
    assert delivery.enqueued_at.isoformat() == "2026-01-02T03:04:05+00:00"
    assert payload["properties"]["delivery_tag"] == "tag-9"
    assert payload["properties"]["delivery_info"] == {
        # `virtual._restore` reads these two (kombu 5.7).
        "exchange": "",
        "routing_key": "mail",
        "redelivered": count > 1,
    }


@pytest.mark.parametrize(
    "lie",
    [
        with_headers(retries=99, redelivered=False, delivery={"message_id": "other"}),
        with_headers(retries="99", delivery="none"),
        with_properties(delivery_info={"redelivered": False, "routing_key": "other"}),
    ],
)
def test_an_outside_word_on_the_delivery_is_overwritten(
    decoded: Decoded, lie: dict[str, Any]
) -> None:
    payload = decoded(lie, count=2)
    assert payload["headers"]["retries"] == 1
    assert payload["headers"]["delivery"].message_id == "id-1"
    assert payload["properties"]["delivery_info"]["redelivered"] is True
    assert payload["properties"]["delivery_info"]["routing_key"] == "jobs"


@pytest.mark.parametrize(
    "name", ["is_eager", "called_directly", "args", "hostname", "callbacks", "chord", "errbacks"]
)
def test_a_header_cannot_say_what_the_request_says(decoded: Decoded, name: str) -> None:
    # Celery makes the request of a task of all its headers (celery 5.7 worker/request.py).
    assert name not in decoded(with_headers(**{name: "of the wire"}))["headers"]


@pytest.mark.parametrize(
    ("body", "own"),
    [
        (with_headers(traceparent="00-1", argsrepr="()"), {"traceparent": "00-1"}),
        (with_headers(headers={"x": "1"}, traceparent="00-1"), {"x": "1"}),
        (envelope(), {}),
    ],
    ids=["flat", "nested", "none"],
)
def test_a_task_finds_the_headers_of_its_producer_and_nothing_of_the_brokers(
    decoded: Decoded, body: dict[str, Any], own: dict[str, Any]
) -> None:
    # A task may send them on, so they must be JSON.
    headers = Context(decoded(body)["headers"]).headers
    assert json.loads(json.dumps(headers)) == own


@pytest.mark.parametrize("name", ["retries", "delivery", "called_directly", "is_eager", "id"])
def test_the_embed_cannot_say_what_the_request_says(decoded: Decoded, name: str) -> None:
    # Celery updates the request with all that the embed holds (celery 5.7 app/trace.py).
    body = with_embed({name: 99})
    try:
        _, _, embed = decoded(body)["body"]
    except Undecodable:
        return
    assert name not in embed


# What cannot become a task

GEOJSON = {"type": "Feature", "properties": {"name": MARKER}, "geometry": None}
NESTED = "[" * 100_000 + "]" * 100_000
NOT_UTF8 = base64.b64encode(b"\xff\xfe\xfa\x00\x80\x81").decode()

NOT_AN_OBJECT = {
    "empty": "",
    "white space": "  \n",
    "text": f"hello {MARKER}",
    "a word that could be base64": "nonsense",
    "text beyond ASCII": "정보",
    "cut off": json.dumps(plain())[:-1],
    "two objects": json.dumps(plain()) * 2,
    "XML": f"<user>{MARKER}</user>",
    "number": "7",
    "huge integer": "1" * 5_000,
    "null": "null",
    "array": json.dumps([MARKER]),
    "string": json.dumps(MARKER),
    "boolean": "true",
    "deep": NESTED,
    "deep in base64": outer_base64(NESTED),
    "base64 of no UTF-8": NOT_UTF8,
    "base64 of text": outer_base64(MARKER),
    "base64 of an array": outer_base64("[]"),
    "three layers": outer_base64(outer_base64(outer_base64(json.dumps(plain())))),
    "lone surrogate": "\ud800",
    "byte order mark": f'\ufeff{{"action": "{MARKER}"}}',
}

NO_ENVELOPE = {
    "properties a string": plain(properties=MARKER),
    "properties empty": plain(properties={}),
    "properties null": plain(properties=None),
    "properties of an envelope only": {"properties": envelope()["properties"]},
    "GeoJSON": GEOJSON,
    "GeoJSON around a message": GEOJSON | plain(),
    "no headers": without("headers", envelope()),
    "headers null": envelope(headers=None),
    "headers an array": envelope(headers=[MARKER]),
    "headers a string": envelope(headers=MARKER),
    "no task": envelope(headers={"id": "id-1"}),
    "no id": envelope(headers={"task": "registerUser"}),
    "no body": without("body", envelope()),
    "body null": envelope(body=None),
    "body an object": envelope(body=FIELDS),
    "properties an array": envelope(properties=[]),
    "body encoding unknown": with_properties(body_encoding="gzip"),
    "body encoding a number": with_properties(body_encoding=64),
    "priority a word": with_properties(priority="high"),
    "priority a number in a string": with_properties(priority="5"),
    "correlation id a number": with_properties(correlation_id=7),
    "reply_to an object": with_properties(reply_to={"queue": MARKER}),
}

CONTENT = {
    "no content type": without("content-type", envelope()),
    "no content encoding": without("content-encoding", envelope()),
    "content type null": envelope(**{"content-type": None}),
    "pickle": envelope(**{"content-type": "application/x-python-serialize"}),
    "yaml": envelope(**{"content-type": "application/x-yaml"}),
    "binary": envelope(**{"content-encoding": "binary"}),
    "compressed": with_headers(compression="application/x-gzip"),
    "compression a number": with_headers(compression=7),
}

HEADERS = {
    **{
        f"{name} {what}": with_headers(**{name: value})
        for name in ("task", "id")
        for what, value in {
            "null": None,
            "a number": 7,
            "an array": [MARKER],
            "an object": {"$gt": MARKER},
            "empty": "",
            "too long": MARKER * 100,
            "a lone surrogate": "\ud800",
        }.items()
    },
    "timelimit a number": with_headers(timelimit=30),
    "timelimit of one": with_headers(timelimit=[30]),
    "timelimit of three": with_headers(timelimit=[30, 25, 20]),
    "timelimit of strings": with_headers(timelimit=["30", MARKER]),
    "timelimit below nothing": with_headers(timelimit=[-1, None]),
    "timelimit no number": with_headers(timelimit=[float("nan"), None]),
    "timelimit without end": with_headers(timelimit=[None, float("inf")]),
    "timelimit an object": with_headers(timelimit={"hard": 30, "soft": 25}),
    "stamped_headers a string": with_headers(stamped_headers=MARKER),
    "stamped_headers of numbers": with_headers(stamped_headers=[1]),
    "stamps an array": with_headers(stamps=[MARKER]),
    "group a number": with_headers(group=1),
    "group_index a string": with_headers(group_index="1"),
    "root_id a number": with_headers(root_id=1),
    "parent_id an array": with_headers(parent_id=[]),
    "shadow an object": with_headers(shadow={}),
    "origin a number": with_headers(origin=7),
    "headers a string": with_headers(headers=MARKER),
    "ignore_result a string": with_headers(ignore_result="no"),
    "replaced_task_nesting a string": with_headers(replaced_task_nesting="1"),
    **{
        f"{name} {what}": with_headers(**{name: value})
        for name in ("eta", "expires")
        for what, value in {
            "a word": MARKER,
            "a number": 1_700_000_000,
            "empty": "",
            "no such day": "2026-02-30T00:00:00",
            "an array": [],
        }.items()
    },
}

BODIES = {
    **{
        f"body of {what}": envelope(body=json.dumps(body))
        for what, body in {
            "a number": 7,
            "null": None,
            "an object": FIELDS,
            "an object of three": {"a": 1, "b": 2, "c": 3},
            "a string of three": "abc",
            "two": [[], FIELDS],
            "four": [[], FIELDS, {}, {}],
            "none": [],
            "args an object": [FIELDS, {}, {}],
            "args null": [None, FIELDS, {}],
            "args a string": [MARKER, FIELDS, {}],
            "kwargs an array": [[], [MARKER], {}],
            "kwargs null": [[], None, {}],
            "embed an array": [[], FIELDS, [MARKER]],
            "embed a string": [[], FIELDS, MARKER],
            "embed a number": [[], FIELDS, 0],
            "callbacks an object": [[], FIELDS, {"callbacks": {"task": MARKER}}],
            "callbacks without a task": [[], FIELDS, {"callbacks": [without("task", SIGNATURE)]}],
            "errbacks of strings": [[], FIELDS, {"errbacks": [MARKER]}],
            "chain a string": [[], FIELDS, {"chain": MARKER}],
            "chain of numbers": [[], FIELDS, {"chain": [1]}],
            "chord an array": [[], FIELDS, {"chord": [MARKER]}],
            "chord of nothing": [[], FIELDS, {"chord": {}}],
        }.items()
    },
    "body empty": envelope(body=""),
    "body no JSON": envelope(body=MARKER),
    "body too deep": envelope(body=NESTED),
    "body of a huge integer": envelope(body=f"[[{'1' * 5_000}], {{}}, {{}}]"),
    "body said to be base64": with_properties(body_encoding="base64"),
    "body base64 of no UTF-8": with_properties(body_encoding="base64") | {"body": NOT_UTF8},
    **{
        f"body of {json.dumps(value)}": envelope(body=json.dumps([[], {"it": value}, {}]))
        for value in TYPED
        if value["__value__"] != "2026-01-02T03:04:05"
    },
    "body a pickle": with_properties(body_encoding="base64") | {"body": "gASVBQAAAAAAAABdlC4="},
}

PLAIN = {
    "empty object": {},
    "neither action nor type": without("action", plain()),
    "action null": plain(action=None),
    "action empty": plain(action=""),
    "action a number": plain(action=7),
    "action an array": plain(action=[MARKER]),
    "action too long": plain(action=MARKER * 100),
    "action a lone surrogate": plain(action="\ud800"),
    "type an object": without("action", plain()) | {"type": {"$gt": MARKER}},
    "id a number": plain(id=7),
    "id empty": plain(id=""),
    "id too long": plain(id=MARKER * 100),
    "id an object": plain(id={"$gt": MARKER}),
    "no data": without("data", plain()),
    "data null": plain(data=None),
    "data an array": plain(data=[MARKER]),
    "data a string": plain(data=MARKER),
    "Celery's own task": plain(action="celery.starmap"),
    "Celery's own type": without("action", plain()) | {"type": "celery.chain"},
    "Celery's own task by SNS": notification(json.dumps(plain(action="celery.map"))),
    "SNS around text": notification(f"hello {MARKER}"),
    "SNS around an array": notification(json.dumps([MARKER])),
    "SNS around SNS": notification(json.dumps(notification(json.dumps(plain())))),
    "SNS around a broken envelope": notification(json.dumps(envelope(headers=None))),
}

CANNOT_BECOME_A_TASK = NOT_AN_OBJECT | NO_ENVELOPE | CONTENT | HEADERS | BODIES | PLAIN


@pytest.mark.parametrize("what", CANNOT_BECOME_A_TASK)
def test_what_cannot_become_a_task_is_undecodable_for_a_reason_without_the_body(
    decoded: Decoded, what: str
) -> None:
    with pytest.raises(Undecodable) as raised:
        decoded(CANNOT_BECOME_A_TASK[what])
    assert raised.value.reason
    assert MARKER not in raised.value.reason


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("text", "the body is neither JSON nor base64 of JSON"),
        ("a word that could be base64", "the body is neither JSON nor base64 of JSON"),
        ("number", "the body is a JSON number, not an object"),
        ("null", "the body is a JSON null, not an object"),
        ("array", "the body is a JSON array, not an object"),
        ("string", "the body is a JSON string, not an object"),
        ("boolean", "the body is a JSON boolean, not an object"),
        ("base64 of no UTF-8", "the body is neither JSON nor base64 of JSON"),
        ("deep", "the body is nested deeper than 64 levels"),
        ("deep in base64", "the body is nested deeper than 64 levels"),
        ("huge integer", "the body has a number of more than 4300 digits"),
        ("byte order mark", "the body begins with a byte order mark, which JSON does not allow"),
        ("body said to be base64", "the Celery envelope: body is not base64 of text"),
        ("body base64 of no UTF-8", "the Celery envelope: body is not base64 of text"),
        ("no id", "the Celery envelope: headers.id: Field required"),
        ("eta a word", "the Celery envelope: headers.eta is not a time"),
        ("data a string", "the plain JSON message: data: Input should be a valid dictionary"),
        ("neither action nor type", "the plain JSON message has neither action nor type"),
        ("Celery's own task", "plain JSON cannot reach Celery's own tasks"),
    ],
)
def test_the_reason_says_what_is_wrong(decoded: Decoded, what: str, reason: str) -> None:
    with pytest.raises(Undecodable) as raised:
        decoded(CANNOT_BECOME_A_TASK[what])
    assert raised.value.reason == reason


def nested(levels: int) -> Any:
    content: Any = {}
    for _ in range(levels - 1):
        content = {"deeper": content}
    return content


@pytest.mark.parametrize(
    ("around", "levels"),
    [
        (lambda inner: plain(data=inner), DEEPEST - 1),
        (lambda inner: with_headers(deep=inner), DEEPEST - 2),
        (lambda inner: envelope(body=json.dumps([[], inner, {}])), DEEPEST - 1),
        (lambda inner: notification(json.dumps(plain(data=inner))), DEEPEST - 1),
    ],
    ids=["plain", "headers", "kwargs", "SNS"],
)
def test_a_body_may_be_nested_as_deep_as_celery_can_read_it_again(
    decoded: Decoded, around: Callable[[Any], dict[str, Any]], levels: int
) -> None:
    assert decoded(around(nested(levels)))
    with pytest.raises(Undecodable, match="nested deeper than"):
        decoded(around(nested(levels + 1)))


def test_a_value_within_the_deepest_object_is_a_level_too(decoded: Decoded) -> None:
    def deep(levels: int) -> dict[str, Any]:
        text = json.dumps(plain(data=nested(levels)))
        content: dict[str, Any] = json.loads(text.replace("{}", '{"least": 1}'))
        return content

    assert decoded(deep(DEEPEST - 2))
    with pytest.raises(Undecodable, match="nested deeper than"):
        decoded(deep(DEEPEST - 1))


@pytest.mark.parametrize(
    "body",
    [
        with_headers(**{f"{MARKER}\ud800": 1}),
        with_properties(**{f"{MARKER}\ud800": 1}),
        with_embed({"chord": MARKER, MARKER: 1}),
        with_headers(stamps={MARKER: 1}, id=7),
        plain(**{f"{MARKER}\ud800": 1}, id=7),
    ],
)
def test_no_reason_tells_a_key_of_the_body(decoded: Decoded, body: dict[str, Any]) -> None:
    with pytest.raises(Undecodable) as raised:
        decoded(body)
    assert MARKER not in raised.value.reason


@pytest.mark.parametrize(
    "content",
    [
        with_headers(eta="2026-01-02T03:04:05.678901+00:00", expires="2026-01-02T03:04:05Z"),
        with_headers(timelimit=[None, None], stamped_headers=["user"], stamps={"user": ["1"]}),
        with_headers(timelimit=[30, 25.5], group="g", group_index=0),
        with_headers(a_header_of_a_later_celery={"any": ["thing"]}),
        with_properties(a_property_of_a_later_kombu=1, priority=None),
        with_embed(None),
        with_embed({}),
        with_embed({"callbacks": [SIGNATURE, CANVAS], "errbacks": [SIGNATURE]}),
        with_embed({"chain": [SIGNATURE, CANVAS], "chord": CANVAS}),
    ],
)
def test_all_that_celery_itself_writes_is_decoded(
    decoded: Decoded, content: dict[str, Any]
) -> None:
    assert decoded(content)["headers"]["task"] == "registerUser"


# Any text

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
names = st.sampled_from(sorted({*envelope(), *plain(), *notification("")}))
objects = st.dictionaries(names | st.text(max_size=8), json_values, max_size=8).map(json.dumps)
#: A message with one field replaced by anything.
nearly = st.builds(
    lambda base, name, value: json.dumps(base | {name: value}),
    st.sampled_from([envelope(), plain(), notification(json.dumps(plain()))]),
    names,
    json_values,
)
nearly_headers = st.builds(
    lambda name, value: json.dumps(with_headers(**{name: value})),
    st.sampled_from(["task", "id", "eta", "expires", "timelimit", "stamps", "stamped_headers"]),
    json_values,
)
texts = st.text() | objects | nearly | nearly_headers


wrapped = texts.map(lambda text: outer_base64(text.encode("utf-8", "replace").decode()))


@settings(derandomize=True, database=None)
@given(body=texts | wrapped)
def test_any_text_is_a_payload_or_undecodable(make_delivery: MakeDelivery, body: str) -> None:
    try:
        payload = decode(make_delivery(body=body), decode_json)
    except Undecodable:
        return
    # Celery unpacks the one and hashes the other two; a failure of either ends a stock worker.
    args, kwargs, _ = payload["body"]
    assert isinstance(args, list)
    assert isinstance(kwargs, dict)
    assert isinstance(payload["headers"]["task"], str)
    assert isinstance(payload["headers"]["id"], str)


def test_a_decoder_of_another_application_is_asked(make_delivery: MakeDelivery) -> None:
    def its_own(content: dict[str, Any]) -> ForeignMessage:
        return ForeignMessage(task=content["do"], kwargs=content["with"], id=None)

    body = json.dumps({"do": "pay", "with": {"sum": 3}})
    payload = decode(make_delivery(body=body), its_own)
    assert payload["headers"]["task"] == "pay"
    assert payload["body"] == [[], {"sum": 3}, {}]
