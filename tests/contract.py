"""The real queue that `make contract` runs against, as the environment names it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import boto3
import pytest

from tests.services import Queues

#: The environment as it was given, before any test strips it.
GIVEN = dict(os.environ)

NEEDED = ("AWS_REGION", "AWS_SQS_QUEUE_URL", "AWS_SQS_DLQ_URL")


@dataclass(frozen=True)
class Contract:
    """A queue that nobody else uses, and what a worker needs to reach it."""

    queues: Queues
    environment: Mapping[str, str]

    def empty(self) -> None:
        """Delete every message of both queues that can be received now."""
        for url in (self.queues.url, self.queues.dead_letter_url):
            while messages := self.queues.client.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1
            ).get("Messages"):
                # One call for ten: this may be far from the queue.
                self.queues.client.delete_message_batch(
                    QueueUrl=url,
                    Entries=[
                        {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                        for number, message in enumerate(messages)
                    ],
                )


def from_environment() -> Contract:
    """The contract's queue. Ends the run where a variable is missing."""
    if missing := [name for name in NEEDED if not GIVEN.get(name)]:
        pytest.exit(f"make contract needs {', '.join(missing)}", returncode=2)
    region, endpoint_url = GIVEN["AWS_REGION"], GIVEN.get("AWS_ENDPOINT_URL")
    queues = Queues(
        boto3.session.Session(region_name=region).client("sqs", endpoint_url=endpoint_url),
        endpoint_url or f"https://sqs.{region}.amazonaws.com",
        GIVEN["AWS_SQS_QUEUE_URL"],
        GIVEN["AWS_SQS_DLQ_URL"],
        region,
    )
    given = {name: value for name, value in GIVEN.items() if name.startswith("AWS_")}
    return Contract(queues, given | {"HOME": GIVEN.get("HOME", "/")})
