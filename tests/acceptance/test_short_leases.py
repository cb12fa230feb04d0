"""A lease that is shorter than the long poll: a message that comes late in it has a whole lease."""

import json
import os
import signal
from time import monotonic

import pytest

from tests.acceptance.worker import SETTLE_SECONDS, StartWorker, Worker
from tests.faults import proxy
from tests.faults.proxy import FaultProxy
from tests.services import Queues, wait_until

#: Seconds.
VISIBILITY, POLL = 5, 8

#: Seconds into a poll: the messages come when a lease that counts from its start is over.
LATE = VISIBILITY + 1

RECEIVE, EXTEND = "ReceiveMessage", "ChangeMessageVisibilityBatch"

SETTINGS = {
    "SQS_VISIBILITY_TIMEOUT": str(VISIBILITY),
    "SQS_WAIT_TIME": str(POLL),
    "TASK_TIME_LIMIT": str(VISIBILITY - 1),
    "TASK_SOFT_TIME_LIMIT": str(VISIBILITY - 2),
}

pytestmark = pytest.mark.parametrize("queues", [{"visibility_timeout": VISIBILITY}], indirect=True)


def wait(seconds: float) -> None:
    end = monotonic() + seconds
    wait_until(lambda: monotonic() > end, seconds + 1, "the time")


def wait_for_poll(faults: FaultProxy) -> None:
    """Until a poll of an empty queue has just begun."""
    polls = faults.calls[RECEIVE]
    wait_until(lambda: faults.calls[RECEIVE] > polls, 2 * POLL, "the next poll")


def send(queues: Queues, number: int) -> None:
    entries = []
    for n in range(number):
        data = {"stockId": "s1", "userId": f"u{n}", "userInfo": {"nickname": f"n{n}"}}
        body = {"id": f"reg-{n}", "action": "registerUser", "data": data}
        entries.append({"Id": str(n), "MessageBody": json.dumps(body)})
    queues.client.send_message_batch(QueueUrl=queues.url, Entries=entries)


def wait_until_done(worker: Worker, queues: Queues, number: int) -> None:
    """Until so many messages are done, and none is left."""
    worker.wait_for(
        lambda: len(worker.log_lines("message.done")) >= number and queues.is_empty(),
        SETTLE_SECONDS,
        f"{number} messages that are done",
    )


def ended(worker: Worker) -> list[tuple[str, int]]:
    """Each message that was done, with its delivery."""
    lines = worker.log_lines("message.done")
    return sorted((line["message_id"], line["deliveries"]) for line in lines)


@pytest.mark.slow
def test_messages_that_come_late_in_a_long_poll_are_done_at_their_first_delivery(
    start_worker: StartWorker, environment: dict[str, str], queues: Queues
) -> None:
    with proxy.running(queues.endpoint_url) as (faults, url):
        worker = start_worker(environment | SETTINGS | {"AWS_ENDPOINT_URL": url})
        wait_for_poll(faults)
        wait(LATE)
        send(queues, 5)
        wait_until_done(worker, queues, 5)

        assert ended(worker) == [(f"reg-{n}", 1) for n in range(5)]
        assert worker.log_lines("lease.lost") == []
        assert queues.dead_letters() == []
        # However many came together, in one answer or in two.
        assert 1 <= faults.calls[EXTEND] <= 2
        assert all(line["wait_seconds"] < LATE for line in worker.log_lines("message.done"))


@pytest.mark.slow
def test_a_worker_that_was_stopped_in_a_receive_runs_its_message_once(
    start_worker: StartWorker, environment: dict[str, str], queues: Queues
) -> None:
    with proxy.running(queues.endpoint_url) as (faults, url):
        worker = start_worker(environment | SETTINGS | {"AWS_ENDPOINT_URL": url})
        wait_for_poll(faults)
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            send(queues, 1)
            wait_until(lambda: queues.counts()[1] == 1, POLL, "a message that is handed out")
            wait(LATE)
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        wait_until_done(worker, queues, 1)

        # A run under a lease that is over would be followed by another one.
        assert len(worker.log_lines("message.received")) == 1
        assert len(ended(worker)) == 1
        assert queues.dead_letters() == []
