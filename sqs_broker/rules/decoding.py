"""Decodes a message of SQS into a message for Celery, or raises the reason why it cannot.

A body may have three forms: a Celery envelope, from this project or from a stock kombu 5.7 producer
(which encodes the envelope, its body, or both in base64); plain JSON from any program; or one of
these two inside an SNS notification, which may only pass data to a task. Every other body raises
`Undecodable`. Celery gets only what it can run, because a malformed header ends a stock worker
(celery 5.7 worker/request.py).
"""

import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from json import JSONDecodeError
from typing import Any

from celery.app.task import Context
from kombu.utils.json import loads, object_hook

from sqs_broker.errors import Undecodable
from sqs_broker.rules.canvas import PREFIX
from sqs_broker.rules.content import base64_of, parsed, text_of, version_2
from sqs_broker.rules.envelope import EMBED, ENVELOPE, HEADERS, Record, Wrong
from sqs_broker.rules.foreign import DecodeJson
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.provenance import Provenance, Source
from sqs_broker.rules.shapes import Fields, Shapes
from sqs_broker.rules.trace_context import context_of, of_notification

#: How an object begins in base64, mostly. No JSON begins so, and the error of a parser takes longer
#: than this.
OBJECT_IN_BASE64 = "ey"

#: How often kombu's SQS transport may encode an envelope in base64.
MOST_LAYERS = 2

#: Most levels of arrays and objects in a body. json.loads reads deeper ones too, but they exceed
#: Python's recursion limit later, in Celery's event loop, and that ends the worker.
DEEPEST = 64
TOO_DEEP = f"the body is nested deeper than {DEEPEST} levels"

BYTE_ORDER_MARK = "\ufeff"

#: The key of a value that kombu converts (kombu 5.7 utils/json.py), and how another spelling of one
#: of its characters begins in JSON.
MARK, ASCII_ESCAPE = "__type__", "\\u00"

#: The content types of kombu's other serializers (kombu 5.7 serialization.py). None is ever read:
#: a pickle can run any code.
REFUSED = {
    "application/x-python-serialize": "a pickle",
    "application/x-yaml": "YAML",
    "application/x-msgpack": "msgpack",
}

#: Properties of AMQP that a task finds in `request.properties`, if the producer set them.
#: https://www.rabbitmq.com/docs/publishers#message-properties
PASSED_ON = (
    "app_id", "cluster_id", "delivery_mode", "expiration", "message_id", "timestamp", "type",
    "user_id",
)  # fmt: skip

#: Headers that Celery reads.
CELERYS = HEADERS.names

#: The attributes of Celery's request: a header of that name would hide one.
_OF_CONTEXT = frozenset({*dir(Context), *dir(type(Context))})

#: Headers that are not the producer's own.
NOT_CUSTOM = {*CELERYS, "lang", "argsrepr", "kwargsrepr"}

#: The callbacks of a message that has none. They need no check.
NO_CALLBACKS: tuple[Any, ...] = (None, {}, dict.fromkeys(EMBED.names))

#: Those of the messages that this process has decoded.
SHAPES = Shapes()

#: The arguments of a task: args, kwargs, embed.
Payload = list[Any]


def decode(
    delivery: Delivery, decode_json: DecodeJson | None, shapes: Shapes = SHAPES
) -> dict[str, Any]:
    """Return the delivery as a payload of kombu's `virtual.Message`.

    A body is decoded only here. `body` in the result is [args, kwargs, embed] as the task gets
    them, and goes to the pool process unchanged. In plain JSON each value stays as it is. In a
    Celery envelope kombu converts the values that are marked as dates and other types.

    If the producer set headers that describe the delivery (`retries`, `redelivered`), they are
    replaced with the values of SQS. The header `delivery` holds a Provenance for the task, and
    those of trace_context.py say what it belongs to. Raises Undecodable, whose reason holds nothing
    of the body. MemoryError and OSError are not caused by the body, so they are raised unchanged.

    `shapes` remembers what was accepted before. It saves time, and changes no result.
    """
    content = _json_object(delivery.body)
    places: list[Mapping[str, Any]] = []
    source = Source.CELERY if "properties" in content else Source.JSON
    if _is_sns(content):
        places = [of_notification(content)]
        content, source = _json_object(content["Message"]), Source.SNS
    if "properties" in content:
        return _from_envelope(content, source, delivery, places, shapes)
    if decode_json is None:
        raise Undecodable("the body is not a Celery message, and this worker takes no plain JSON")
    return _from_foreign(content, source, delivery, decode_json, places)


def _json_object(text: str) -> dict[str, Any]:
    for layer in range(MOST_LAYERS + 1):
        try:
            if text.startswith(OBJECT_IN_BASE64):
                raise ValueError
            content = parsed(text)
        except RecursionError as exc:
            raise Undecodable(TOO_DEEP) from exc
        except ValueError as exc:
            if (reason := _almost_json(text, exc)) is not None:
                raise Undecodable(reason) from exc
            if layer == MOST_LAYERS:
                raise Undecodable("the body is not JSON") from exc
            text = _without_base64(text, "the body is neither JSON nor base64 of JSON")
        else:
            check_depth(content, text)
            if not isinstance(content, dict):
                raise Undecodable(f"the body is a JSON {_json_type(content)}, not an object")
            return content
    raise AssertionError("unreachable: the loop returns or raises")


def check_depth(content: object, text: str, above: int = 0) -> None:
    """Raise Undecodable if the content of this text is nested too deeply in a body that has `above`
    levels around it."""
    if text.count("[") + text.count("{") < DEEPEST - above:
        return  # Most messages. Brackets in strings count too.
    level = [content]
    for _ in range(DEEPEST - above):
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))  # A union would be created each time.
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise Undecodable(TOO_DEEP)


def _almost_json(text: str, exc: ValueError) -> str | None:
    """Why Python cannot read what other programs may take for JSON; None if it is anything else."""
    if text.startswith(BYTE_ORDER_MARK):
        return "the body begins with a byte order mark, which JSON does not allow"
    if not isinstance(exc, JSONDecodeError) and not text.startswith(OBJECT_IN_BASE64):
        return f"the body has a number of more than {sys.get_int_max_str_digits()} digits"
    return None


def _without_base64(text: str, reason: str) -> str:
    try:
        return base64_of(text, reason).decode("utf-8")
    except UnicodeDecodeError as exc:
        # Many plain words are valid base64.
        raise Undecodable(reason) from exc


def _json_type(content: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(content), "number")


def _is_sns(content: Mapping[str, Any]) -> bool:
    # https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
    return (
        content.get("Type") == "Notification"
        and isinstance(content.get("TopicArn"), str)
        and isinstance(content.get("Message"), str)
    )


def _from_envelope(
    content: dict[str, Any],
    source: Source,
    delivery: Delivery,
    places: Sequence[Mapping[str, Any]],
    shapes: Shapes,
) -> dict[str, Any]:
    fields = shapes.read(content)
    if fields is None:
        content, fields = _checked_envelope(content, shapes)
    sent, properties = content["headers"], content["properties"]
    text = text_of(content["body"], properties.get("body_encoding"), sent.get("compression"))
    payload = _read_payload(text)
    headers = {**fields.missing, **sent}
    for name in fields.dropped:
        del headers[name]
    headers["compression"] = None  # kombu would decompress it again.
    _check_times(headers)
    if source is Source.SNS:
        _check_notification(headers, payload)
    if headers["headers"] is None:
        # Otherwise Celery takes for the producer's own headers all that it does not know: also what
        # this broker adds (celery 5.7 app/task.py, `_get_custom_headers`).
        headers["headers"] = {name: sent[name] for name in fields.custom}
    passed_on = {name: properties[name] for name in fields.passed_on}
    provenance = _provenance(headers["id"], source, delivery, has_producer_id=True)
    headers |= context_of(delivery, sent, *places)
    return _payload(payload, headers, delivery, provenance, properties, passed_on)


def _checked_envelope(content: dict[str, Any], shapes: Shapes) -> tuple[dict[str, Any], Fields]:
    """The envelope as one of protocol 2, and what follows from its names."""
    _refuse_serializer(content)
    envelope = version_2(content)
    _checked(ENVELOPE, envelope, "the Celery envelope")
    sent, properties = envelope["headers"], envelope["properties"]
    dropped = [name for name in sent if name not in CELERYS and name in _OF_CONTEXT]
    fields = Fields(
        missing={name: default for name, default in HEADERS.defaults.items() if name not in sent},
        dropped=tuple(dropped),
        custom=tuple(name for name in sent if name not in NOT_CUSTOM and name not in dropped),
        passed_on=tuple(name for name in PASSED_ON if name in properties),
    )
    if envelope is content:
        shapes.remember(content, fields)
    return envelope, fields


def _refuse_serializer(content: Mapping[str, Any]) -> None:
    for type_, name in REFUSED.items():
        if content.get("content-type") == type_:
            raise Undecodable(f"the Celery envelope: its body is {name} ({type_}), not JSON")


def _check_notification(headers: dict[str, Any], payload: Payload) -> None:
    """Who may publish to a topic may pass data to tasks, and no more than that."""
    _refuse_built_in(headers["task"], "an SNS notification")
    if any((payload[2] or {}).values()):
        raise Undecodable("an SNS notification cannot have callbacks")
    headers["timelimit"] = None


def _refuse_built_in(task: str, what: str) -> None:
    if task.startswith(PREFIX):
        raise Undecodable(f"{what} cannot reach Celery's own tasks")


def _read_payload(body: str) -> Payload:
    what = "the Celery envelope: body"
    try:
        args, kwargs, embed = _read(body, what)
    except (ValueError, TypeError, RecursionError) as exc:
        raise Undecodable(f"{what} is not [args, kwargs, embed]") from exc
    check_depth([args, kwargs, embed], body)
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise Undecodable(f"{what}: args is not an array, or kwargs is not an object")
    if embed not in NO_CALLBACKS:
        _checked(EMBED, embed, f"{what}: embed")
    return [args, kwargs, embed]


def _read(body: str, what: str) -> Any:
    """Parse JSON as Celery does: values that are marked as dates and other types are converted."""
    if MARK not in body and ASCII_ESCAPE not in body:
        return parsed(body)  # Most messages.
    converted, unconverted = [], f"{what} has a value that kombu cannot convert"

    def convert(value: dict[str, Any]) -> Any:
        result = _call(object_hook, value, unconverted)
        if result is not value:
            converted.append(result)
        return result

    content = loads(body, object_hook=convert)
    if converted:
        # A job of several messages is pickled as one: one bad value would fail all of them.
        _call(_pickle_and_back, converted, f"{what} has a value that cannot go to another process")
    return content


def _pickle_and_back(values: list[Any]) -> Any:
    return pickle.loads(pickle.dumps(values, pickle.HIGHEST_PROTOCOL))


def _call(function: Callable[[Any], Any], value: Any, reason: str) -> Any:
    try:
        return function(value)
    except (MemoryError, OSError):
        raise
    except Exception as exc:
        # Broad on purpose: kombu calls any converter that somebody registered.
        raise Undecodable(f"{reason} ({type(exc).__name__})") from exc


def _check_times(headers: Mapping[str, Any]) -> None:
    for name in ("eta", "expires"):
        try:
            if headers[name] is not None:
                datetime.fromisoformat(headers[name])
        except ValueError as exc:
            raise Undecodable(f"the Celery envelope: headers.{name} is not a time") from exc


def _from_foreign(
    content: dict[str, Any],
    source: Source,
    delivery: Delivery,
    decode_json: DecodeJson,
    places: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    foreign = decode_json(content)
    _refuse_built_in(foreign.task, "plain JSON")
    id_ = foreign.id or delivery.carried.id or delivery.message_id
    headers = HEADERS({"task": foreign.task, "id": id_, "root_id": id_, "headers": {}})
    payload = [[], foreign.kwargs, {}]
    provenance = _provenance(id_, source, delivery, has_producer_id=foreign.id is not None)
    headers |= context_of(delivery, *places, content)
    return _payload(payload, headers, delivery, provenance, {}, {})


def _provenance(
    id_: str, source: Source, delivery: Delivery, *, has_producer_id: bool
) -> Provenance:
    sent_at, deliveries = delivery.first_sent, delivery.deliveries
    return Provenance.made(id_, has_producer_id, source, deliveries, sent_at, delivery.attempt)


def _payload(
    payload: Payload,
    headers: dict[str, Any],
    delivery: Delivery,
    provenance: Provenance,
    properties: Mapping[str, Any],
    passed_on: Mapping[str, Any],
) -> dict[str, Any]:
    headers["retries"] = delivery.attempt - 1
    headers["delivery"] = provenance
    return {
        "body": payload,
        # The content type of data that kombu does not decode (kombu 5.7 serialization.py, `loads`).
        "content-type": "application/data",
        "content-encoding": "binary",
        "headers": headers,
        "properties": {
            **passed_on,
            "correlation_id": properties.get("correlation_id") or headers["id"],
            "reply_to": properties.get("reply_to"),
            "priority": properties.get("priority") or 0,
            "delivery_tag": delivery.tag,
            # kombu 5.7 `virtual._restore` reads the exchange and the routing key.
            "delivery_info": {
                "exchange": "",
                "routing_key": delivery.queue,
                "redelivered": delivery.deliveries > 1,
            },
        },
    }


def _checked(record: Record, value: object, what: str) -> dict[str, Any]:
    try:
        return record(value)
    except Wrong as exc:
        raise Undecodable(": ".join(filter(None, (what, ".".join(exc.place), exc.why)))) from None
