"""A worker and the commands on a control database with a fault, with a real mongod that asks for a
login: tasks run, and a revoked task does not."""

import json
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.acceptance.worker import PROGRAM_SECONDS, Place, StartWorker, Worker
from tests.deployments.deployment import Deployment

#: Seconds for a message to be done.
PATIENCE = 30


@pytest.fixture
def name(secured: Deployment) -> Iterator[str]:
    """A database in which the application may read and write, and no more; its control database
    too."""
    made = f"test_{uuid.uuid4().hex}"
    for database in (made, f"{made}_control"):
        secured.grant(database, "readWrite")
    yield made
    for database in (made, f"{made}_control"):
        secured.revoke(database, "readWrite")
        secured.client().drop_database(database)


@pytest.fixture
def environment(where: Place, secured: Deployment, name: str) -> Mapping[str, str]:
    return {**where.environment, "MONGO_URI": secured.uri(name)}


def send(where: Place, id_: str) -> None:
    data = {"stockId": "s1", "userId": id_, "userInfo": {"nickname": "n"}}
    body = {"id": id_, "action": "registerUser", "data": data}
    where.queues.client.send_message(QueueUrl=where.queues.url, MessageBody=json.dumps(body))


def check_that_it_works(
    worker: Worker, where: Place, users: Any, environment: Mapping[str, str], directory: Path
) -> None:
    """One task runs, and another one is revoked."""
    revoked, kept = uuid.uuid4().hex, uuid.uuid4().hex
    command = subprocess.run(
        ["celery", "-A", "app", "control", "revoke", revoked],
        env=dict(environment),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
    )
    assert command.returncode == 0, command.stderr

    def is_revoked() -> bool:
        lines = worker.log_lines("task.revoked")
        return any(line["message_id"] == revoked for line in lines)

    send(where, revoked)
    send(where, kept)
    worker.wait_for(lambda: users.find_one({"user_id": kept}), PATIENCE, "the user")
    worker.wait_for(is_revoked, PATIENCE, "the revoked task")
    assert users.find_one({"user_id": revoked}) is None


def test_a_worker_starts_with_an_odd_document_among_the_revokes(
    where: Place,
    start_worker: StartWorker,
    mongo_client: MongoClient[dict[str, Any]],
    tmp_path: Path,
) -> None:
    control = mongo_client[f"{where.database.name}_control"]
    control.revokes.insert_many([{"task_id": "id"}, {"_id": "plain"}, {"_id": {"id": ["a"]}}])
    worker = start_worker(where.environment)
    assert len(worker.log_lines("control.unreadable")) == 1
    check_that_it_works(worker, where, where.database.users, where.environment, tmp_path)


@pytest.mark.slow
def test_a_size_and_a_time_that_may_not_be_changed_turn_nothing_off(
    where: Place,
    start_worker: StartWorker,
    environment: Mapping[str, str],
    secured: Deployment,
    name: str,
    tmp_path: Path,
) -> None:
    start_worker(environment).stop()
    changed = {**environment, "CONTROL_SIZE_MIB": "32", "ONCE_RETENTION_DAYS": "60"}
    worker = start_worker(changed, "-E")
    check_that_it_works(worker, where, secured.client()[name].users, changed, tmp_path)
    lines = worker.log_lines("control.fault")
    assert [line["reason"].count("`collMod`") for line in lines] == [1, 1, 1]
    assert worker.log_lines("control.down") == []
