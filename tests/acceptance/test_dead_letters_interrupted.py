"""Commands for dead letters as processes that are interrupted or killed: no message is lost, and
each command can be run again."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import proxy as faults
from tests.faults.proxy import FaultProxy
from tests.services import Queues, wait_until

pytestmark = pytest.mark.slow

SECONDS = 30
MESSAGES = 15
#: Messages of one call.
BATCH = 10

ALL = Counter(f"m-{n}" for n in range(MESSAGES))

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]

Command = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def proxy(queues: Queues) -> Iterator[FaultProxy]:
    """Stands before the SQS server and holds calls back."""
    with faults.running(queues.endpoint_url) as (running, _):
        yield running


@pytest.fixture
def command(environment: dict[str, str], proxy: FaultProxy, tmp_path: Path) -> Command:
    """Starts `sqs dlq` with these arguments. It reaches SQS through the proxy."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["celery", "-A", "app", "sqs", "dlq", *arguments],
            env=environment | {"AWS_ENDPOINT_URL": proxy.url},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize("number", STOPS)
def test_every_message_is_redriven_or_still_there(
    queues: Queues, proxy: FaultProxy, command: Command, number: signal.Signals
) -> None:
    fill(queues)
    proxy.hold("DeleteMessageBatch")

    redrive = command("redrive", "--yes")
    stderr = stop_at("DeleteMessageBatch", redrive, proxy, number)

    redriven = ids(queues, queues.url)
    assert len(redriven) == BATCH
    if number is signal.SIGKILL:
        # No message was deleted, sent or not. The hidden ones are visible again later.
        assert sum(dead_letter_counts(queues)) == MESSAGES
    else:
        assert redrive.returncode == 1, stderr
        assert "Stopping after this call" in stderr
        assert redriven + ids(queues, queues.dead_letter_url) == ALL


@pytest.mark.parametrize("number", STOPS)
def test_every_message_is_deleted_as_noted_or_still_there(
    queues: Queues,
    proxy: FaultProxy,
    command: Command,
    number: signal.Signals,
) -> None:
    fill(queues)
    proxy.hold("DeleteMessageBatch")

    purge = command("purge", "--yes")
    stderr = stop_at("DeleteMessageBatch", purge, proxy, number)

    if number is signal.SIGKILL:
        assert sum(dead_letter_counts(queues)) == MESSAGES
        return
    assert purge.returncode == 1, stderr
    assert f"{BATCH} deleted." in stderr
    assert sum(dead_letter_counts(queues)) == MESSAGES - BATCH
    # The others are visible again, so that a further run deletes them.
    again = command("purge", "--yes")
    assert again.communicate(timeout=SECONDS)[1].endswith(f"{MESSAGES - BATCH} deleted.\n")
    assert dead_letter_counts(queues) == (0, 0)


@pytest.mark.parametrize("number", STOPS)
def test_a_further_import_sends_what_is_left_and_only_after_a_kill_ten_twice(
    queues: Queues, proxy: FaultProxy, command: Command, number: signal.Signals
) -> None:
    fill(queues)
    assert run(command("export", "--file", "letters.jsonl")) == 0
    assert run(command("purge", "--yes")) == 0
    proxy.hold("SendMessageBatch")

    stderr = stop_at("SendMessageBatch", command("import", "letters.jsonl"), proxy, number)
    if number is not signal.SIGKILL:
        assert f"{BATCH} of {MESSAGES} lines are imported." in stderr
    proxy.let_go("SendMessageBatch")

    assert run(command("import", "letters.jsonl")) == 0
    found = ids(queues, queues.dead_letter_url)
    # The call that was open at the kill has arrived: nobody noted that.
    twice = Counter(list(ALL)[:BATCH]) if number is signal.SIGKILL else Counter()
    assert found == ALL + twice


@pytest.mark.parametrize("number", STOPS)
def test_there_is_no_file_of_a_part_of_the_messages(
    queues: Queues, proxy: FaultProxy, command: Command, number: signal.Signals, tmp_path: Path
) -> None:
    fill(queues)
    proxy.hold("ReceiveMessage")

    export = command("export", "--file", "letters.jsonl")
    stop_at("ReceiveMessage", export, proxy, number)

    assert export.returncode != 0
    assert not (tmp_path / "letters.jsonl").exists()
    proxy.let_go("ReceiveMessage")
    again = command("export", "--file", "letters.jsonl")
    stderr = again.communicate(timeout=SECONDS)[1]
    assert again.returncode == 0
    # The call that was open at the kill has hidden ten for a while.
    hidden = BATCH if number is signal.SIGKILL else 0
    assert len((tmp_path / "letters.jsonl").read_text().splitlines()) == MESSAGES - hidden
    assert (f"{hidden} " in stderr and "hidden" in stderr) == bool(hidden), stderr


def fill(queues: Queues) -> None:
    """Put messages into the dead-letter queue, before the second in which a command starts: it
    leaves those of that second."""
    for id_ in ALL:
        body = json.dumps({"id": id_, "action": "increment", "data": {"input": 1}})
        queues.client.send_message(QueueUrl=queues.dead_letter_url, MessageBody=body)
    since = int(time.time())
    wait_until(lambda: int(time.time()) > since, SECONDS, "the next second")


def stop_at(
    action: str, process: subprocess.Popen[str], proxy: FaultProxy, number: signal.Signals
) -> str:
    """Send a signal while a call is held back, which goes on if the process does. Returns what the
    command wrote to stderr."""
    wait_until(lambda: proxy.is_holding(action), SECONDS, f"the first {action}")
    os.kill(process.pid, number)
    if number is not signal.SIGKILL:
        proxy.let_go(action)
    return process.communicate(timeout=SECONDS)[1]


def run(process: subprocess.Popen[str]) -> int:
    """The exit status of a command that nothing stops."""
    process.communicate(timeout=SECONDS)
    return process.returncode


def ids(queues: Queues, url: str) -> Counter[str]:
    """The ids of the messages in a queue."""
    found: Counter[str] = Counter()
    while messages := queues.client.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get(
        "Messages"
    ):
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
