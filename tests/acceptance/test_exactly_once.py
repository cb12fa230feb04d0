"""Whatever is delivered twice, killed or cut off: each message counts once."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from devstack.mongo import MongoServer
from tests.acceptance.worker import StartWorker, Worker
from tests.faults import proxy
from tests.services import Queues, wait_until

Environment = dict[str, str]

#: Seconds between two kills: a new pool process has to get something done.
KILL_EVERY = 0.3

SENDER = """
import json, sys
from app.celery import app
from sqs_broker import batching
with batching():
    for task, kwargs, id_ in json.load(sys.stdin):
        app.send_task(task, kwargs=kwargs, task_id=id_)
"""


@pytest.fixture
def database(mongo_client: MongoClient[Any], mongo_uri: str) -> Database[Any]:
    """The test's own database."""
    return mongo_client[mongo_uri.rsplit("/", 1)[1].split("?")[0]]


@pytest.fixture(autouse=True)
def _no_fail_point(mongo_server: MongoServer) -> Iterator[None]:
    """Leave MongoDB as it was."""
    yield
    with MongoClient(mongo_server.uri("test")) as client:
        client.admin.command("configureFailPoint", "failCommand", mode="off")
        keep_transactions(client, seconds=60)


def send_by_celery(environment: Environment, calls: list[tuple[str, Any, str]]) -> None:
    """Door 1, from a process of its own."""
    subprocess.run(
        [sys.executable, "-c", SENDER], input=json.dumps(calls), text=True, env=environment,
        check=True,
    )  # fmt: skip


def send_plain(queues: Queues, messages: list[Any]) -> None:
    """Door 2, ten a call."""
    for start in range(0, len(messages), 10):
        queues.client.send_message_batch(
            QueueUrl=queues.url,
            Entries=[
                {"Id": str(n), "MessageBody": json.dumps(message)}
                for n, message in enumerate(messages[start : start + 10])
            ],
        )


def slow_commits(mongo_client: MongoClient[Any], milliseconds: int, **mode: Any) -> int:
    """Let MongoDB take its time with each commit; how often it did so before."""
    data = {
        "failCommands": ["commitTransaction"],
        "blockConnection": True,
        "blockTimeMS": milliseconds,
    }
    set_ = mongo_client.admin.command(
        "configureFailPoint", "failCommand", mode=mode or "alwaysOn", data=data
    )
    return int(set_["count"])


def keep_transactions(mongo_client: MongoClient[Any], seconds: int) -> None:
    """How long MongoDB keeps the transaction, and the locks, of a process that was killed."""
    mongo_client.admin.command("setParameter", 1, transactionLifetimeLimitSeconds=seconds)


def count(database: Database[Any]) -> int:
    """The running count of increments."""
    return sum(part["count"] for part in database.counters.find())


@pytest.mark.slow
@pytest.mark.contract
def test_a_thousand_registrations_sent_twice_by_two_doors_make_a_thousand_users(
    queues: Queues,
    environment: Environment,
    start_worker: StartWorker,
    database: Database[Any],
) -> None:
    environment["SQS_WAIT_TIME"] = "1"
    numbers = [number for number in range(1_000) for _ in range(2)]
    random.Random(1).shuffle(numbers)
    workers = [start_worker(environment, "-c", "1", "-n", f"w{n}@%h") for n in range(4)]

    send_plain(
        queues,
        [
            {
                "id": f"json-{place}",
                "action": "registerUser",
                "data": {
                    "stockId": "s1",
                    "userId": f"u{number}",
                    "userInfo": {"nickname": f"nick {number}", "gender": "F"},
                    "loanCount": 1,
                },
            }
            for place, number in enumerate(numbers[:1_000])
        ],
    )
    send_by_celery(
        environment,
        [
            (
                "registerUser",
                {
                    "stock_id": "s1",
                    "user_id": f"u{number}",
                    "user_info": {"nickname": f"nick {number}", "gender": "F"},
                    "loan_count": 1,
                },
                f"celery-{place}",
            )
            for place, number in enumerate(numbers[1_000:])
        ],
    )
    wait_until(queues.is_empty, 60, "an empty queue")

    assert database.users.count_documents({}) == 1_000
    assert len(database.users.distinct("user_id")) == 1_000
    assert queues.dead_letters() == []
    assert all(worker.is_running for worker in workers)


@pytest.mark.slow
def test_increments_count_once_while_pool_processes_are_killed(
    make_queues: Callable[..., Queues],
    environment: Environment,
    start_worker: StartWorker,
    database: Database[Any],
    mongo_client: MongoClient[Any],
) -> None:
    queues = make_queues(max_receive_count=100)
    environment |= {
        "AWS_SQS_QUEUE_URL": queues.url,
        "AWS_SQS_DLQ_URL": queues.dead_letter_url,
        "SQS_MAX_ATTEMPTS": "97",
        "SQS_MAX_RECEIVE_COUNT": "100",
        "SQS_BACKOFF_BASE": "0.1",
        "SQS_BACKOFF_MAX": "1",
        "SQS_WAIT_TIME": "1",
        "MONGO_TRANSACTION_LIFETIME": "2",
    }
    keep_transactions(mongo_client, seconds=2)
    ids = [f"increment-{number}" for number in range(500) for _ in range(3)]
    random.Random(2).shuffle(ids)
    slow_commits(mongo_client, milliseconds=20)

    half = len(ids) // 2
    send_plain(
        queues, [{"id": id_, "action": "increment", "data": {"input": 1}} for id_ in ids[:half]]
    )
    send_by_celery(environment, [("increment", {"input": 1}, id_) for id_ in ids[half:]])
    workers = [start_worker(environment, "-c", "2", "-n", f"w{n}@%h") for n in range(2)]
    kills, last = 0, monotonic()

    def is_empty_after_another_kill() -> bool:
        nonlocal kills, last
        if monotonic() - last > KILL_EVERY:
            kills, last = kills + kill_a_pool_process(workers), monotonic()
        return queues.is_empty()

    wait_until(is_empty_after_another_kill, 100, "an empty queue")

    lost = sum(len(worker.log_lines("message.retry")) for worker in workers)
    assert (kills >= 10, lost >= 5) == (True, True), (kills, lost)
    assert count(database) == 500
    assert database.increments.count_documents({}) == 500
    assert queues.dead_letters() == []
    assert all(worker.is_running for worker in workers)


def kill_a_pool_process(workers: list[Worker]) -> bool:
    """Kill -9 one process of a pool, taken by chance."""
    pids = [pid for worker in workers for pid in worker.pool_pids()]
    with suppress(ProcessLookupError, IndexError):
        os.kill(random.choice(pids), signal.SIGKILL)
        return True
    return False


def test_a_kill_between_effect_and_commit_counts_once(
    queues: Queues,
    environment: Environment,
    start_worker: StartWorker,
    database: Database[Any],
    mongo_client: MongoClient[Any],
) -> None:
    environment |= {"SQS_BACKOFF_BASE": "0.1", "MONGO_TRANSACTION_LIFETIME": "2"}
    keep_transactions(mongo_client, seconds=2)
    worker = start_worker(environment, "-c", "1")
    before = slow_commits(mongo_client, milliseconds=5_000, times=1)

    send_plain(queues, [{"id": "once-1", "action": "increment", "data": {"input": 1}}])
    mongo_client.admin.command(
        "waitForFailPoint", "failCommand", timesEntered=before + 1, maxTimeMS=20_000
    )
    (pid,) = worker.pool_pids()
    os.kill(pid, signal.SIGKILL)
    assert count(database) == 0
    wait_until(queues.is_empty, 30, "an empty queue")

    assert count(database) == 1
    assert worker.log_lines("message.retry")[0]["error"] == "WorkerLostError"


@pytest.mark.parametrize("queues", [{"visibility_timeout": 4}], indirect=True)
def test_a_kill_between_commit_and_delete_counts_once(
    queues: Queues,
    environment: Environment,
    start_worker: StartWorker,
    database: Database[Any],
) -> None:
    environment |= {
        "SQS_WAIT_TIME": "1",
        "TASK_SOFT_TIME_LIMIT": "2",
        "TASK_TIME_LIMIT": "3",
        "SQS_VISIBILITY_TIMEOUT": "4",
    }
    with proxy.running(queues.endpoint_url) as (faults, url):
        faults.hold("DeleteMessageBatch")
        first = start_worker(environment | {"AWS_ENDPOINT_URL": url}, "-c", "1")
        send_plain(queues, [{"id": "once-2", "action": "increment", "data": {"input": 1}}])
        wait_until(lambda: faults.is_holding("DeleteMessageBatch"), 20, "the delete")
        assert count(database) == 1
        first.kill()

    second = start_worker(environment, "-c", "1")
    wait_until(queues.is_empty, 30, "an empty queue")

    assert count(database) == 1
    (line,) = second.wait_for(lambda: second.log_lines("message.received"), 5, "its line")
    assert line["deliveries"] == 2
