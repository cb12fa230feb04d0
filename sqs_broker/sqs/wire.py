"""SQS's JSON protocol: bodies of requests and answers, as botocore writes and reads them. Pure.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-making-api-requests-json.html
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from http.client import responses
from typing import Any

from sqs_broker.rules.content import parsed
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.requests import date_in

CONTENT_TYPE = "application/x-amz-json-1.0"

#: Before the name of an action.
TARGET = "AmazonSQS."

#: Members of an answer, and of a message in it, that must have a type. Any other is left as it is.
LISTS = ("Messages", "Successful", "Failed")
MAPPINGS = frozenset({"Attributes", "MessageAttributes"})

#: Used as a code if the answer was cut off, or is not SQS's.
UNREADABLE = "UnreadableAnswer"

#: Without its look for an object within itself, which takes a sixth of the time. Such a one exceeds
#: the recursion limit.
_to_json = json.JSONEncoder(check_circular=False).encode

Headers = Mapping[str, str]
"""The headers of an answer, by their names in lower case."""


# Requests


def encode(parameters: Mapping[str, Any]) -> bytes:
    """The body of a request. Raises TypeError if JSON has no type for a value."""
    return _to_json(_sent(parameters)).encode()


def _sent(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters with base64 in place of bytes, which only message attributes have."""
    if entries := parameters.get("Entries"):
        if any(entry.get("MessageAttributes") for entry in entries):
            return {**parameters, "Entries": [_sent(entry) for entry in entries]}
        return parameters
    given = parameters.get("MessageAttributes")
    if not given:
        return parameters
    attributes = {name: _sent_attribute(value) for name, value in given.items()}
    return {**parameters, "MessageAttributes": attributes}


def _sent_attribute(attribute: Mapping[str, Any]) -> Mapping[str, Any]:
    if (value := attribute.get("BinaryValue")) is None:
        return attribute
    # Text is what botocore encodes, too.
    data = value.encode() if isinstance(value, str) else bytes(value)
    return {**attribute, "BinaryValue": b64encode(data).decode()}


# Answers


def decode(body: bytes) -> Mapping[str, Any]:
    """The content of an answer, with bytes in place of base64. Raises Unreached if it is not one
    of SQS."""
    if not body:
        return {}
    try:
        # As json.loads does, but without its look for other encodings, which SQS does not use.
        content = _member(parsed(body.decode(errors="surrogatepass")))
        for name in LISTS:
            if members := content.get(name):
                content[name] = [_member(member) for member in members]
        return content
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        raise Unreached(UNREADABLE, "The answer cannot be read: it is not one of SQS") from None


def _member(given: dict[str, Any]) -> dict[str, Any]:
    """An answer, or a part of it. An answer to a delete has ten parts, so each call counts."""
    given = _without_none(given) if None in given.values() else given
    if MAPPINGS.isdisjoint(given):
        return given
    for name in MAPPINGS:
        if name in given and not isinstance(given[name], dict):
            raise TypeError
    if attributes := given.get("MessageAttributes"):
        for name, value in attributes.items():
            attributes[name] = _attribute(_without_none(value))
    return given


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    """botocore leaves out members without a value."""
    return {name: value for name, value in given.items() if value is not None}


def _attribute(given: dict[str, Any]) -> dict[str, Any]:
    if "BinaryValue" in given:
        given["BinaryValue"] = b64decode(given["BinaryValue"])
    return given


def headers_of(lines: Iterable[bytes]) -> tuple[Headers, bool]:
    """The headers of the last answer in these lines (a proxy's may be before it), and whether they
    are complete."""
    headers: dict[str, str] = {}
    is_complete = False
    for line in lines:
        if line.startswith(b"HTTP/"):
            headers, is_complete = {}, False
        elif not line.strip():
            is_complete = True
        else:
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
    return headers, is_complete


def refusal(action: str, status: int, headers: Headers, body: bytes) -> SqsError:
    """The error in an answer that has an HTTP status of 300 or more."""
    code, text = _fault(status, headers, body)
    message = f"An error occurred ({code}) when calling the {action} operation: {text}"
    return SqsError(code, message, at=date_in(headers.get("date")))


def _fault(status: int, headers: Headers, body: bytes) -> tuple[str, str]:
    """The code and the text of an error."""
    if status >= 500 and (not body or body.strip().startswith(b"<html>")):
        # Of a server on the way, not of SQS.
        return str(status), responses.get(status, "")
    content = _read_fault(body)
    code = str(content.get("__type", status)).partition(":")[0].rpartition("#")[2]
    # What the older protocol calls it, and whose fault it is.
    older = headers.get("x-amzn-query-error", "").split(";")
    if len(older) == 2 and older[0]:
        code = older[0]
    return code, str(content.get("message", content.get("Message", "")))


def _read_fault(body: bytes) -> dict[str, Any]:
    text = body.decode(errors="replace")
    try:
        content = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {"message": text}
    return content if isinstance(content, dict) else {}
