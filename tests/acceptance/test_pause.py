"""`celery -A app sqs pause`: a worker that starts later obeys before its first poll."""

import json
from pathlib import Path

import pytest

from tests.acceptance.test_commands import celery
from tests.acceptance.worker import SETTLE_SECONDS, Place, Service, StartWorker
from tests.services import Queues

pytestmark = pytest.mark.slow


def registration(user_id: str) -> str:
    data = {"stockId": "s1", "userId": user_id, "userInfo": {"nickname": "kim"}}
    return json.dumps({"id": f"id-{user_id}", "action": "registerUser", "data": data})


def visible(queues: Queues) -> int:
    name = "ApproximateNumberOfMessages"
    found = queues.client.get_queue_attributes(QueueUrl=queues.url, AttributeNames=[name])
    return int(found["Attributes"][name])


def test_a_worker_that_starts_in_a_pause_receives_nothing_until_its_end(
    where: Place, start_worker: StartWorker, tmp_path: Path
) -> None:
    queues, health = where.queues, tmp_path / "health.json"
    environment = {**where.environment, "WORKER_HEALTH_FILE": str(health)}
    ran = celery(environment, tmp_path, "sqs", "pause", queues.name, "--reason", "deploy")
    assert ran.returncode == 0, ran.stderr
    worker = start_worker(environment)
    service = Service(worker, queues, environment, where.database)
    service.send(registration("u1"))
    # The health file is written every few seconds, and a poll of the queue would take the message.
    said = "paused: " + queues.name
    worker.wait_for(
        lambda: health.exists() and said in health.read_text(), SETTLE_SECONDS, "the health file"
    )
    assert visible(queues) == 1

    ran = celery(environment, tmp_path, "sqs", "resume", queues.name)
    assert ran.returncode == 0, ran.stderr
    service.user("s1", "u1")
    service.settle()

    celery(environment, tmp_path, "sqs", "pause", queues.name, "--reason", "again", "--for", "1h")
    worker.wait_for(
        lambda: len(worker.log_lines("queue.paused")) == 2, SETTLE_SECONDS, "the second pause"
    )
    assert [line["reason"].split(" (")[0] for line in worker.log_lines("queue.paused")] == [
        "deploy",
        "again",
    ]
    assert worker.stop() == 0
