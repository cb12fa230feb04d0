"""Each way to say which trace and request a message belongs to, and what is not believed."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from app.messages import decode_json
from sqs_broker.errors import Undecodable
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.facts import facts_of
from sqs_broker.rules.trace_context import from_xray, request_id_of, trace_id_of
from tests.unit.conftest import MakeDelivery

TRACE = "5759e988bd862e3fe1be46a994272793"
FIRST = f"00-{TRACE}-53995c3f42cd8ad8-01"
OTHER = "00-" + "b" * 32 + "-" + "c" * 16 + "-00"
XRAY = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"

PLAIN = {"action": "registerUser", "data": {}}


def attributes(**values: str) -> dict[str, Mapping[str, Any]]:
    return {name: {"DataType": "String", "StringValue": value} for name, value in values.items()}


def envelope(**headers: Any) -> str:
    return json.dumps(
        {
            "body": json.dumps([[], {}, {}]),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": "registerUser", "id": "id-1", **headers},
            "properties": {
                "correlation_id": "id-1",
                "delivery_info": {"exchange": "", "routing_key": "jobs"},
            },
        }
    )


def notification(message: str, **values: str) -> str:
    given = {name: {"Type": "String", "Value": value} for name, value in values.items()}
    sns = {"Type": "Notification", "TopicArn": "arn:aws:sns:us-east-1:1:t", "Message": message}
    return json.dumps(sns | {"MessageAttributes": given})


@pytest.mark.parametrize(
    ("body", "given", "xray"),
    [
        (envelope(traceparent=FIRST), {}, None),
        (envelope(traceparent=FIRST), attributes(traceparent=OTHER), None),
        (envelope(), attributes(traceparent=FIRST), None),
        (json.dumps(PLAIN), attributes(traceparent=FIRST), XRAY.replace("53", "54")),
        (json.dumps(PLAIN | {"traceparent": FIRST}), {}, None),
        (json.dumps(PLAIN), {}, XRAY),
        (json.dumps(PLAIN | {"traceparent": 7}), attributes(traceparent="nonsense"), XRAY),
        (notification(json.dumps(PLAIN), traceparent=FIRST), {}, None),
        (notification(envelope(), traceparent=FIRST), {}, None),
        (notification(json.dumps(PLAIN | {"traceparent": FIRST})), {}, None),
        (notification(json.dumps(PLAIN)), {}, XRAY),
    ],
    ids=[
        "a header of Celery",
        "a header before an attribute",
        "an attribute beside Celery's envelope",
        "an attribute before X-Ray",
        "a field of the body",
        "X-Ray",
        "X-Ray if all else is not valid",
        "an attribute of an SNS message",
        "an attribute of an SNS message from Celery",
        "a field of the body in an SNS message",
        "X-Ray through SNS",
    ],
)
def test_the_task_gets_the_trace_that_the_message_belongs_to(
    body: str, given: dict[str, Any], xray: str | None, make_delivery: MakeDelivery
) -> None:
    delivery = make_delivery(body=body, attributes=given, trace_header=xray)
    headers = decode(delivery, decode_json)["headers"]
    assert headers["traceparent"] == FIRST
    assert facts_of(delivery, headers).trace_id == TRACE


def test_the_state_comes_from_where_the_trace_comes_from(make_delivery: MakeDelivery) -> None:
    body = envelope(traceparent=FIRST)
    delivery = make_delivery(body=body, attributes=attributes(traceparent=OTHER, tracestate="a=1"))
    assert "tracestate" not in decode(delivery, decode_json)["headers"]
    delivery = make_delivery(
        body=envelope(), attributes=attributes(traceparent=FIRST, tracestate="a=1")
    )
    assert decode(delivery, decode_json)["headers"]["tracestate"] == "a=1"


def test_the_task_gets_the_id_of_the_request_that_sent_the_message(
    make_delivery: MakeDelivery,
) -> None:
    for delivery in (
        make_delivery(body=json.dumps(PLAIN), attributes=attributes(request_id="r-1")),
        make_delivery(body=envelope(request_id="r-1")),
        make_delivery(body=notification(json.dumps(PLAIN), request_id="r-1")),
    ):
        headers = decode(delivery, decode_json)["headers"]
        assert headers["request_id"] == facts_of(delivery, headers).request_id == "r-1"


def test_a_message_that_says_nothing_of_it_gets_no_header(make_delivery: MakeDelivery) -> None:
    headers = decode(make_delivery(body=json.dumps(PLAIN)), decode_json)["headers"]
    assert not {"traceparent", "tracestate", "request_id"} & set(headers)


def test_the_trace_of_a_body_that_cannot_be_read_is_known_by_its_attributes(
    make_delivery: MakeDelivery,
) -> None:
    delivery = make_delivery(body="{", attributes=attributes(traceparent=FIRST, request_id="r-1"))
    with pytest.raises(Undecodable):
        decode(delivery, decode_json)
    facts = facts_of(delivery, None)
    assert (facts.trace_id, facts.request_id) == (TRACE, "r-1")


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "",
        FIRST.upper(),
        FIRST + "-1",
        FIRST.replace(TRACE, "0" * 32),
        FIRST.replace("53995c3f42cd8ad8", "0" * 16),
        FIRST + "\n",
    ],
)
def test_what_is_no_traceparent_names_no_trace(value: object) -> None:
    assert trace_id_of(value) is None


@pytest.mark.parametrize("value", [None, 7, "", "kim@example.org", "a b", "a" * 129, "a\n"])
def test_what_may_be_personal_data_is_no_request_id(value: object) -> None:
    assert request_id_of(value) is None


def test_xrays_header_becomes_a_traceparent() -> None:
    assert from_xray(XRAY) == FIRST
    assert from_xray(f"Self=1-67891234-12456789abcdef012345678;{XRAY}") == FIRST
    assert from_xray(XRAY.replace("Sampled=1", "Sampled=0")) == FIRST[:-2] + "00"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Root=1-5759e988-bd862e3fe1be46a994272793",
        "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=;Sampled=1",
        "Root=nonsense;Parent=53995c3f42cd8ad8",
        f"Root=1-{'0' * 8}-{'0' * 24};Parent=53995c3f42cd8ad8",
    ],
)
def test_what_of_xray_names_no_span_is_not_used(header: str | None) -> None:
    assert from_xray(header) is None
