"""Flower and workers come and go: what has been seen stays, and nothing else does."""

import json
import random
import subprocess
import uuid
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.acceptance.flower_process import LOGIN, Flower, flowering, started
from tests.acceptance.worker import Place, Program, StartWorker, Worker
from tests.services import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DONE_SECONDS = 60
KILLS = 20
#: A killed worker's messages come back soon.
SHORT = {"TASK_SOFT_TIME_LIMIT": "4", "TASK_TIME_LIMIT": "5", "SQS_VISIBILITY_TIMEOUT": "8"}


@pytest.fixture
def worker(where: Place, start_worker: StartWorker) -> Worker:
    """A worker whose events Flower sees."""
    return start_worker(where.environment, "-n", "one@test")


def register(where: Place) -> str:
    """Put a registration on the queue; its id, which is the user's too."""
    id_ = str(uuid.uuid4())
    data = {"stockId": "s1", "userId": id_, "userInfo": {"nickname": "kim"}}
    body = json.dumps({"id": id_, "action": "registerUser", "data": data})
    where.queues.client.send_message(QueueUrl=where.queues.url, MessageBody=body)
    return id_


def state(flower: Flower, id_: str) -> str | None:
    answer = flower.get(f"/api/task/info/{id_}")
    return answer.json["state"] if answer.status == 200 else None


def wait_for_success(flower: Flower, id_: str) -> None:
    flower.wait_for(lambda: state(flower, id_) == "SUCCESS", DONE_SECONDS, "a task that succeeded")


def test_what_flower_has_seen_outlives_its_restart(
    where: Place, worker: Worker, tmp_path: Path
) -> None:
    environment = dict(where.environment) | {"FLOWER_DB": str(tmp_path / "flower.db")}
    with flowering(environment, tmp_path) as flower:
        flower.wait_until_it_sees("one@test")
        before = register(where)
        wait_for_success(flower, before)
        assert flower.stop() == 0

    with flowering(environment, tmp_path) as flower:
        assert state(flower, before) == "SUCCESS"
        flower.wait_until_it_sees("one@test")
        after = register(where)
        wait_for_success(flower, after)
        assert "Traceback" not in flower.log_text()


def test_what_flower_has_saved_outlives_its_being_killed(
    where: Place, worker: Worker, tmp_path: Path
) -> None:
    environment = dict(where.environment) | {"FLOWER_DB": str(tmp_path / "flower.db")}
    often = "--state_save_interval=200"
    with flowering(environment, tmp_path, often) as flower:
        flower.wait_until_it_sees("one@test")
        before = register(where)
        wait_for_success(flower, before)
        for _ in range(2):
            # The first save may have begun before.
            last = saved_at(tmp_path)
            flower.wait_for(lambda last=last: saved_at(tmp_path) > last, DONE_SECONDS, "a save")
        flower.kill()

    with flowering(environment, tmp_path) as flower:
        assert state(flower, before) == "SUCCESS"


def test_a_dead_letter_that_never_became_a_task_is_a_failed_one(
    where: Place, worker: Worker, tmp_path: Path
) -> None:
    environment = dict(where.environment) | {"FLOWER_DB": str(tmp_path / "flower.db")}
    with flowering(environment, tmp_path) as flower:
        flower.wait_until_it_sees("one@test")
        sent = where.queues.client.send_message(QueueUrl=where.queues.url, MessageBody="not JSON")
        flower.wait_for(
            lambda: state(flower, sent["MessageId"]) == "FAILURE", DONE_SECONDS, "a failed task"
        )


def saved_at(directory: Path) -> int:
    times = [0]
    for file in directory.glob("flower.db*"):
        # A save that is under way moves its own away.
        with suppress(FileNotFoundError):
            times.append(file.stat().st_mtime_ns)
    return max(times)


def test_killed_20_times_at_random_flower_and_workers_leave_nothing(
    where: Place,
    mongo_client: MongoClient[dict[str, Any]],
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    environment = {
        **where.environment,
        **SHORT,
        "FLOWER_DB": str(tmp_path / "flower.db"),
        "FLOWER_BASIC_AUTH": LOGIN,
    }
    queues = queue_urls(where)
    cursors = open_cursors(mongo_client)
    sent, ended = set(), []
    with ExitStack() as running:

        def start(kind: type[Program]) -> Program:
            if kind is Worker:
                return start_worker(environment, "-n", "often@test", ready=False)
            return running.enter_context(started(environment, tmp_path))

        alive = {kind: start(kind) for kind in (Flower, Worker)}
        for _ in range(KILLS):
            sent |= {register(where) for _ in range(3)}
            kind = random.choice((Flower, Worker))
            # At any moment, that of its start included.
            with pytest.raises(subprocess.TimeoutExpired):
                alive[kind].wait(random.uniform(0, 3))
            alive[kind].kill()
            ended.append(alive[kind])
            alive[kind] = start(kind)

        users = where.database["users"]
        alive[Flower].wait_until_listening()
        alive[Worker].wait_until_ready()
        alive[Worker].wait_for(
            lambda: users.count_documents({"user_id": {"$in": list(sent)}}) == len(sent),
            DONE_SECONDS,
            "every user",
        )
        alive[Worker].wait_for(where.queues.is_empty, DONE_SECONDS, "an empty queue")
        alive[Flower].wait_until_it_sees("often@test")
        for program in alive.values():
            assert program.stop() == 0
            ended.append(program)

    assert len(ended) == KILLS + 2
    assert [program.processes() for program in ended if program.processes()] == []
    assert queue_urls(where) == queues
    # Another test of this file sends that on purpose.
    dead = [each for each in where.queues.dead_letters() if each["Body"] != "not JSON"]
    assert dead == []
    leave_no_cursor(mongo_client, cursors)
    leave_no_document(mongo_client, where)


def queue_urls(where: Place) -> set[str]:
    return set(where.queues.client.list_queues().get("QueueUrls", []))


def open_cursors(mongo_client: MongoClient[dict[str, Any]]) -> dict[str, int]:
    cursors: dict[str, int] = mongo_client.admin.command("serverStatus")["metrics"]["cursor"][
        "open"
    ]
    return cursors


def leave_no_cursor(mongo_client: MongoClient[dict[str, Any]], before: dict[str, int]) -> None:
    """Those of killed readers end when MongoDB next sends them something (control/store.py)."""
    wait_until(
        lambda: open_cursors(mongo_client)["total"] <= before["total"],
        DONE_SECONDS,
        "no more cursors than before",
    )
    assert open_cursors(mongo_client)["noTimeout"] == 0


def leave_no_document(mongo_client: MongoClient[dict[str, Any]], where: Place) -> None:
    """Nothing is there but what expires, and it does."""
    control = mongo_client[f"{where.database.name}_control"]
    made = {"attempts", "broadcasts", "events", "replies", "revokes"}
    assert set(control.list_collection_names()) == made
    assert all(control[name].options()["capped"] for name in ("broadcasts", "events"))
    assert control["revokes"].count_documents({}) == 0
    # MongoDB looks once a minute, and a reply is kept for one.
    past = datetime.now(UTC) - timedelta(hours=1)
    control["replies"].update_many({}, {"$set": {"at": past}})
    mongo_client.admin.command("setParameter", 1, ttlMonitorSleepSecs=1)
    try:
        wait_until(
            lambda: control["replies"].count_documents({}) == 0, DONE_SECONDS, "replies that expire"
        )
    finally:
        mongo_client.admin.command("setParameter", 1, ttlMonitorSleepSecs=60)
