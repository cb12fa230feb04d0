"""The real queue that `make contract` runs against, as the environment names it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import boto3
import pytest

from tests.services import Queues, be_patient

#: The environment as it was given, before any test strips it.
GIVEN = dict(os.environ)

#: How many times as long as on this machine a test may take: its calls go to another continent.
PATIENCE = 10

NEEDED = ("AWS_REGION", "AWS_SQS_QUEUE_URL", "AWS_SQS_DLQ_URL")


@dataclass(frozen=True)
class Contract:
    """A queue that nobody else uses, and what a worker needs to reach it."""

    queues: Queues
    environment: Mapping[str, str]

    def empty(self) -> None:
        """Delete every message of both queues, also those that are in flight now."""
        for url in (self.queues.url, self.queues.dead_letter_url):
            pair = replace(self.queues, url=url)
            while not pair.is_empty():
                self._delete_some(url)

    def _delete_some(self, url: str) -> None:
        received = self.queues.client.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1
        )
        if messages := received.get("Messages"):
            # One call for ten: this may be far from the queue.
            self.queues.client.delete_message_batch(
                QueueUrl=url,
                Entries=[
                    {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                    for number, message in enumerate(messages)
                ],
            )


def from_environment() -> Contract:
    """The contract's queue. Ends the run if a variable or the credentials are missing."""
    if missing := [name for name in NEEDED if not GIVEN.get(name)]:
        pytest.exit(f"make contract needs {', '.join(missing)}", returncode=2)
    region, endpoint_url = GIVEN["AWS_REGION"], GIVEN.get("AWS_ENDPOINT_URL")
    endpoint_url = endpoint_url or f"https://sqs.{region}.amazonaws.com"
    session = boto3.session.Session(region_name=region)
    found = session.get_credentials()
    if found is None:
        pytest.exit("make contract finds no AWS credentials", returncode=2)
    keys = found.get_frozen_credentials()
    credentials = {
        "aws_access_key_id": keys.access_key,
        "aws_secret_access_key": keys.secret_key,
        **({"aws_session_token": keys.token} if keys.token else {}),
    }
    queues = Queues(
        session.client("sqs", endpoint_url=endpoint_url, **credentials),
        endpoint_url,
        GIVEN["AWS_SQS_QUEUE_URL"],
        GIVEN["AWS_SQS_DLQ_URL"],
        region,
        credentials,
        is_approximate=True,
    )
    be_patient(PATIENCE)
    # Not all of the variables: a profile may be none that a test can read.
    environment = {
        "AWS_REGION": region,
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_SQS_QUEUE_URL": queues.url,
        "AWS_SQS_DLQ_URL": queues.dead_letter_url,
        **{name.upper(): value for name, value in credentials.items()},
    }
    return Contract(queues, environment)
