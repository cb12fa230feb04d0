"""The log lines about one delivery: a sentence, a stable `event`, and ids. Never a body."""

import logging
from time import monotonic
from typing import Any

from sqs_broker.rules import outcomes
from sqs_broker.rules.lease import Delivery

logger = logging.getLogger(__name__)


def lease_lost(delivery: Delivery, why: str) -> None:
    """A lease was lost: what happens to the message is another worker's now."""
    logger.warning(
        "The lease of a message was lost: %s. Nothing is settled; SQS delivers it again.",
        why,
        extra={
            "event": "lease.lost",
            "reason": why,
            "sqs_message_id": delivery.message_id,
            "queue": delivery.queue,
            "deliveries": delivery.count,
        },
    )


def clamped(delivery: Delivery, delay: int, task: str | None, id_: str | None) -> None:
    """A retry comes sooner than its task asked for."""
    logger.warning(
        "A task asked for its retry later than SQS can hide a message, which is 12 hours from the "
        "receive; again in %s s.",
        delay,
        extra={
            "event": "retry.clamped",
            "task": task,
            "message_id": id_ or delivery.message_id,
            "sqs_message_id": delivery.message_id,
            "queue": delivery.queue,
            "delay": delay,
        },
    )


def not_taken(delivery: Delivery, error: str, task: str | None, id_: str | None) -> None:
    """A fault of this machine kept a task from being started."""
    logger.warning(
        "This machine could not take a message (%s); it is handed back.",
        error,
        extra={
            "event": "message.not_taken",
            "task": task,
            "message_id": id_ or delivery.message_id,
            "sqs_message_id": delivery.message_id,
            "queue": delivery.queue,
            "deliveries": delivery.count,
            "error": error,
        },
    )


def unreported(task: str, id_: str, exc: Exception) -> None:
    """Celery's own code failed at the end of a task: of this one there may be no event."""
    logger.error(
        "Celery could not take the end of a task.",
        extra={
            "event": "task.unreported",
            "task": task,
            "message_id": id_,
            "error": type(exc).__name__,
        },
    )


def ended(delivery: Delivery, outcome: outcomes.Outcome, task: str | None, id_: str | None) -> None:
    """The one line at the end of a message: its outcome, its ids, its time."""
    facts: dict[str, Any] = {
        "event": f"message.{outcome.name}",
        "task": task,
        "message_id": id_ or delivery.message_id,
        "sqs_message_id": delivery.message_id,
        "queue": delivery.queue,
        "deliveries": delivery.count,
        "seconds": round(monotonic() - delivery.received_at, 3),
    }
    match outcome:
        case outcomes.Retry(delay, error):
            text, level = f"Message fails ({error}); again in {delay} s.", logging.WARNING
            facts |= {"delay": delay, "error": error}
        case outcomes.DeadLetter(reason, error):
            text, level = f"Message is dead-lettered: {reason}.", logging.ERROR
            facts |= {"reason": reason, "error": error}
        case outcomes.Postponed(delay):
            text, level = f"Message is sent on with a delay of {delay} s.", logging.INFO
            facts |= {"delay": delay}
        case outcomes.Released(delay):
            text, level = f"Message is released; again in {delay} s.", logging.INFO
            facts |= {"delay": delay}
        case outcomes.Done():
            text, level = "Message is done.", logging.INFO
    logger.log(level, text, extra=facts)
