"""The log lines about messages: a sentence, a stable `event`, and ids. Never a body.

Each delivery has a line when it is received (`message.received`) and a line when it ends
(`message.<outcome>`). docs/logging.md lists all events.
"""

import logging
from time import monotonic
from typing import Any

from sqs_broker.observers.observer import Facts, Observer
from sqs_broker.rules import outcomes
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import Happened, Outcome

logger = logging.getLogger(__name__)


class MessageLog(Observer):
    """The observer that writes the log. Every process has one."""

    def received(self, message: Facts) -> None:
        """Log that a message was received."""
        logger.info(
            "Message received.",
            extra={
                "event": "message.received",
                "task": message.task,
                "message_id": message.id,
                "source": str(message.source),
                "queue": message.delivery.queue,
                "deliveries": message.delivery.count,
            },
        )

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        """Log the outcome, the ids and the duration of a delivery. If this machine could not run
        the message, log that first, in a line of its own."""
        if isinstance(happened, outcomes.NotTaken):
            _not_taken(message, happened.error)
        delivery = message.delivery
        facts: dict[str, Any] = {
            "event": f"message.{outcome.name}",
            **_ids(message),
            "deliveries": delivery.count,
            "seconds": round(monotonic() - delivery.received_at, 3),
        }
        match outcome:
            case outcomes.Retry(delay, error):
                text, level = f"Message is retried in {delay} s ({error}).", logging.WARNING
                facts |= {"delay": delay, "error": error}
            case outcomes.DeadLetter(reason, error):
                text, level = f"Message dead-lettered: {reason}.", logging.ERROR
                facts |= {"reason": reason, "error": error}
            case outcomes.Postponed(delay):
                text, level = f"Message sent again with a delay of {delay} s.", logging.INFO
                facts |= {"delay": delay}
            case outcomes.Released(delay):
                text, level = f"Message released; available again in {delay} s.", logging.INFO
                facts |= {"delay": delay}
            case outcomes.Done():
                text, level = "Message done.", logging.INFO
        logger.log(level, text, extra=facts)

    def lost(self, message: Facts, why: str) -> None:
        """Log that a lease was lost."""
        lease_lost(message.delivery, why)


def lease_lost(delivery: Delivery, why: str) -> None:
    """Log that a lease was lost: this worker no longer settles the message."""
    logger.warning(
        "The lease of a message was lost: %s. SQS delivers the message again.",
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
    """Log that a retry comes sooner than its task asked for."""
    logger.warning(
        "A task asked for a retry later than 12 hours after the receive, the longest time that SQS "
        "can hide a message; retrying in %s s.",
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


def _not_taken(message: Facts, error: str) -> None:
    facts = {
        "event": "message.not_taken",
        **_ids(message),
        "deliveries": message.delivery.count,
        "error": error,
    }
    logger.warning(
        "This machine lacks resources for a message (%s); the message is released.",
        error,
        extra=facts,
    )


def _ids(message: Facts) -> dict[str, Any]:
    return {
        "task": message.task,
        "message_id": message.id,
        "sqs_message_id": message.delivery.message_id,
        "queue": message.delivery.queue,
    }
