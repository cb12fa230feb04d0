"""Why a worker would refuse a message that is about to be sent.

The sender gets the reason as an error. Otherwise only a dead letter would tell it, and nobody may
look for one.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from kombu.utils.json import dumps, loads

from sqs_broker.errors import Undecodable
from sqs_broker.rules.canvas import NO_SIGNATURE, PREFIX, Canvas
from sqs_broker.rules.decoding import DEEPEST, check_depth
from sqs_broker.rules.envelope import ENVELOPE, Wrong
from sqs_broker.rules.short_form import NO_CALLBACKS

JSON = "application/json"

#: The arguments of a task: args, kwargs, embed.
PARTS = 3


class _Every(Collection[str]):
    """Contains each name: only a worker knows which tasks it has."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def why_refused(message: Mapping[str, Any], canvas: Canvas) -> str | None:
    """Why no worker with these rules for callbacks would run this kombu message of a task; None if
    nothing speaks against it. The reason holds nothing of the message but its content type.

    The arguments are not checked: the task does that, or a schema.
    """
    if message["content-type"] != JSON:
        return f"it is {message['content-type']}, and workers read only JSON (serializer='json')"
    try:
        _check_envelope(message)
        return _why_not_called(message["headers"]["task"], message["body"], canvas)
    except Wrong as exc:
        return f"{'.'.join(exc.place)}: {exc.why}"
    except Undecodable as exc:
        return str(exc)


def _check_envelope(message: Mapping[str, Any]) -> None:
    try:
        ENVELOPE(message)
    except Wrong:
        # A tuple, for example, is a list in JSON.
        ENVELOPE(loads(dumps(message)))


def _why_not_called(task: str, body: str, canvas: Canvas) -> str | None:
    calls_others = task.startswith(PREFIX) or not body.endswith(NO_CALLBACKS)
    if not calls_others and body.count("[") + body.count("{") < DEEPEST:
        return None  # Most messages. Brackets in strings count too.
    content = json.loads(body)
    check_depth(content, body)
    if not calls_others:
        return None
    if not isinstance(content, list) or len(content) != PARTS:
        return "its body is not [args, kwargs, embed]"
    refused = canvas.refuses(task, content, _Every())
    return None if refused is None else getattr(refused, "reason", NO_SIGNATURE)
