"""From a message as SQS gives it to one as Celery takes it, or a reason why not.

Three doors lead in. A Celery envelope, written by ours or by a stock kombu 5.7 producer (which
wraps it, or its body, or both in base64); plain JSON from any program; and either of them inside a
notification of SNS. Whatever else a body holds, the answer is `Undecodable`: Celery is given only
what it can run, since a malformed header ends a stock worker (celery 5.7 worker/request.py).
"""

import base64
import binascii
import json
import pickle
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from celery.app.task import Context
from kombu.utils.json import loads, object_hook
from pydantic import ValidationError

from sqs_broker.errors import Undecodable
from sqs_broker.rules.envelope import Embed, Envelope, Headers, Properties
from sqs_broker.rules.foreign import DecodeJson
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.provenance import Provenance, Source

#: Layers of base64 that kombu's SQS transport can put around an envelope.
MOST_LAYERS = 2

#: Levels of arrays and objects in a body. Deeper ones, which json.loads still reads, meet Python's
#: limit of recursion later, in Celery's event loop, which ends the worker.
DEEPEST = 64

#: Headers that Celery reads.
CELERYS = frozenset(Headers.model_fields)

Model = TypeVar("Model")

#: What a task is called with: args, kwargs, embed.
Payload = list[Any]


def decode(delivery: Delivery, decode_json: DecodeJson | None) -> dict[str, Any]:
    """The delivery as a payload of kombu's `virtual.Message`.

    This is the one reading of a body: `body` is [args, kwargs, embed] as the task gets them, and
    goes to the pool's process like that. In plain JSON everything is data; in Celery's envelope
    kombu makes dates and the like of what is written as such.

    Headers from outside that describe the delivery (`retries`, `redelivered`) are overwritten with
    what SQS says; the header `delivery` tells the task where the message came from. Raises
    Undecodable, whose reason holds nothing of the body; MemoryError and OSError are no fault of a
    body and are raised as they are.
    """
    content = _json_object(delivery.body)
    source = Source.JSON
    if _is_sns(content):
        content, source = _json_object(content["Message"]), Source.SNS
    if "properties" in content:
        return _from_envelope(content, delivery)
    if decode_json is None:
        raise Undecodable("the body is no Celery message, and plain JSON is not accepted here")
    return _from_foreign(content, source, delivery, decode_json)


def _json_object(text: str) -> dict[str, Any]:
    for layer in range(MOST_LAYERS + 1):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as exc:
            if layer == MOST_LAYERS:
                raise Undecodable("the body is not JSON") from exc
            text = _without_base64(text, "the body is neither JSON nor base64 of JSON")
        else:
            _check_depth(content)
            if not isinstance(content, dict):
                raise Undecodable(f"the body is a JSON {_json_type(content)}, not an object")
            return content
    raise AssertionError("unreachable: the loop returns or raises")


def _check_depth(content: object) -> None:
    level = [content]
    for _ in range(DEEPEST):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise Undecodable(f"the body is nested deeper than {DEEPEST} levels")


def _without_base64(text: str, blame: str) -> str:
    try:
        return base64.b64decode(text.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError) as exc:
        # Also what can be decoded and is no UTF-8: many a plain word is base64 of some bytes.
        raise Undecodable(blame) from exc


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


def _from_envelope(content: dict[str, Any], delivery: Delivery) -> dict[str, Any]:
    envelope = _checked(Envelope.model_validate, content, "the Celery envelope")
    body = envelope.body
    if envelope.properties.body_encoding == "base64":
        body = _without_base64(body, "the Celery envelope: body is not base64 of text")
    payload = _read_payload(body)
    headers = {
        name: value
        for name, value in envelope.headers.model_dump().items()
        if name in CELERYS or not hasattr(Context, name)
    }
    _check_times(headers)
    provenance = _provenance(headers["id"], Source.CELERY, delivery, has_producer_id=True)
    return _payload(payload, headers, delivery, provenance, envelope.properties)


def _read_payload(body: str) -> Payload:
    what = "the Celery envelope: body"
    try:
        args, kwargs, embed = _read(body, what)
    except (ValueError, TypeError, RecursionError) as exc:
        raise Undecodable(f"{what} is not [args, kwargs, embed]") from exc
    _check_depth([args, kwargs, embed])
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise Undecodable(f"{what}: args is not an array, or kwargs is not an object")
    if embed is not None:
        _checked(Embed.model_validate, embed, f"{what}: embed")
    return [args, kwargs, embed]


def _read(body: str, what: str) -> Any:
    """Celery's own way, which makes dates and the like of what names them so."""
    made, unmade = [], f"{what} has a value that kombu cannot make"

    def make(value: dict[str, Any]) -> Any:
        it = _tried(object_hook, value, unmade)
        if it is not value:
            made.append(it)
        return it

    content = loads(body, object_hook=make)
    if made:
        # One that does not survive the way to a process would take the others of its job along.
        _tried(_sent, made, f"{what} has a value that cannot go to another process")
    return content


def _sent(values: list[Any]) -> Any:
    return pickle.loads(pickle.dumps(values, pickle.HIGHEST_PROTOCOL))


def _tried(function: Callable[[Any], Any], value: Any, blame: str) -> Any:
    try:
        return function(value)
    except (MemoryError, OSError):
        raise
    except Exception as exc:
        # Broad on purpose: what makes a value is any code that somebody registered with kombu.
        raise Undecodable(f"{blame} ({type(exc).__name__})") from exc


def _check_times(headers: Mapping[str, Any]) -> None:
    for name in ("eta", "expires"):
        try:
            if headers[name] is not None:
                datetime.fromisoformat(headers[name])
        except ValueError as exc:
            raise Undecodable(f"the Celery envelope: headers.{name} is not a time") from exc


def _from_foreign(
    content: dict[str, Any], source: Source, delivery: Delivery, decode_json: DecodeJson
) -> dict[str, Any]:
    foreign = decode_json(content)
    if foreign.task.startswith("celery."):
        raise Undecodable("plain JSON cannot reach Celery's own tasks")
    id_ = foreign.id or delivery.message_id
    headers = Headers(task=foreign.task, id=id_, root_id=id_).model_dump()
    payload = [[], foreign.kwargs, {}]
    provenance = _provenance(id_, source, delivery, has_producer_id=foreign.id is not None)
    return _payload(payload, headers, delivery, provenance, Properties())


def _provenance(
    id_: str, source: Source, delivery: Delivery, *, has_producer_id: bool
) -> Provenance:
    sent_at = delivery.enqueued_at.astimezone(UTC)
    return Provenance(id_, has_producer_id, source, delivery.count, sent_at)


def _payload(
    payload: Payload,
    headers: dict[str, Any],
    delivery: Delivery,
    provenance: Provenance,
    properties: Properties,
) -> dict[str, Any]:
    headers["retries"] = delivery.count - 1
    headers["delivery"] = provenance
    return {
        "body": payload,
        # kombu's words for data that is there as it is (kombu 5.7 serialization.py, `loads`).
        "content-type": "application/data",
        "content-encoding": "binary",
        "headers": headers,
        "properties": {
            "correlation_id": properties.correlation_id or headers["id"],
            "reply_to": properties.reply_to,
            "priority": properties.priority or 0,
            "delivery_tag": delivery.tag,
            # `virtual._restore` reads exchange and routing key (kombu 5.7).
            "delivery_info": {
                "exchange": "",
                "routing_key": delivery.queue,
                "redelivered": delivery.count > 1,
            },
        },
    }


def _checked(validate: Callable[[Any], Model], value: object, what: str) -> Model:
    try:
        return validate(value)
    except ValidationError as exc:
        fault = exc.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise Undecodable(f"{what}: {where}: {fault['msg']}") from None
