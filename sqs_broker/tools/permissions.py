"""Checks whether credentials allow an action on a queue, with a call that has no effect."""

from collections.abc import Iterator

from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import name_of
from sqs_broker.tools.checks import Finding, Subject

#: The actions of a worker on its queue, and on the dead-letter queue.
ON_QUEUE = ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "SendMessage")
ON_DEAD_LETTERS = ("SendMessage",)


def check_permissions(queue: Queue, actions: tuple[str, ...]) -> Iterator[Finding]:
    """Try each action on a queue. This sends, receives, changes and deletes no message."""
    for action in actions:
        yield permission(name_of(queue.url), action, _error(queue, action))


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


def _error(queue: Queue, action: str) -> SqsError | None:
    try:
        queue.try_action(action)
    except SqsError as exc:
        return exc
    return None
