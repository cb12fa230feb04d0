"""Reads the data of a message from JSON, and checks it with the model that the worker uses."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from app.api.problems import Fault
from app.messages import LARGEST_INTEGER, Increment, Message, fields_of
from sqs_broker.errors import Undecodable
from sqs_broker.rules.decoding import DEEPEST, check_depth

M = TypeVar("M", bound=Message)

#: The whole body.
ROOT = "#"


class Malformed(Exception):
    """The text is not JSON. The text of the error says where, without a value."""


class Invalid(Exception):
    """The data is not that of a message."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = faults


def parse(text: bytes | bytearray) -> Any:
    """The content of a JSON text in UTF-8. Raises Malformed."""
    try:
        return _DECODER.decode(text.decode())
    except UnicodeDecodeError:
        raise Malformed("The text is not UTF-8.") from None
    except json.JSONDecodeError as exc:
        raise Malformed(f"{exc.msg}: line {exc.lineno}, column {exc.colno}.") from None
    except ValueError:
        raise Malformed("A number has too many digits.") from None
    except RecursionError:
        raise Malformed("The text is nested too deeply.") from None


def _number(text: str) -> float:
    """A number that is not written as an integer. Without a fraction it is one all the same, as in
    JSON Schema: `2.0` is 2."""
    number = float(text)
    is_exact = number.is_integer() and abs(number) <= LARGEST_INTEGER
    return int(number) if is_exact else number


#: Created once, because the functions of `json` create them for each call with such options.
_DECODER = json.JSONDecoder(parse_float=_number)
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def encode(content: Any) -> str:
    """The data of a message as JSON, in ASCII: SQS refuses some characters that JSON allows. Raises
    Invalid, also if a worker could not read the message that has this data."""
    try:
        text = _ENCODER.encode(content)
    except (ValueError, RecursionError):
        raise Invalid(Fault("has a number that JSON cannot carry", ROOT)) from None
    try:
        check_depth(content, text, above=1)
    except Undecodable:
        # A worker cannot read the id of such a message, so its state would stay `pending`.
        raise Invalid(Fault(f"is nested deeper than {DEEPEST - 1} levels", ROOT)) from None
    return text


def check(model: type[M], content: Any) -> M:
    """The message that this content is the data of, in either spelling of its fields.

    Raises Invalid with every fault, each with a pointer in the client's own spelling.
    """
    if not isinstance(content, dict):
        raise Invalid(Fault("should be a JSON object", ROOT))
    if twice := [
        alias for name, alias in _spellings(model) if name in content and alias in content
    ]:
        raise Invalid(*(Fault("is given in two spellings", _pointer([a])) for a in twice))
    try:
        message = model.model_validate(fields_of(model, (), content))
    except ValidationError as exc:
        raise Invalid(*_faults_of(exc, content)) from None
    if isinstance(message, Increment) and abs(message.input) > LARGEST_INTEGER:
        # The worker takes larger floats. JSON does not say which numbers are integers.
        raise Invalid(Fault(f"should be at most {LARGEST_INTEGER} from zero", "#/input"))
    return message


@cache
def _spellings(model: type[Message]) -> list[tuple[str, str]]:
    """The fields that have two spellings."""
    both = ((name, to_camel(name)) for name in model.model_fields)
    return [(name, alias) for name, alias in both if name != alias]


def _faults_of(error: ValidationError, content: dict[str, Any]) -> Sequence[Fault]:
    details: dict[str, list[str]] = {}
    is_snake = _is_snake(content)
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        pointer = _pointer(_spelled(fault["loc"], content, is_snake))
        details.setdefault(pointer, []).append(fault["msg"])
    # Each type of a union has its own error.
    return [Fault(" or ".join(texts), pointer) for pointer, texts in details.items()]


def _is_snake(content: dict[str, Any]) -> bool:
    """Whether the client uses names such as `stock_id`, and not `stockId`."""
    words = [key for key in content if isinstance(key, str)]
    return any("_" in word for word in words) and not any(w != w.lower() for w in words)


def _spelled(location: Iterable[int | str], content: Any, is_snake: bool) -> list[str]:
    """The location as the client wrote it. A part that is no field, such as the name of a type of a
    union, ends it."""
    parts: list[str] = []
    for name in map(str, location):
        if not isinstance(content, dict):
            break
        alias = to_camel(name)
        missing = name if is_snake else alias
        part = next((each for each in (alias, name) if each in content), missing)
        parts.append(part)
        content = content.get(part)
    return parts


def _pointer(parts: Sequence[str]) -> str:
    """A JSON pointer in a URI fragment (RFC 6901, section 6)."""
    escaped = (part.replace("~", "~0").replace("/", "~1") for part in parts)
    return ROOT + "".join(f"/{quote(part)}" for part in escaped)
