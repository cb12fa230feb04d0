"""Whatever an event contains, the function returns no id that Lambda does not know."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, current_app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.messages import Increment
from sqs_broker.function import Function
from sqs_broker.function.event import MalformedEvent
from sqs_broker.testing import FakeSqs
from tests.lambda_trigger import Context

ARN = "arn:aws:sqs:us-east-1:123456789012:jobs"

WHOLE: dict[str, Any] = {
    "messageId": "id-1",
    "receiptHandle": "receipt-1",
    "body": json.dumps({"id": "1", "action": "increment", "data": {"input": 1}}),
    "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1545082649183"},
    "messageAttributes": {"a": {"stringValue": "x", "dataType": "String"}},
    "eventSource": "aws:sqs",
    "eventSourceARN": ARN,
}

AWKWARD = st.sampled_from(
    [None, "", "x", 0, -1, 10**30, 1.5, [], {}, [1], {"a": 1}, True, "99999999999999", "-1", "\x00"]
)

IDS = st.sampled_from(["id-1", "id-2", "id-3", "id-4"])


@st.composite
def records(draw: Any) -> Any:
    """A record in which something may be replaced or missing, at any depth."""
    record = json.loads(json.dumps(WHOLE)) | {"messageId": draw(IDS)}
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.sampled_from([record, record["attributes"], record["messageAttributes"]]))
        if not isinstance(place, dict) or not place:
            continue
        key = draw(st.sampled_from(sorted(place)))
        if draw(st.booleans()):
            place[key] = draw(AWKWARD)
        elif key not in ("attributes", "messageAttributes"):
            del place[key]
    return draw(st.one_of(st.just(record), st.just(record), AWKWARD))


@pytest.fixture(scope="module")
def function() -> Iterator[Function]:
    before = current_app._get_current_object()
    fake = FakeSqs()
    fake.create_queue("jobs", dead_letters="jobs-dlq", visibility_timeout=210)
    app = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    app.conf.update(
        broker_transport_options=fake.transport_options(decode_json="app.messages:decode_json"),
        task_acks_late=True,
        task_ignore_result=True,
        task_time_limit=30,
    )

    @app.task(shared=False, name="increment", model=Increment)
    def increment(message: Increment, provenance: Any) -> None:
        if message.input:
            raise KeyError

    # Nothing waits: neither the test nor a second try.
    fake.pause = lambda seconds: None  # type: ignore[method-assign]  # of this one object
    yield Function(app, write=lambda line: None)
    before.set_current()


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(given_records=st.lists(records(), max_size=5))
def test_each_id_that_is_returned_is_one_of_the_event(
    function: Function, given_records: list[Any]
) -> None:
    known = {
        record["messageId"]
        for record in given_records
        if isinstance(record, dict) and isinstance(record.get("messageId"), str)
    }
    context = Context(function_end(), clock)
    try:
        answer = function({"Records": given_records}, context)
    except MalformedEvent:
        # Only if a record has no id that could be returned.
        assert len(known) < len(given_records) or "" in known
        return
    returned = [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]
    assert set(returned) <= known - {""}
    assert len(returned) == len(set(returned))


def clock() -> float:
    return 0.0


def function_end() -> float:
    return 30.0
