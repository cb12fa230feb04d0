"""The content of an envelope: its encodings, and the form that it has in Celery's protocol 1."""

import base64
import binascii
import json
import zlib
from typing import Any

from sqs_broker.errors import Undecodable
from sqs_broker.limits import MOST_BYTES

#: Most bytes of a body after decompression: as many as a message without compression can have. So
#: compression lets nobody send a body that costs the worker more.
MOST_DECOMPRESSED = MOST_BYTES

#: The fields of a body of protocol 1 that are headers in protocol 2 (celery 5.7 app/amqp.py).
#: SQS counts the retries, and `taskset` is an old name of `group`.
HEADERS_OF_1 = ("task", "id", "group", "group_index", "eta", "expires", "timelimit")

#: Those that are in the embed.
EMBED_OF_1 = ("callbacks", "errbacks", "chord")

_DECODER = json.JSONDecoder()

NOT_BASE64 = "the Celery envelope: body is not base64 of text"


def parsed(text: str) -> Any:
    """What json.loads returns and raises, in less time if nothing is around the value."""
    try:
        value, end = _DECODER.raw_decode(text)
        if end == len(text):
            return value
    except ValueError:
        pass  # There may be spaces before it.
    return json.loads(text)


def text_of(body: str, encoding: str | None, compression: str | None) -> str:
    """The text of a body. `encoding` is None, `utf-8` or `base64`; `compression` is None or gzip.
    Raises Undecodable."""
    if encoding != "base64":
        if compression:
            raise Undecodable("the Celery envelope: body is compressed, but not in base64")
        return body
    data = base64_of(body, NOT_BASE64)
    if compression:
        data = _decompressed(data)
    try:
        return data.decode("utf-8")
    except ValueError as exc:
        raise Undecodable(NOT_BASE64) from exc


def base64_of(text: str, reason: str) -> bytes:
    """The data in base64. Raises Undecodable with this reason if it is not base64."""
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Undecodable(reason) from exc


def version_2(content: dict[str, Any]) -> dict[str, Any]:
    """An envelope of protocol 1 (`task_protocol=1`) as one of protocol 2; any other as it is.

    In protocol 1 the body holds all that Celery knows of the message, in one object, and the
    headers are the producer's own. Raises Undecodable if the body cannot be read.
    """
    if isinstance(sent := content.get("headers"), dict) and "task" in sent:
        return content  # Most messages. A `match` takes a microsecond.
    match content:
        case {"headers": dict(headers), "properties": dict(properties), "body": str(text)}:
            text = text_of(text, properties.get("body_encoding"), headers.get("compression"))
        case _:
            return content
    try:
        return content | _moved(json.loads(text), headers, properties)
    except (ValueError, RecursionError):
        return content


def _moved(body: Any, headers: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """The parts of an envelope that a body of protocol 1 changes; none if it is not one."""
    if not isinstance(body, dict) or "task" not in body:
        return {}
    known = {name: body[name] for name in HEADERS_OF_1 if name in body}
    embed = {"chain": None, **{name: body.get(name) for name in EMBED_OF_1}}
    return {
        "headers": {**headers, "group": body.get("taskset"), **known, "compression": None},
        "properties": properties | {"body_encoding": None},
        "body": json.dumps([body.get("args", []), body.get("kwargs", {}), embed]),
    }


def _decompressed(data: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        # One byte more, so that a body of the largest size also reaches its end.
        content = inflate.decompress(data, MOST_DECOMPRESSED + 1)
    except zlib.error as exc:
        raise Undecodable("the Celery envelope: body is not gzip, as its headers say") from exc
    if len(content) > MOST_DECOMPRESSED:
        raise Undecodable(
            f"the Celery envelope: body is larger than {MOST_DECOMPRESSED} bytes without gzip"
        )
    if not inflate.eof:
        raise Undecodable("the Celery envelope: body is cut off")
    return content
