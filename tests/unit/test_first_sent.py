"""When a message was first sent: a copy says it, and nobody can make it later than SQS says."""

from datetime import timedelta
from typing import Any

import pytest

from sqs_broker.limits import MOST_ATTRIBUTES
from sqs_broker.rules.attempts import Carried, with_carried
from sqs_broker.rules.attributes import ATTEMPTS
from sqs_broker.rules.decoding import decode
from tests.unit.conftest import SENT, MakeDelivery, celery_message

LIMIT = 1_000


def carrying(value: Any) -> dict[str, Any]:
    return {ATTEMPTS: {"DataType": "String", "StringValue": f'{{"sent": {value}}}'}}


def test_a_task_is_told_when_the_producer_sent_its_message(make_delivery: MakeDelivery) -> None:
    first = make_delivery(body=celery_message("job"), enqueued_at=SENT)
    carried = first.passed_on(has_failed=False, due=None)
    copy = make_delivery(
        body=first.body,
        attributes=with_carried(first.attributes, carried, first.body, LIMIT),
        enqueued_at=SENT + timedelta(minutes=15),
    )
    assert decode(copy, None)["headers"]["delivery"].enqueued_at == SENT
    assert copy.passed_on(has_failed=False, due=None).sent == SENT.timestamp()


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        carrying('"tomorrow"'),
        carrying('""'),
        carrying("1e40"),
        carrying("9" * 400),
        carrying("true"),
        carrying("NaN"),
        carrying(SENT.timestamp() + 1),
        {ATTEMPTS: {"DataType": "Binary", "BinaryValue": b"7"}},
        {ATTEMPTS: {}},
    ],
)
def test_what_is_no_earlier_time_is_not_believed(
    make_delivery: MakeDelivery, attributes: Any
) -> None:
    assert make_delivery(attributes=attributes, enqueued_at=SENT).first_sent == SENT


def test_a_copy_that_sqs_would_refuse_with_the_time_goes_without_it() -> None:
    many = {f"a{n}": {"DataType": "String", "StringValue": "x"} for n in range(MOST_ATTRIBUTES)}
    sent = Carried(sent=SENT.timestamp())
    assert with_carried(many, sent, "{}", LIMIT) == many
    assert with_carried({}, sent, "x" * (LIMIT - 10), LIMIT) == {}
