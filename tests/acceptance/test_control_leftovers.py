"""Workers and clients of the control plane are killed at random moments: nothing of them stays."""

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.acceptance.worker import READY_SECONDS, Place, living, workers
from tests.services import wait_until

#: Kills of clients for each kill of a worker, and rounds of them: twenty kills.
CLIENTS, ROUNDS = 3, 5

#: Seconds for MongoDB to notice that somebody is dead, and for its sweep of what expired.
PATIENCE = 150

#: How often MongoDB sweeps, and how long it keeps a cursor that its reader did not wait at when it
#: was killed: less than by default, which is a minute and ten minutes.
SWEEPS = {"ttlMonitorSleepSecs": 5, "cursorTimeoutMillis": 30_000}

COMMANDS = (("inspect", "ping", "-t", "30"), ("events", "--dump"), ("inspect", "stats", "-t", "30"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def _sweeps(mongo_client: MongoClient[dict[str, Any]]) -> Iterator[None]:
    def set_to(values: dict[str, int]) -> dict[str, int]:
        before = {}
        for name, value in values.items():
            answer = mongo_client.admin.command({"setParameter": 1, name: value})
            before[name] = answer["was"]
        return before

    before = set_to(SWEEPS)
    yield
    set_to(before)


@pytest.mark.usefixtures("_sweeps")
def test_twenty_kills_leave_no_document_cursor_queue_or_process(
    where: Place, mongo_client: MongoClient[dict[str, Any]], tmp_path: Path
) -> None:
    database = mongo_client[f"{where.database.name}_control"]
    queues_before = where.queues.client.list_queues().get("QueueUrls", [])
    killed: list[int] = []

    def start(command: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            ["celery", "-A", "app", *command],
            env=dict(where.environment),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    with workers(tmp_path / "workers") as start_worker:
        for _ in range(ROUNDS):
            worker = start_worker(where.environment, ready=False)
            clients = [start(random.choice(COMMANDS)) for _ in range(CLIENTS)]
            # At any moment from before the first connection to long after it.
            many = random.choice([0, CLIENTS, CLIENTS, CLIENTS])
            wait_until(lambda n=many: cursors(database) >= n, READY_SECONDS, "readers")
            for client in clients:
                client.kill()
                client.wait()
            worker.kill()
            killed += [worker.pid, *(client.pid for client in clients)]
        survivor = start_worker(where.environment)
        survivor.wait_for(is_swept(database, readers=1), PATIENCE, "nothing that is left over")

    assert not {group for _, _, group in living()} & set(killed)
    assert where.queues.client.list_queues().get("QueueUrls", []) == queues_before
    made = {"attempts", "broadcasts", "events", "replies", "revokes"}
    assert set(database.list_collection_names()) == made


def is_swept(database: Any, readers: int) -> Callable[[], bool]:
    """Whether there are the cursors of the living, and no document that waits for the dead."""
    return lambda: cursors(database) <= readers and not database.replies.count_documents({})


def cursors(database: Any) -> int:
    listing = database.client.admin.aggregate([{"$currentOp": {"idleCursors": True}}])
    streams = {f"{database.name}.{name}" for name in ("broadcasts", "events")}
    ours = [op for op in listing if op.get("ns") in streams]
    return sum(op["type"] == "idleCursor" or op.get("op") == "getmore" for op in ours)
