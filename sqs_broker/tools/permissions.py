"""Checks whether credentials allow an action on a queue, with a call that has no effect.

SQS first decides on access, and then on the parameters of a call ("returns an Access denied error …
or continues to process the request"). So a call that SQS refuses for its parameters was allowed:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-creating-custom-policies-process-workflow.html
"""

from collections.abc import Callable, Iterator, Mapping

from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Request, name_of, nothing
from sqs_broker.tools.checks import Finding, Subject

#: No message has this receipt handle.
NO_HANDLE = "not-a-receipt-handle"


def _receive(url: str) -> Request[None]:
    # A receive of no messages. A receive of one message with a visibility timeout of 0 would make
    # it visible at once, but would count as a delivery, which may be the last one that
    # maxReceiveCount allows.
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
    parameters = {"QueueUrl": url, "MaxNumberOfMessages": 0, "VisibilityTimeout": 0}
    return Request("ReceiveMessage", parameters, nothing)


def _delete(url: str) -> Request[None]:
    # An invalid receipt handle deletes nothing.
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
    parameters = {"QueueUrl": url, "ReceiptHandle": NO_HANDLE}
    return Request("DeleteMessage", parameters, nothing)


def _change_visibility(url: str) -> Request[None]:
    parameters = {"QueueUrl": url, "ReceiptHandle": NO_HANDLE, "VisibilityTimeout": 0}
    return Request("ChangeMessageVisibility", parameters, nothing)


def _send(url: str) -> Request[None]:
    # A batch of no messages. The permission for SendMessage also allows batches.
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-batch-api.html
    return Request("SendMessageBatch", {"QueueUrl": url, "Entries": []}, nothing)


PROBES: Mapping[str, Callable[[str], Request[None]]] = {
    "ReceiveMessage": _receive,
    "DeleteMessage": _delete,
    "ChangeMessageVisibility": _change_visibility,
    "SendMessage": _send,
}

#: The actions of a worker on its queue, and on the dead-letter queue.
ON_QUEUE = ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "SendMessage")
ON_DEAD_LETTERS = ("SendMessage",)


def check_permissions(queue: Queue, actions: tuple[str, ...]) -> Iterator[Finding]:
    """Try each action on a queue. This sends, receives, changes and deletes no message."""
    for action in actions:
        yield permission(name_of(queue.url), action, _error(queue, PROBES[action]))


def permission(queue: str, action: str, error: SqsError | None) -> Finding:
    """Whether the credentials allow an action, from the error of a call; None if it succeeded."""
    check = Subject(queue, f"sqs:{action}")
    if error is None or error.is_refusal:
        return check.ok("allowed")
    if error.is_denied:
        return check.fault(
            "these credentials do not allow it", f"Allow sqs:{action} on the queue for their role."
        )
    return check.unknown(f"not known: the call failed with {error.code}")


def _error(queue: Queue, probe: Callable[[str], Request[None]]) -> SqsError | None:
    try:
        queue.ask(probe(queue.url))
    except SqsError as exc:
        return exc
    return None
