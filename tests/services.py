"""What the fixtures hand out: queues to look into, and a deadline to wait with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devstack.sqs import REGION
from devstack.waiting import wait_until

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["MakeQueues", "Queues", "wait_until"]


@dataclass(frozen=True)
class Queues:
    """A queue and its dead-letter queue on the test server."""

    client: "SQSClient"
    endpoint_url: str
    url: str
    dead_letter_url: str
    region: str = REGION

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def counts(self) -> tuple[int, int, int]:
        """Messages in the queue: visible, in flight, delayed."""
        attributes = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])[
            "Attributes"
        ]
        return (
            int(attributes["ApproximateNumberOfMessages"]),
            int(attributes["ApproximateNumberOfMessagesNotVisible"]),
            int(attributes["ApproximateNumberOfMessagesDelayed"]),
        )

    def is_empty(self) -> bool:
        """Whether the queue holds nothing: visible, in flight or delayed."""
        return self.counts() == (0, 0, 0)

    def dead_letters(self) -> list[dict[str, Any]]:
        """The messages in the dead-letter queue, with all attributes. They stay in it."""
        found: list[dict[str, Any]] = []
        while received := self.client.receive_message(
            QueueUrl=self.dead_letter_url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=60,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        ).get("Messages"):
            found += received
        for message in found:
            self.client.change_message_visibility(
                QueueUrl=self.dead_letter_url,
                ReceiptHandle=message["ReceiptHandle"],
                VisibilityTimeout=0,
            )
        return found


#: Makes a pair of queues: (visibility_timeout=seconds, max_receive_count=receives).
MakeQueues = Callable[..., Queues]
