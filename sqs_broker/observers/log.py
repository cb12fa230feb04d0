"""The log lines about messages: a sentence, a stable `event`, and ids. Never a body.

Each delivery has a line when it is received (`message.received`) and a line when it ends
(`message.<outcome>`). docs/logging.md lists all events.
"""

import logging
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import Any

from sqs_broker.observers.lines import write
from sqs_broker.observers.observer import Together
from sqs_broker.rules import outcomes
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import longest_delay
from sqs_broker.rules.outcomes import Happened, Outcome

logger = logging.getLogger(__name__)


#: The sentences of most lines.
RECEIVED, DONE = "Message received.", "Message done."

#: Most names of unknown tasks that have a line of their own.
MOST_NAMES = 1_000


class MessageLog(Together):
    """The observer that writes the log. Every process has one."""

    def __init__(
        self, clock: Callable[[], float] = monotonic, time_of_day: Callable[[], float] = time
    ) -> None:
        self._clock = clock
        self._time_of_day = time_of_day
        self._unknown: set[str] = set()

    def together(self, what: str, each: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
        """Log received messages, or those that ran and are done, at once. Of those that were
        reported to SQS, only those with an error have a line."""
        if what == "received":
            write(logger, logging.INFO, RECEIVED, [_received(message) for (message,) in each])
            return ()
        if what == "ended" and all(
            type(outcome) is outcomes.Done and message.started_at is not None
            for message, _, outcome in each
        ):
            now = self._clock()
            done = [self._ended(message, outcome, now) for message, _, outcome in each]
            write(logger, logging.INFO, DONE, done)
            return ()
        if what == "settled":
            return [facts for facts in each if facts[2] is not None]
        return each

    def received(self, message: Facts) -> None:
        """Log that a message was received."""
        logger.info(RECEIVED, extra=_received(message))

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        """Log the outcome, the ids and the times of a delivery. If this machine could not run
        the message, log that first, in a line of its own."""
        delivery, now = message.delivery, self._clock()
        if isinstance(happened, outcomes.NotTaken):
            _not_taken(message, happened.error)
        if isinstance(happened, outcomes.UnknownTask) and outcome.name != "dead-letter":
            self._unknown_task(message, happened.name[: outcomes.LONGEST_NAME])
        if isinstance(outcome, outcomes.Retry) and outcome.delay > longest_delay(delivery, now):
            self._clamped(message, max(longest_delay(delivery, now), 0))
        is_retry = isinstance(outcome, outcomes.Postponed) and outcome.error is not None
        facts = self._ended(message, outcome, now)
        if is_retry:
            facts["event"] = "message.retry"
        level, text = logging.INFO, DONE
        args: tuple[Any, ...] = ()
        match outcome:
            case outcomes.Retry(asked, error):
                delay = min(asked, max(longest_delay(delivery, now), 0))
                level, text = logging.WARNING, "Message is retried in %s s (%s)."
                args = (delay, error)
                facts |= {"delay": delay, "error": error}
            case outcomes.DeadLetter(reason, error):
                # If a task ran, its failure is reported already, as an error of its own.
                level = logging.ERROR if message.started_at is None else logging.WARNING
                text, args = "Message dead-lettered: %s.", (reason,)
                facts |= {"reason": reason, "error": error}
            case outcomes.Postponed(delay, None):
                text, args = "Message sent again with a delay of %s s.", (delay,)
                facts |= {"delay": delay}
            case outcomes.Postponed(delay, error):
                level, text = logging.WARNING, "A copy is retried in %s s (%s)."
                args = (delay, error)
                facts |= {"delay": delay, "error": error}
            case outcomes.Released(delay):
                text, args = "Message released; available again in %s s.", (delay,)
                facts |= {"delay": delay}
        logger.log(level, text, *args, extra=facts)

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        """Log that an outcome could not be sent to SQS."""
        if error is None:
            return
        logger.error(
            "Could not send the outcome of a message to SQS, which delivers the message again.",
            extra={
                "event": "settle.failed",
                "outcome": outcome.name,
                "error": error,
                "sqs_message_id": message.delivery.message_id,
                "queue": message.delivery.queue,
                "trace_id": message.trace_id,
                "request_id": message.request_id,
            },
        )

    def lost(self, message: Facts, why: str) -> None:
        """Log that a lease was lost: this worker no longer settles the message."""
        delivery = message.delivery
        logger.warning(
            "The lease of a message was lost: %s. SQS delivers the message again.",
            why,
            extra={
                "event": "lease.lost",
                "reason": why,
                "sqs_message_id": delivery.message_id,
                "queue": delivery.queue,
                "deliveries": delivery.deliveries,
                "trace_id": message.trace_id,
                "request_id": message.request_id,
            },
        )

    def _ended(self, message: Facts, outcome: Outcome, now: float) -> dict[str, Any]:
        """Among other facts, how long the message was in the queue, then in the worker, then in its
        task, if that started."""
        delivery, started_at = message.delivery, message.started_at
        in_worker = now - delivery.received_at
        # SQS's clock and this one may differ.
        in_queue = max(0.0, self._time_of_day() - in_worker - delivery.enqueued_at.timestamp())
        waited = in_worker if started_at is None else started_at - delivery.received_at
        # In one piece, because this is done for each message.
        facts: dict[str, Any] = {
            "event": f"message.{outcome.name}",
            "task": message.task,
            "message_id": message.id,
            "sqs_message_id": delivery.message_id,
            "queue": delivery.queue,
            "deliveries": delivery.deliveries,
            "attempt": delivery.attempt,
            "queue_seconds": _milli(in_queue),
            "wait_seconds": _milli(waited),
            "trace_id": message.trace_id,
            "request_id": message.request_id,
        }
        if started_at is not None:
            facts["run_seconds"] = _milli(now - started_at)
        return facts

    def _unknown_task(self, message: Facts, name: str) -> None:
        if name in self._unknown or len(self._unknown) >= MOST_NAMES:
            return
        self._unknown.add(name)
        facts = {"event": "task.unknown", **_ids(message)}
        logger.warning(
            "This worker has no task %r. Its messages are released until another worker runs them, "
            "or until `unknown_task_grace` is over.",
            name,
            extra=facts,
        )

    def _clamped(self, message: Facts, delay: int) -> None:
        facts = {"event": "retry.clamped", **_ids(message), "delay": delay}
        logger.warning(
            "A task asked for a retry later than 12 hours after the receive, the longest time that "
            "SQS can hide a message; retrying in %s s.",
            delay,
            extra=facts,
        )


def _received(message: Facts) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "event": "message.received",
        "task": message.task,
        "message_id": message.id,
        "source": str(message.source),
        "queue": message.delivery.queue,
        "deliveries": message.delivery.deliveries,
        "attempt": message.delivery.attempt,
        "trace_id": message.trace_id,
        "request_id": message.request_id,
    }
    return facts


def _not_taken(message: Facts, error: str) -> None:
    facts = {
        "event": "message.not_taken",
        **_ids(message),
        "deliveries": message.delivery.deliveries,
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
        "trace_id": message.trace_id,
        "request_id": message.request_id,
    }


def _milli(seconds: float) -> float:
    """Seconds with three digits after the point."""
    return round(seconds * 1000) / 1000  # Half the time of `round(seconds, 3)`.
