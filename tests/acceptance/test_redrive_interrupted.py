"""`sqs dlq redrive` as a process that is interrupted or killed: no message is lost."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import proxy as faults
from tests.faults.proxy import FaultProxy
from tests.services import Queues, wait_until

SECONDS = 30
MESSAGES = 15
#: Messages of one call.
BATCH = 10


@pytest.fixture
def proxy(queues: Queues) -> Iterator[FaultProxy]:
    """Stands before the SQS server and holds calls back."""
    with faults.running(queues.endpoint_url) as (running, _):
        yield running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_every_message_is_redriven_or_still_there(
    environment: dict[str, str],
    queues: Queues,
    proxy: FaultProxy,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    for n in range(MESSAGES):
        body = json.dumps({"id": f"m-{n}", "action": "increment", "data": {"input": 1}})
        queues.client.send_message(QueueUrl=queues.dead_letter_url, MessageBody=body)
    # Messages of the second in which it starts would not be redriven.
    since = int(time.time())
    wait_until(lambda: int(time.time()) > since, SECONDS, "the next second")
    proxy.hold("DeleteMessageBatch")

    redrive = subprocess.Popen(
        ["celery", "-A", "app", "sqs", "dlq", "redrive", "--yes"],
        env=environment | {"AWS_ENDPOINT_URL": proxy.url},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: proxy.is_holding("DeleteMessageBatch"), SECONDS, "the first delete")
    os.kill(redrive.pid, number)
    if number is not signal.SIGKILL:
        proxy.let_go("DeleteMessageBatch")
    stderr = redrive.communicate(timeout=SECONDS)[1]

    redriven = ids(queues)
    assert len(redriven) == BATCH
    if number is signal.SIGKILL:
        # No message was deleted, sent or not. The hidden ones are visible again later.
        assert sum(dead_letter_counts(queues)) == MESSAGES
    else:
        assert redrive.returncode == 1, stderr
        assert "Stopping after this call" in stderr
        left = Counter(json.loads(message["Body"])["id"] for message in queues.dead_letters())
        assert redriven + left == Counter(f"m-{n}" for n in range(MESSAGES))


def ids(queues: Queues) -> Counter[str]:
    """The ids of the messages in the queue."""
    found: Counter[str] = Counter()
    while messages := queues.client.receive_message(
        QueueUrl=queues.url, MaxNumberOfMessages=10
    ).get("Messages"):
        found.update(json.loads(message["Body"])["id"] for message in messages)
    return found


def dead_letter_counts(queues: Queues) -> tuple[int, int]:
    """Dead letters that are visible, and that are hidden."""
    counts = queues.client.get_queue_attributes(
        QueueUrl=queues.dead_letter_url, AttributeNames=["All"]
    )["Attributes"]
    return (
        int(counts["ApproximateNumberOfMessages"]),
        int(counts["ApproximateNumberOfMessagesNotVisible"]),
    )
