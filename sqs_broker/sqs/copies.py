"""The copy that must be sent before a message may be deleted: to the dead-letter queue, or to its
own queue again where it is not due.

SQS can take the copy and then not hear the delete. So a worker remembers whose copy it has sent:
the next delivery of such a message is deleted, without a second run and without a second copy.
"""

import threading

from sqs_broker.options import Options
from sqs_broker.rules import dead_letter
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import DeadLetter, Postponed
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing

#: Messages remembered: many more than may wait to be deleted.
MOST_REMEMBERED = 1_000


class Copies:
    """Sends copies, each once. Thread-safe."""

    def __init__(self, options: Options, driver: Driver) -> None:
        self._options = options
        self._driver = driver
        self._lock = threading.Lock()
        self._sent: dict[str, None] = {}

    def are_sent(self, delivery: Delivery) -> bool:
        """Whether the copy of this message was sent, in this delivery or in an earlier one.

        By SQS's MessageId: the copy has another, and so has a dead letter that is moved back.
        """
        return delivery.message_id in self._sent

    def send(self, message: Facts, outcome: DeadLetter | Postponed) -> None:
        """Send the copy, unless it was sent before. Raises what `Queue.send` does."""
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
        """The URL of the queue that it goes to, and the copy."""
        delivery = message.delivery
        address = self._options.queue(delivery.queue)
        if isinstance(outcome, Postponed):
            return address.url, Outgoing(delivery.body, delivery.attributes, outcome.delay)
        limit = self._options.max_message_bytes
        attributes = dead_letter.attributes_of(delivery, outcome, message.task, message.id, limit)
        return address.dead_letter_url or "", Outgoing(delivery.body, attributes)
