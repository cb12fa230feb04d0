"""The protocol of an observer, and the group of all observers of a process.

`broker_transport_options["observers"]` names a project's own, beside the log.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from sqs_broker.errors import label
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import Happened, Outcome
from sqs_broker.rules.provenance import Source

logger = logging.getLogger(__name__)

#: Seconds between two log lines about one failing observer.
QUIET = 60.0


@dataclass(frozen=True)
class Facts:
    """What an observer is given of a message: ids and times, and nothing that a user typed."""

    delivery: Delivery
    """Its body is not for logs, metrics or traces."""
    task: str | None
    """None if the body names no task."""
    id: str
    """The producer's id of the message; SQS's MessageId if there is none."""
    source: Source | None
    """None if the body could not be read."""


def facts_of(delivery: Delivery, headers: dict[str, Any] | None) -> Facts:
    """The facts of a message, by the headers of its task; None if they could not be read."""
    if not headers:
        return Facts(delivery, None, delivery.message_id, None)
    return Facts(delivery, headers["task"], headers["id"], headers["delivery"].source)


class Observer:
    """Hears what happens to messages. A subclass overrides what it wants to hear.

    The methods are called in the main process, on several threads, in the order of this class for
    one delivery. They must return at once: they run on the way of each message. What one raises is
    logged, once a minute, and changes nothing else.
    """

    def received(self, message: Facts) -> None:
        """A message has come that may run. One that ends before that is only `ended`."""

    def started(self, message: Facts) -> None:
        """A process or thread of the pool runs its task now."""

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        """Its delivery has ended here: what happened, and what becomes of the message. SQS hears of
        it next."""

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        """SQS was told the outcome; or it was not and will not be, for the reason `error`: then SQS
        delivers the message again."""

    def lost(self, message: Facts, why: str) -> None:
        """Its lease was lost: nothing is settled, and SQS delivers the message again."""

    def published(self, queue: str, count: int) -> None:
        """SQS took so many new messages for a queue, by its configured name."""

    def paused(self, reasons: frozenset[str]) -> None:
        """Why nothing is received from now on. Without a reason, receiving goes on."""


class Observers(Observer):
    """All observers of a process, told one after the other. None of them harms another."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)
        self._said_at: dict[tuple[type, str], float] = {}

    def received(self, message: Facts) -> None:
        self._tell("received", message)

    def started(self, message: Facts) -> None:
        self._tell("started", message)

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        self._tell("ended", message, happened, outcome)

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        self._tell("settled", message, outcome, error)

    def lost(self, message: Facts, why: str) -> None:
        self._tell("lost", message, why)

    def published(self, queue: str, count: int) -> None:
        self._tell("published", queue, count)

    def paused(self, reasons: frozenset[str]) -> None:
        self._tell("paused", reasons)

    def _tell(self, what: str, *facts: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, what)(*facts)
            except Exception as exc:
                # Broad on purpose: an observer is anybody's code, and no message is its business.
                self._say(observer, what, exc)

    def _say(self, observer: Observer, what: str, exc: Exception) -> None:
        kind, now = (type(observer), what), monotonic()
        if now - self._said_at.get(kind, -QUIET) < QUIET:
            return
        self._said_at[kind] = now
        logger.error(
            "An observer failed (%s.%s, %s). Messages are not affected.",
            type(observer).__name__,
            what,
            label(exc),
            extra={"event": "observer.failed", "error": label(exc)},
        )
