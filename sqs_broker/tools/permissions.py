"""Whether credentials allow an action on a queue: each is tried with a call that cannot do a thing.

SQS decides on access before it looks at what a call asks for ("returns an Access denied error … or
continues to process the request"), so a call that is refused for what it asks was allowed:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-creating-custom-policies-process-workflow.html
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from sqs_broker.sqs.calls import error_code, name_of
from sqs_broker.tools.checks import Finding, Subject

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

#: How SQS says that an action is not allowed, in either of its protocols.
DENIED = frozenset({"AccessDenied", "AccessDeniedException"})

#: How it refuses the calls below for what they ask.
REFUSED = frozenset(
    {
        "EmptyBatchRequest",
        "InvalidParameterValue",
        "ReadCountOutOfRange",
        "ReceiptHandleIsInvalid",
    }
)

#: No message ever has it.
NO_HANDLE = "not-a-receipt-handle"


def _receive(client: "SQSClient", url: str) -> Any:
    # A receive of no messages. One of a single message with a visibility timeout of 0 would give it
    # back at once, but count as a delivery, which may be the last one that maxReceiveCount allows.
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
    return client.receive_message(QueueUrl=url, MaxNumberOfMessages=0, VisibilityTimeout=0)


def _delete(client: "SQSClient", url: str) -> Any:
    # Nothing is deleted by a handle that belongs to no receive.
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
    return client.delete_message(QueueUrl=url, ReceiptHandle=NO_HANDLE)


def _change_visibility(client: "SQSClient", url: str) -> Any:
    return client.change_message_visibility(
        QueueUrl=url, ReceiptHandle=NO_HANDLE, VisibilityTimeout=0
    )


def _send(client: "SQSClient", url: str) -> Any:
    # A batch of no messages. The permission for SendMessage is that for its batches too.
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-batch-api.html
    return client.send_message_batch(QueueUrl=url, Entries=[])


PROBES: Mapping[str, Callable[["SQSClient", str], Any]] = {
    "ReceiveMessage": _receive,
    "DeleteMessage": _delete,
    "ChangeMessageVisibility": _change_visibility,
    "SendMessage": _send,
}

#: What a worker does with its queue, and with the dead-letter queue.
ON_QUEUE = ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "SendMessage")
ON_DEAD_LETTERS = ("SendMessage",)


def check_permissions(client: "SQSClient", url: str, actions: tuple[str, ...]) -> Iterator[Finding]:
    """Try each action on a queue. No message is sent, received, changed or deleted."""
    for action in actions:
        yield permission(name_of(url), action, _code(PROBES[action], client, url))


def permission(queue: str, action: str, code: str | None) -> Finding:
    """What the code of a call's failure, or its success, says of the permission."""
    check = Subject(queue, f"sqs:{action}")
    if code in DENIED:
        return check.fault(
            "these credentials do not allow it", f"Allow sqs:{action} on the queue to their role."
        )
    if code is None or code in REFUSED:
        return check.ok("allowed")
    return check.unknown(f"not known: the call failed with {code}")


def _code(probe: Callable[["SQSClient", str], Any], client: "SQSClient", url: str) -> str | None:
    try:
        probe(client, url)
    except (ClientError, BotoCoreError) as exc:
        return error_code(exc)
    return None
