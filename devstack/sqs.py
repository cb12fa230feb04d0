"""The SQS server of this machine (roto-server), and its queues."""

import json
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from devstack import ports
from devstack.errors import StackError
from devstack.process import Process

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType

REGION = "us-east-1"
#: The server requires credentials and accepts any.
ACCESS_KEY = "test"
START_SECONDS = 20
#: The server would wait for the end of every long poll, even of clients that have gone. A kill
#: loses nothing, because the server commits before it answers.
STOP_SECONDS = 1
#: Most bytes of a message that the server accepts. SQS accepts 1 MiB.
LARGEST_MESSAGE = 262_144
DEAD_LETTER_RETENTION_SECONDS = 14 * 24 * 3600


@dataclass(frozen=True)
class SqsServer:
    """A running SQS server."""

    process: Process
    port: int

    @property
    def endpoint_url(self) -> str:
        return f"http://{ports.HOST}:{self.port}"

    def client(self) -> "SQSClient":
        """A boto3 client for this server. The caller must close it."""
        return client_for(self.endpoint_url)


def client_for(endpoint_url: str) -> "SQSClient":
    """A boto3 client for a server on this machine. The caller must close it."""
    return boto3.client(
        "sqs",
        region_name=REGION,
        endpoint_url=endpoint_url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=ACCESS_KEY,
        config=Config(connect_timeout=5, read_timeout=30),
    )


@dataclass(frozen=True)
class QueuePair:
    """A queue and the dead-letter queue in its redrive policy."""

    url: str
    dead_letter_url: str


@contextmanager
def running(
    *,
    log: Path,
    data: Path | None = None,
    port: int | None = None,
    keep_open: Sequence[int] = (),
) -> Iterator[SqsServer]:
    """A server that accepts requests, until the end of the block.

    It stores its queues in `data`, or in memory. It listens on `port` if that is free, otherwise on
    another one. Raises StackError if it does not start.
    """
    storage = ["--ephemeral"] if data is None else ["--data-dir", str(data)]
    taken = ports.preferred_or_any(port)
    command = [_binary(), "--host", ports.HOST, "--port", str(taken), *storage]
    with Process(
        "the SQS server", command, log=log, grace=STOP_SECONDS, keep_open=keep_open
    ) as process:
        server = SqsServer(process, taken)
        server.process.wait_until_listening(server.port, START_SECONDS)
        yield server


def create_queues(
    client: "SQSClient", name: str, *, visibility_timeout: int, max_receive_count: int
) -> QueuePair:
    """Create the queue and `<name>-dlq`. If they exist, set these attributes and keep the messages.

    `visibility_timeout` is in seconds.
    """
    dead_letter_url = _create(
        client, f"{name}-dlq", {"MessageRetentionPeriod": str(DEAD_LETTER_RETENTION_SECONDS)}
    )
    attributes = client.get_queue_attributes(QueueUrl=dead_letter_url, AttributeNames=["QueueArn"])[
        "Attributes"
    ]
    redrive = {
        "deadLetterTargetArn": attributes["QueueArn"],
        "maxReceiveCount": str(max_receive_count),
    }
    url = _create(
        client,
        name,
        {"VisibilityTimeout": str(visibility_timeout), "RedrivePolicy": json.dumps(redrive)},
    )
    return QueuePair(url, dead_letter_url)


def _create(client: "SQSClient", name: str, attributes: "dict[QueueAttributeNameType, str]") -> str:
    try:
        return client.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    except ClientError as exc:
        # The first is roto's error code, the second SQS's.
        if exc.response["Error"]["Code"] not in {"QueueAlreadyExists", "QueueNameExists"}:
            raise
    url = client.get_queue_url(QueueName=name)["QueueUrl"]
    client.set_queue_attributes(QueueUrl=url, Attributes=attributes)
    return url


def _binary() -> str:
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("roto-server", path=scripts) or shutil.which("roto-server")
    if found is None:
        raise StackError(
            "roto-server is missing: `pip install roto-aws==0.10.1` (dependency group devstack)."
        )
    return found
