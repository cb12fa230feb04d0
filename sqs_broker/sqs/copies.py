"""Sends the copy that must exist before a message may be deleted: to the dead-letter queue, or to
its own queue again, if the message is not due or SQS allows it few further deliveries.

The copy can succeed and the delete fail. So a worker remembers the messages whose copies it has
sent. It deletes the next delivery of such a message, without a second run or a second copy.
"""

import threading
import time
from dataclasses import replace

from sqs_broker.limits import LONGEST_DELAY
from sqs_broker.options import Options
from sqs_broker.rules import dead_letter
from sqs_broker.rules.attempts import NOTHING, Carried, with_carried
from sqs_broker.rules.attributes import ATTEMPTS, Attributes
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import DeadLetter, Postponed
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing

#: Messages that are remembered: many more than can wait for their delete.
MOST_REMEMBERED = 1_000


class Copies:
    """Sends each copy once. Thread-safe."""

    def __init__(self, options: Options, driver: Driver) -> None:
        self._options = options
        self._driver = driver
        self._lock = threading.Lock()
        self._sent: dict[str, None] = {}

    def are_sent(self, delivery: Delivery) -> bool:
        """Whether the copy of this message was sent, in this delivery or in an earlier one.

        It compares SQS's MessageId. A copy has another one, and so has a redriven dead letter.
        """
        return delivery.message_id in self._sent

    def send(self, message: Facts, outcome: DeadLetter | Postponed) -> None:
        """Send the copy, unless it was sent before. Raises what `Queue.send` raises."""
        delivery = message.delivery
        if self.are_sent(delivery):
            return
        url, copy = self._copy(message, outcome)
        Queue(url, self._driver).send(copy)
        with self._lock:
            self._sent[delivery.message_id] = None
            if len(self._sent) > MOST_REMEMBERED:
                del self._sent[next(iter(self._sent))]

    def _copy(self, message: Facts, outcome: DeadLetter | Postponed) -> tuple[str, Outgoing]:
        """The URL of the target queue, and the copy."""
        delivery = message.delivery
        address = self._options.queue(delivery.queue)
        limit = self._options.max_message_bytes
        if isinstance(outcome, Postponed):
            own = _postponed(delivery, outcome, limit, time.time())
            delay = min(outcome.delay, LONGEST_DELAY)
            group, header = delivery.fair_group, delivery.trace_header
            return address.url, Outgoing(delivery.body, own, delay, group, trace_header=header)
        attributes = dead_letter.attributes_of(delivery, outcome, message.task, message.id, limit)
        # The dead-letter queue of a FIFO queue is FIFO too.
        id_ = None if delivery.group is None else delivery.message_id
        group = delivery.group or delivery.fair_group
        copy = Outgoing(
            delivery.body,
            attributes,
            group=group,
            deduplication_id=id_,
            trace_header=delivery.trace_header,
        )
        return address.dead_letter_url or "", copy


def can_carry(delivery: Delivery, limit: int) -> bool:
    """Whether a copy of the message for its own queue can carry the number of attempts."""
    carried = delivery.passed_on(has_failed=True, due=time.time())
    return ATTEMPTS in with_carried(delivery.attributes, carried, delivery.body, limit)


def _postponed(delivery: Delivery, outcome: Postponed, limit: int, now: float) -> Attributes:
    """The attributes of a copy for the message's own queue."""
    if _has_never_been_due(delivery, outcome):
        # No delivery counts. What the message had from the start stays.
        id_ = delivery.carried.id or delivery.message_id
        carried = Carried(id=id_, sent=delivery.first_sent.timestamp())
    else:
        due = now + outcome.delay if outcome.delay > LONGEST_DELAY else delivery.carried.due
        carried = delivery.passed_on(
            has_failed=outcome.error is not None, due=due if due and due > now else None
        )
    return with_carried(delivery.attributes, carried, delivery.body, limit)


def _has_never_been_due(delivery: Delivery, outcome: Postponed) -> bool:
    known = replace(delivery.carried, sent=None, id=None)
    has_failed = delivery.record is not None and bool(delivery.record.failed)
    return not outcome.is_again and known == NOTHING and not has_failed
