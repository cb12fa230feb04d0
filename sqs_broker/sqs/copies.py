"""The copy that must be sent before a message may be deleted: to the dead-letter queue, or to its
own queue again where it is not due.

SQS can take the copy and then not hear the delete. So a worker remembers whose copy it has sent:
the next delivery of such a message is deleted, without a second run and without a second copy.
"""

import threading
from typing import TYPE_CHECKING, Any

from sqs_broker.options import Options
from sqs_broker.rules import dead_letter
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import DeadLetter, Postponed

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

#: Messages remembered: many more than may wait to be deleted.
MOST_REMEMBERED = 1_000


class Copies:
    """Sends copies, each once. Thread-safe."""

    def __init__(self, options: Options, client: "SQSClient") -> None:
        self._options = options
        self._client = client
        self._lock = threading.Lock()
        self._sent: dict[str, None] = {}

    def are_sent(self, delivery: Delivery) -> bool:
        """Whether the copy of this message was sent, in this delivery or in an earlier one.

        By SQS's MessageId: the copy has another, and so has a dead letter that is moved back.
        """
        return delivery.message_id in self._sent

    def send(
        self, delivery: Delivery, outcome: DeadLetter | Postponed, task: str | None, id_: str | None
    ) -> None:
        """Send the copy, where it was not sent before. Raises what boto3 raises."""
        if self.are_sent(delivery):
            return
        self._client.send_message(**self._call(delivery, outcome, task, id_))
        with self._lock:
            self._sent[delivery.message_id] = None
            if len(self._sent) > MOST_REMEMBERED:
                del self._sent[next(iter(self._sent))]

    def _call(
        self, delivery: Delivery, outcome: DeadLetter | Postponed, task: str | None, id_: str | None
    ) -> dict[str, Any]:
        address = self._options.queue(delivery.queue)
        if isinstance(outcome, Postponed):
            return {
                "QueueUrl": address.url,
                "MessageBody": delivery.body,
                "MessageAttributes": delivery.attributes,
                "DelaySeconds": outcome.delay,
            }
        limit = self._options.max_message_bytes
        return {
            "QueueUrl": address.dead_letter_url,
            "MessageBody": delivery.body,
            "MessageAttributes": dead_letter.attributes_of(delivery, outcome, task, id_, limit),
        }
