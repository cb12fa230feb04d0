"""When a message was first sent: a copy says it, and nobody can make it later than SQS says."""

from datetime import timedelta
from typing import Any

import pytest

from sqs_broker.limits import MOST_ATTRIBUTES
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.sent_at import ATTRIBUTE, first_sent, of_copy
from tests.unit.conftest import SENT, MakeDelivery, celery_message

LIMIT = 1_000


def number(value: str) -> dict[str, Any]:
    return {ATTRIBUTE: {"DataType": "Number", "StringValue": value}}


def test_a_task_is_told_when_the_producer_sent_its_message(make_delivery: MakeDelivery) -> None:
    first = make_delivery(body=celery_message("job"), enqueued_at=SENT)
    copy = make_delivery(
        body=first.body,
        attributes=of_copy(first, LIMIT),
        enqueued_at=SENT + timedelta(minutes=15),
    )
    assert decode(copy, None)["headers"]["delivery"].enqueued_at == SENT
    assert of_copy(copy, LIMIT) == of_copy(first, LIMIT)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        number("tomorrow"),
        number(""),
        number("9" * 40),
        number(str(round(SENT.timestamp() * 1000) + 1)),
        {ATTRIBUTE: {"DataType": "Binary", "BinaryValue": b"7"}},
        {ATTRIBUTE: {}},
    ],
)
def test_what_is_no_earlier_time_is_not_believed(
    make_delivery: MakeDelivery, attributes: Any
) -> None:
    assert first_sent(make_delivery(attributes=attributes, enqueued_at=SENT)) == SENT


def test_a_copy_has_the_attributes_of_its_message(make_delivery: MakeDelivery) -> None:
    trace = {"trace": {"DataType": "String", "StringValue": "1-2"}}
    copy = of_copy(make_delivery(attributes=trace), LIMIT)
    assert copy == trace | number(str(round(SENT.timestamp() * 1000)))


def test_a_copy_that_sqs_would_refuse_with_the_time_goes_without_it(
    make_delivery: MakeDelivery,
) -> None:
    many = {f"a{n}": {"DataType": "String", "StringValue": "x"} for n in range(MOST_ATTRIBUTES)}
    assert of_copy(make_delivery(attributes=many), LIMIT) == many
    assert of_copy(make_delivery(body="x" * (LIMIT - 10)), LIMIT) == {}
