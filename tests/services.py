"""What the fixtures hand out: queues to look into, and a deadline to wait with."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from devstack import waiting
from devstack.sqs import ACCESS_KEY, REGION
from devstack.waiting import Value

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["MakeQueues", "Queues", "be_patient", "wait_until"]

#: Any server on this machine accepts these.
LOCAL = MappingProxyType({"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": ACCESS_KEY})

#: How many times as long as a test says `wait_until` waits.
_patience = 1.0


def be_patient(times: float) -> None:
    """From now on, deadlines are so many times as far away: SQS is not on this machine."""
    global _patience
    _patience = times


def wait_until(condition: Callable[[], Value], timeout: float, what: str) -> Value:
    """Return the first true value of the condition. Raises TimeoutError, with `what` in its text,
    if there is none within `timeout` seconds: with `be_patient`, within a multiple of them."""
    return waiting.wait_until(condition, timeout * _patience, what)


@dataclass(frozen=True)
class Queues:
    """A queue and its dead-letter queue: on the test server, or those of `make contract`."""

    client: "SQSClient"
    endpoint_url: str
    url: str
    dead_letter_url: str
    region: str = REGION
    credentials: Mapping[str, str] = field(default_factory=lambda: LOCAL, repr=False)
    #: Whether the counts of the server are approximate, and a short receive may miss messages.
    is_approximate: bool = False

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
        if self.counts() != (0, 0, 0):
            return False
        if self.is_approximate:
            # The counts come later than the messages, and may go to and fro.
            time.sleep(1)
            return self.counts() == (0, 0, 0)
        return True

    def dead_letters(self) -> list[dict[str, Any]]:
        """The messages in the dead-letter queue, with all attributes. They stay in it."""
        found: list[dict[str, Any]] = []
        while received := self.client.receive_message(
            QueueUrl=self.dead_letter_url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=60,
            WaitTimeSeconds=2 if self.is_approximate else 0,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        ).get("Messages"):
            found += received
        for start in range(0, len(found), 10):
            self.client.change_message_visibility_batch(
                QueueUrl=self.dead_letter_url,
                Entries=[
                    {
                        "Id": str(number),
                        "ReceiptHandle": message["ReceiptHandle"],
                        "VisibilityTimeout": 0,
                    }
                    for number, message in enumerate(found[start : start + 10])
                ],
            )
        return found


#: Makes a pair of queues: (visibility_timeout=seconds, max_receive_count=receives).
MakeQueues = Callable[..., Queues]
