"""Lambda's event source mapping, as AWS documents it, in front of a FakeSqs."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Received
from sqs_broker.testing import FakeSqs

#: The visibility timeout of the queue of a function of 30 s and a window of 30 s.
VISIBILITY = 210

#: System attributes of each record.
SYSTEM = ("ApproximateFirstReceiveTimestamp", "ApproximateReceiveCount", "SentTimestamp")


@dataclass
class Context:
    """What Lambda passes with an event, as far as it is used. `clock` in seconds."""

    ends_at: float
    clock: Callable[[], float]

    def get_remaining_time_in_millis(self) -> int:
        return int((self.ends_at - self.clock()) * 1000)


@dataclass
class Trigger:
    """Passes the messages of a queue to a function, and deletes what it does not return."""

    fake: FakeSqs
    url: str
    function: Callable[[Any, Any], Any]
    timeout: float = 30.0
    batch: int = 10
    #: What the invocations raised.
    raised: list[BaseException] = field(default_factory=list)

    def event(self) -> dict[str, Any]:
        """Receive a batch, and make an event of it."""
        received = Queue(self.url, self.fake).receive(
            self.batch, 0, visibility=VISIBILITY, system=SYSTEM
        )
        return {"Records": [record_of(message, self.fake.arn(self.url)) for message in received]}

    def invoke(self, event: Any = None) -> Any:
        """Call the function with what is visible, or with this event; give its answer. Deletes
        nothing."""
        context = Context(self.fake.clock() + self.timeout, self.fake.clock)
        return self.function(self.event() if event is None else event, context)

    def poll(self) -> int:
        """One turn of the mapping: receive, invoke, delete. Give the number of records."""
        event = self.event()
        if event["Records"]:
            try:
                answer = self.invoke(event)
            except Exception as exc:
                self.raised.append(exc)
            else:
                self._delete(event, answer)
        return len(event["Records"])

    def _delete(self, event: Mapping[str, Any], answer: Any) -> None:
        returned = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        known = {record["messageId"] for record in event["Records"]}
        # Otherwise Lambda takes the whole batch for failed.
        assert returned <= known, "an id that the event does not have"
        handles = [r["receiptHandle"] for r in event["Records"] if r["messageId"] not in returned]
        Queue(self.url, self.fake).delete(handles)


def record_of(message: Received, arn: str, **system: str) -> dict[str, Any]:
    """The record that Lambda makes of a message:
    https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html"""
    return {
        "messageId": message.message_id,
        "receiptHandle": message.receipt_handle,
        "body": message.body,
        "attributes": {
            "SenderId": "AIDAIENQZJOLO23YVJ4VO",
            **message.system,
            **system,
        },
        "messageAttributes": {
            name: attribute_of(value) for name, value in message.attributes.items()
        },
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
        "awsRegion": "us-east-1",
    }


def attribute_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """A message attribute as Lambda gives it."""
    given: dict[str, Any] = {
        "stringListValues": [],
        "binaryListValues": [],
        "dataType": value["DataType"],
    }
    if "BinaryValue" in value:
        given["binaryValue"] = base64.b64encode(value["BinaryValue"]).decode()
    else:
        given["stringValue"] = value["StringValue"]
    return given
