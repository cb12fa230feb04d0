"""kombu's envelope around a task: each part that Celery 5.7 reads, with the types that it accepts.

A malformed header ends a stock worker (celery 5.7 worker/request.py).
"""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

#: Most characters of a message id. Logs show it, and it is stored as a key.
LONGEST_ID = 255

#: The only content type and charset, and the encodings of a body.
JSON_TYPE, UTF_8, ENCODINGS = "application/json", "utf-8", ("base64", "utf-8")

Check = Callable[[Any], object]
"""Raises Wrong if a value is not what Celery accepts."""


class Wrong(ValueError):
    """A value that Celery does not accept. The text holds nothing of the message."""

    def __init__(self, why: str, *place: str) -> None:
        super().__init__(why, *place)
        self.why = why
        self.place = place
        """The names of the fields that lead to the value."""

    def within(self, name: str) -> "Wrong":
        """The same, seen from the field around it."""
        return Wrong(self.why, name, *self.place)


def a_text(value: Any) -> None:
    """Any string."""
    if not isinstance(value, str):
        raise Wrong("Input should be a valid string")


def an_integer(value: Any) -> None:
    """A whole number. True and False are none."""
    if type(value) is not int:
        raise Wrong("Input should be a valid integer")


def a_truth(value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise Wrong("Input should be a valid boolean")


def a_list(value: Any) -> list[Any]:
    """An array of anything."""
    if not isinstance(value, list):
        raise Wrong("Input should be a valid list")
    return value


def an_object(value: Any) -> dict[str, Any]:
    """An object of anything."""
    if not isinstance(value, dict):
        raise Wrong("Input should be a valid dictionary")
    return value


#: The checks that ask for a type and nothing else.
TYPES: dict[Check, type] = {
    a_text: str,
    an_integer: int,
    a_truth: bool,
    a_list: list,
    an_object: dict,
}


class Record:
    """An object with known fields. Other fields are kept, unless it is closed."""

    def __init__(
        self,
        required: Mapping[str, Check],
        optional: Mapping[str, Check],
        defaults: Mapping[str, Any] | None = None,
        *,
        is_closed: bool = False,
    ) -> None:
        """An optional field may be null, unless it is in `defaults`, which has the values of
        missing fields; those of all others are None."""
        self._checks = {**required, **optional}
        self._required = tuple(required)
        self._may_be_null = {*optional} - {*(defaults or ())}
        #: The fields whose check is over if the value has exactly this type.
        self._types = {n: TYPES[check] for n, check in self._checks.items() if check in TYPES}
        self.defaults = {**dict.fromkeys(optional), **(defaults or {})}
        self._is_closed = is_closed
        self.names = frozenset(self._checks)
        #: The fields whose check asks for more than a type.
        self.asked_for_more = self.names - self._types.keys()

    def __call__(self, value: Any) -> dict[str, Any]:
        """The fields of an object, with the defaults of those that are missing. Raises Wrong."""
        fields = an_object(value)
        for name in self._required:
            if name not in fields:
                raise Wrong("Field required", name)
        _check_unicode("".join(fields))
        read = {**self.defaults, **fields}
        types, may_be_null = self._types, self._may_be_null
        for name, found in fields.items():
            # Every message comes by here: most fields need no call.
            if (found is None and name in may_be_null) or type(found) is types.get(name):
                continue
            if (check := self._checks.get(name)) is not None:
                read[name] = self._read(name, check, found)
            elif self._is_closed:
                raise Wrong("it has a field that Celery does not know")
        return read

    def _read(self, name: str, check: Check, value: Any) -> Any:
        try:
            read = check(value)
        except Wrong as exc:
            raise exc.within(name) from None
        return read if isinstance(check, Record) else value


def a_name(value: Any) -> None:
    """A string of 1 to LONGEST_ID characters, which can be encoded."""
    a_text(value)
    _check_unicode(value)
    if not 1 <= len(value) <= LONGEST_ID:
        raise Wrong(f"String should have 1 to {LONGEST_ID} characters")


def time_limits(value: Any) -> None:
    """Two numbers of seconds, or nulls."""
    if len(a_list(value)) != 2:
        raise Wrong("List should have 2 items")
    for seconds in value:
        if seconds is None:
            continue
        if type(seconds) not in (int, float) or not (seconds >= 0 and _is_finite(seconds)):
            raise Wrong("Input should be a number of seconds from 0")


def each(check: Check) -> Check:
    """An array whose elements pass the check."""

    def check_all(value: Any) -> None:
        for place, element in enumerate(a_list(value)):
            try:
                check(element)
            except Wrong as exc:
                raise exc.within(str(place)) from None

    return check_all


def one_of(*known: str) -> Check:
    """One of these strings."""

    def check(value: Any) -> None:
        if not isinstance(value, str) or value not in known:
            raise Wrong(f"Input should be {' or '.join(map(repr, known))}")

    return check


def _check_unicode(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Wrong("Input should be valid Unicode") from None


def _is_finite(number: float) -> bool:
    return isinstance(number, int) or isfinite(number)


#: A task to call after this one.
SIGNATURE = Record(
    {"task": a_name, "options": an_object},
    {"args": a_list, "kwargs": an_object},
    {"args": [], "kwargs": {}},
)

#: The canvas of a task: the tasks that follow it.
#:
#: The pool process copies each key of it into the task's request (celery 5.7 app/trace.py). Another
#: key could falsify the message's origin and its number of deliveries, so it is refused.
EMBED = Record(
    {},
    {
        "callbacks": each(SIGNATURE),
        "errbacks": each(SIGNATURE),
        "chain": each(SIGNATURE),
        "chord": SIGNATURE,
    },
    is_closed=True,
)

#: The headers that Celery 5.7 reads, with the types that it accepts. The task also gets the other
#: headers, except those that would overwrite an attribute of Celery's request.
HEADERS = Record(
    {"task": a_name, "id": a_name},
    {
        "root_id": a_text,
        "parent_id": a_text,
        "group": a_text,
        "group_index": an_integer,
        "shadow": a_text,
        "eta": a_text,
        "expires": a_text,
        "timelimit": time_limits,
        "ignore_result": a_truth,
        "replaced_task_nesting": an_integer,
        "stamped_headers": each(a_text),
        "stamps": an_object,
        "compression": one_of("application/x-gzip"),
        "origin": a_text,
        "headers": an_object,
    },
    {"replaced_task_nesting": 0},
)

#: The properties of kombu's envelope that this project reads.
PROPERTIES = Record(
    {},
    {
        "body_encoding": one_of(*ENCODINGS),
        "correlation_id": a_text,
        "reply_to": a_text,
        "priority": an_integer,
    },
)

#: The message in which kombu sends a task (kombu 5.7 transport/virtual/base.py).
ENVELOPE = Record(
    {
        "body": a_text,
        "headers": HEADERS,
        "properties": PROPERTIES,
        "content-type": one_of(JSON_TYPE),
        "content-encoding": one_of(UTF_8),
    },
    {},
)
