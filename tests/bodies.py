"""Bodies of messages as nobody would write them: any text, any JSON, and messages of each door with
something in them replaced, taken away or added, at any depth.
"""

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

#: What is more likely to break something than any value is.
AWKWARD = (
    None, True, 0, -1, 2**31, 2**63, 2**80, 1e308, float("nan"), float("inf"), "", "\x00", "\ud800",
    "celery.chain", "celery.starmap", "registerUser", "increment", "nobody", "x" * 300,
    "2026-01-02T03:04:05Z", "tomorrow", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
    "2026-02-30",
    [], {}, [[]], [None, None], [0, 0], [1e308, 1e308], [-1, 5], {"task": "registerUser"},
    {"task": "increment", "args": [1], "kwargs": {}, "options": {}},
    {"__type__": "nosuch", "__value__": "Kim"}, {"__type__": "decimal", "__value__": "Kim"},
    {"__type__": "datetime", "__value__": "2026-01-02T03:04:05"}, {"__type__": [], "__value__": 0},
    [1e-9, 1e-9],
)  # fmt: skip

#: In place of a value: there is none.
NOTHING = object()

FIELDS = {"stock_id": "any", "user_id": "u1", "user_info": {"nickname": "Kim"}}

ENVELOPE: dict[str, Any] = {
    "body": [[], FIELDS, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}],
    "headers": {
        "lang": "py", "task": "registerUser", "id": "any", "root_id": "any", "parent_id": None,
        "group": None, "group_index": None, "shadow": None, "eta": None, "expires": None,
        "timelimit": [None, None], "retries": 0, "ignore_result": True, "stamped_headers": None,
        "stamps": {}, "argsrepr": "()", "kwargsrepr": "{}", "origin": "a", "compression": None,
        "replaced_task_nesting": 0,
    },
    "properties": {
        "correlation_id": "any", "reply_to": "r", "delivery_mode": 2, "priority": 0,
        "delivery_info": {"exchange": "", "routing_key": "jobs"}, "body_encoding": None,
        "delivery_tag": "t",
    },
    "content-type": "application/json",
    "content-encoding": "utf-8",
}  # fmt: skip

PLAIN: dict[str, Any] = {
    "id": "any",
    "action": "registerUser",
    "type": "increment",
    "data": {"stockId": "any", "userId": "u1", "userInfo": {"nickname": "Kim"}, "input": 1},
}

NOTIFICATION: dict[str, Any] = {
    "Type": "Notification",
    "TopicArn": "arn:aws:sns:eu-central-1:1:t",
    "MessageId": "m",
    "Message": PLAIN,
}

SIGNATURE: dict[str, Any] = {
    "task": "increment", "args": [], "kwargs": {"input": 1}, "options": {}, "subtask_type": None,
}  # fmt: skip

json_values = st.recursive(
    st.sampled_from(AWKWARD) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


Place = tuple[str | int, ...]


def places(content: Any, here: Place = ()) -> Iterator[Place]:
    """Every place in a JSON value that can hold another."""
    yield here
    if isinstance(content, dict | list):
        keys = list(content) if isinstance(content, dict) else range(len(content))
        for key in keys:
            yield from places(content[key], (*here, key))


def replaced(content: Any, place: Place, value: Any) -> Any:
    """The same but for one place; without `value`, that place is taken away."""
    if not place:
        return value
    key, *rest = place
    copied = content.copy()
    if not rest and value is NOTHING:
        del copied[key]
    else:
        copied[key] = replaced(content[key], tuple(rest), value)
    return copied


@st.composite
def altered(draw: st.DrawFn) -> str:
    """A message of one door in which a few places hold something else."""
    content: Any = draw(st.sampled_from([*[ENVELOPE] * 6, PLAIN, NOTIFICATION]))
    for _ in range(draw(st.integers(1, 3))):
        inner = [place for place in places(content) if place]
        if not inner:
            break
        value = draw(st.just(NOTHING) | st.sampled_from(AWKWARD) | json_values)
        content = replaced(content, draw(st.sampled_from(inner)), value)
    return _as_text(content)


@st.composite
def forged(draw: st.DrawFn) -> str:
    """An envelope that asks for more than its task: callbacks, tasks of Celery's own, time limits.
    Some are in a notification, of protocol 1 or in gzip, and in some one place holds something
    else."""
    task = draw(st.sampled_from(["registerUser", "celery.chunks", "celery.group"]))
    limits = draw(st.sampled_from([[None, None], [1e9, 1e9], [1e-9, 1e-9], [20, 10], [-1, 0]]))
    group = {**SIGNATURE, "task": "celery.group", "subtask_type": "group", "kwargs": {"tasks": []}}
    place = draw(st.sampled_from(["none", "callbacks", "errbacks", "chain", "chord"]))
    called = draw(st.sampled_from([SIGNATURE, group, {**SIGNATURE, "options": {"link": [group]}}]))
    embed = {} if place == "none" else {place: called if place == "chord" else [called]}
    content: Any = {
        **ENVELOPE,
        "body": [[], FIELDS, embed],
        "headers": {**ENVELOPE["headers"], "task": task, "timelimit": limits},
    }
    how = draw(st.sampled_from(["as it is", "in a notification", "protocol 1", "gzip"]))
    if how == "in a notification":
        content = NOTIFICATION | {"Message": content}
    elif how == "protocol 1":
        content = protocol_1(content)
    elif how == "gzip":
        content = in_gzip(content)
    if draw(st.booleans()):
        inner = [one for one in places(content) if one]
        content = replaced(content, draw(st.sampled_from(inner)), draw(st.sampled_from(AWKWARD)))
    return _as_text(content)


def protocol_1(envelope: dict[str, Any]) -> dict[str, Any]:
    """The envelope as a producer with `task_protocol=1` sends it."""
    args, kwargs, embed = envelope["body"]
    body = envelope["headers"] | {"args": args, "kwargs": kwargs} | embed
    return envelope | {"headers": {}, "body": body}


def in_gzip(envelope: dict[str, Any]) -> dict[str, Any]:
    """The envelope as a producer with `compression="gzip"` sends it."""
    body = base64.b64encode(zlib.compress(json.dumps(envelope["body"]).encode())).decode()
    headers = envelope["headers"] | {"compression": "application/x-gzip"}
    properties = envelope["properties"] | {"body_encoding": "base64"}
    return envelope | {"headers": headers, "properties": properties, "body": body}


def _as_text(content: Any) -> str:
    """The JSON of a message, in which two fields are JSON themselves: one in the other, if an
    envelope is in a notification."""
    if isinstance(content, dict):
        inner = {
            k: content[k] for k in ("body", "Message") if isinstance(content.get(k), dict | list)
        }
        content = content | {k: _as_text(value) for k, value in inner.items()}
    return json.dumps(content)


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


texts = (
    st.text()
    | st.binary().map(lambda data: data.decode("latin-1"))
    | st.binary().map(lambda data: base64.b64encode(data).decode())
    | json_values.map(json.dumps)
)

#: Most are near to what is right, where faults are least expected.
bodies = st.one_of(
    altered(),
    altered(),
    altered(),
    altered().map(in_base64),
    forged(),
    texts,
    texts.map(in_base64),
)
