"""From a kombu message to a SendMessage call, refused at the caller where SQS would refuse it."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kombu.utils.json import dumps

from app.broker.deadletter import MOST_ATTRIBUTES, size
from app.broker.errors import MessageTooLarge, PublishError
from app.broker.options import QueueAddress
from app.broker.outcomes import LONGEST_DELAY

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient


def publish(client: "SQSClient", queue: QueueAddress, message: dict[str, Any], limit: int) -> None:
    """Send a kombu message, without base64, so that a stock worker can read it too.

    A message with an `eta` (Celery makes one of a countdown) waits in SQS, not in a worker. Raises
    PublishError before any call for what SQS would refuse, and botocore's errors as they are.
    """
    attributes = message["properties"].pop("message_attributes", {})
    body = _body(message, attributes, limit)
    client.send_message(
        QueueUrl=queue.url,
        MessageBody=body,
        MessageAttributes=attributes,
        DelaySeconds=min(seconds_until_due(message["headers"]), LONGEST_DELAY),
    )


def seconds_until_due(headers: Mapping[str, Any]) -> int:
    """Whole seconds, rounded up, until the `eta` header of a task; 0 where it is past or none."""
    eta = headers.get("eta")
    if not eta:
        return 0
    due = datetime.fromisoformat(eta)
    if due.tzinfo is None:
        due = due.replace(tzinfo=UTC)
    return max(0, math.ceil((due - datetime.now(UTC)).total_seconds()))


def _body(message: dict[str, Any], attributes: Mapping[str, Any], limit: int) -> str:
    if not isinstance(message["body"], str):
        raise PublishError(
            "The body is bytes, which JSON cannot carry. Send JSON without compression."
        )
    if len(attributes) > MOST_ATTRIBUTES:
        raise PublishError(f"SQS takes {MOST_ATTRIBUTES} attributes; there are {len(attributes)}.")
    body: str = dumps(message)
    if (bytes_ := size(body, attributes)) > limit:
        raise MessageTooLarge(
            f"The message is {bytes_} bytes; the queue takes {limit}. Send an id, not the object."
        )
    return body
