"""The log of messages: a sentence, a stable `event`, and ids. Never a body.

Each message has one line when it has come (`message.received`) and one at its end
(`message.<outcome>`). docs/logging.md lists them all.
"""

import logging
from time import monotonic
from typing import Any

from sqs_broker.observers.observer import Facts, Observer
from sqs_broker.rules import outcomes
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import Happened, Outcome

logger = logging.getLogger(__name__)


class Journal(Observer):
    """The observer that every process has."""

    def received(self, message: Facts) -> None:
        """One line at the start of a message."""
        logger.info(
            "Message arrives.",
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
        """One line at its end: its outcome, its ids, its time. A fault of this machine is a line of
        its own before it."""
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

    def lost(self, message: Facts, why: str) -> None:
        """A lease was lost: what happens to the message is another worker's now."""
        lease_lost(message.delivery, why)


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


def _not_taken(message: Facts, error: str) -> None:
    facts = {
        "event": "message.not_taken",
        **_ids(message),
        "deliveries": message.delivery.count,
        "error": error,
    }
    logger.warning(
        "This machine could not take a message (%s); it is handed back.", error, extra=facts
    )


def _ids(message: Facts) -> dict[str, Any]:
    return {
        "task": message.task,
        "message_id": message.id,
        "sqs_message_id": message.delivery.message_id,
        "queue": message.delivery.queue,
    }
