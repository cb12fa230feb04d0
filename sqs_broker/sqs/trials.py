"""Requests that show whether credentials allow an action, and have no effect.

SQS first decides on access, and then on the parameters of a call ("returns an Access denied error …
or continues to process the request"). So a call that SQS refuses for its parameters was allowed:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-creating-custom-policies-process-workflow.html
"""

from collections.abc import Mapping
from typing import Any

from sqs_broker.sqs.requests import Request, nothing

#: No message has this receipt handle: nothing is deleted or changed.
NO_HANDLE = "not-a-receipt-handle"

#: The call for each action, and its parameters beside the URL of the queue.
CALLS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # A receive of no messages. A receive of one message with a visibility timeout of 0 would make
    # it visible at once, but would count as a delivery, which may be the last one that
    # maxReceiveCount allows.
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
    "ReceiveMessage": ("ReceiveMessage", {"MaxNumberOfMessages": 0, "VisibilityTimeout": 0}),
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
    "DeleteMessage": ("DeleteMessage", {"ReceiptHandle": NO_HANDLE}),
    "ChangeMessageVisibility": (
        "ChangeMessageVisibility",
        {"ReceiptHandle": NO_HANDLE, "VisibilityTimeout": 0},
    ),
    # A batch of no messages. The permission for SendMessage also allows batches.
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-batch-api.html
    "SendMessage": ("SendMessageBatch", {"Entries": []}),
}


def trial(url: str, action: str) -> Request[None]:
    """A call that SQS refuses, as `SqsError.is_refusal`, if the credentials allow the action."""
    name, parameters = CALLS[action]
    return Request(name, {"QueueUrl": url, **parameters}, nothing)
