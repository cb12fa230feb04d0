"""Finds the trace and the request that a message belongs to: pure functions, for any tracing
library or none.

A producer gives them as headers of a Celery message, as message attributes, as fields of a plain
JSON body, as attributes of an SNS message, or in X-Ray's header. What is found reaches the task as
`self.request.traceparent`, `tracestate` and `request_id`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sqs_broker.rules.lease import Delivery

#: The names are the same in all places.
TRACEPARENT, TRACESTATE, REQUEST_ID = "traceparent", "tracestate", "request_id"

#: All names.
NAMES = (TRACEPARENT, TRACESTATE, REQUEST_ID)

#: https://www.w3.org/TR/trace-context/#traceparent-header. No id is all zeros.
_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

#: https://www.w3.org/TR/trace-context/#tracestate-header
_STATE = re.compile(r"[ -~]{1,512}")

#: What is taken over as a request id. No `@`: an address is personal data.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")

#: https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html#xray-concepts-tracingheader
_XRAY_ROOT = re.compile(r"1-([0-9a-f]{8})-([0-9a-f]{24})")
_XRAY_PARENT = re.compile(r"[0-9a-f]{16}")

Context = dict[str, str]
"""Those of NAMES that are known."""


def trace_id_of(traceparent: object) -> str | None:
    """The trace id in a `traceparent`; None if it is not one."""
    found = _PARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    return found[1] if found else None


def request_id_of(value: object) -> str | None:
    """A request id as logs may show it; None if it is not one."""
    is_one = isinstance(value, str) and _REQUEST_ID.fullmatch(value) is not None
    return str(value) if is_one else None


def context_of(delivery: Delivery, *places: Mapping[str, Any]) -> Context:
    """The trace and the request of a message. What `places` say, the first one first, comes before
    its attributes, and these before X-Ray's header. What is not valid is not there."""
    context: Context = {}
    if delivery.attributes:
        places = (*places, _values(delivery.attributes, "StringValue"))
    for place in places:
        # Most messages have neither.
        if TRACEPARENT in place and TRACEPARENT not in context and trace_id_of(place[TRACEPARENT]):
            context |= _of_trace(place)
        is_wanted = REQUEST_ID in place and REQUEST_ID not in context
        if is_wanted and (id_ := request_id_of(place[REQUEST_ID])):
            context[REQUEST_ID] = id_
    header = delivery.trace_header
    if header is not None and TRACEPARENT not in context and (traceparent := from_xray(header)):
        context[TRACEPARENT] = traceparent
    return context


def of_notification(notification: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attributes of an SNS message, by name, from the body that SNS makes of it.
    https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html"""
    attributes = notification.get("MessageAttributes")
    return _values(attributes, "Value") if isinstance(attributes, Mapping) else {}


def from_xray(header: str | None) -> str | None:
    """The `traceparent` for X-Ray's tracing header; None if it names no trace or no span."""
    if header is None:
        return None
    fields = dict(_pairs(header))
    root = _XRAY_ROOT.fullmatch(fields.get("Root", ""))
    if root is None or not _XRAY_PARENT.fullmatch(fields.get("Parent", "")):
        return None
    is_sampled = fields.get("Sampled") == "1"
    traceparent = f"00-{root[1]}{root[2]}-{fields['Parent']}-{is_sampled:02x}"
    return traceparent if trace_id_of(traceparent) else None


def _pairs(header: str) -> Iterator[tuple[str, str]]:
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        yield name, value


def _of_trace(place: Mapping[str, Any]) -> Context:
    state = place.get(TRACESTATE)
    found = {TRACEPARENT: place[TRACEPARENT]}
    if isinstance(state, str) and _STATE.fullmatch(state):
        found[TRACESTATE] = state
    return found


def _values(attributes: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = {name: attributes.get(name) for name in NAMES if name in attributes}
    return {n: given.get(key) for n, given in found.items() if isinstance(given, Mapping)}
