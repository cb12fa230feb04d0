"""What registrations cost MongoDB: many share a write, whatever door they came in by."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient

from devstack.mongo import MongoServer
from tests.acceptance.worker import SETTLE_SECONDS, StartWorker, run_program
from tests.services import Queues

COUNT = 200

#: A write for so many messages at the least: well above what falls off where few come together.
SHARE = 6

#: Commands that change a collection.
WRITES = {"insert", "update", "findAndModify", "bulkWrite"}

#: The producers have the time limits of the worker's default settings, as those of a project do.
DELAY = """
import json, sys
from app.tasks import register_user
for user in json.loads(sys.argv[1]):
    register_user.delay(**user)
print("null")
"""

PUBLISH_MANY = """
import json, sys
from sqs_broker.sqs.publisher import publish_many
from app.tasks import register_user
print(publish_many(register_user, json.loads(sys.argv[1])).sent)
"""

#: Celery and kombu as they come, with a project of their own. Nothing of ours is imported.
STOCK = """
import json, os, sys
from celery import Celery
app = Celery("stock", broker=os.environ["STOCK_BROKER"])
app.conf.broker_transport_options = json.loads(os.environ["STOCK_OPTIONS"])
app.conf.task_default_queue = os.environ["STOCK_QUEUE"]
app.conf.task_time_limit, app.conf.task_soft_time_limit = 30, 25

@app.task(name="registerUser")
def register_user(**kwargs): ...

for user in json.loads(sys.argv[1]):
    register_user.delay(**user)
print("null")
"""


class Door:
    """Sends registrations as a real producer does, or as any program in another language."""

    def __init__(self, queues: Queues, environment: Mapping[str, str], home: Path) -> None:
        self._queues = queues
        self._environment = dict(environment)
        self._home = home

    def delay(self, users: list[dict[str, Any]]) -> None:
        run_program(DELAY, self._environment, self._home, users)

    def publish_many(self, users: list[dict[str, Any]]) -> None:
        assert run_program(PUBLISH_MANY, self._environment, self._home, users) == len(users)

    def stock(self, users: list[dict[str, Any]]) -> None:
        key = {"access_key_id": "test", "secret_access_key": "test"}
        options = {
            "region": self._queues.region,
            "is_secure": False,
            "predefined_queues": {self._queues.name: {"url": self._queues.url} | key},
        }
        environment = {
            "PATH": self._environment["PATH"],
            "HOME": self._environment["HOME"],
            "STOCK_BROKER": f"sqs://test:test@{urlsplit(self._queues.endpoint_url).netloc}",
            "STOCK_OPTIONS": json.dumps(options),
            "STOCK_QUEUE": self._queues.name,
        }
        run_program(STOCK, environment, self._home, users)

    def json(self, users: list[dict[str, Any]]) -> None:
        self._send([plain(user) for user in users])

    def sns(self, users: list[dict[str, Any]]) -> None:
        topic = {"Type": "Notification", "TopicArn": "arn:aws:sns:us-west-2:123456789012:MyTopic"}
        self._send([json.dumps(topic | {"Message": plain(user)}) for user in users])

    def mixed(self, users: list[dict[str, Any]]) -> None:
        """A few by each door in turn."""
        doors = [self.json, self.publish_many, self.sns, self.delay, self.stock]
        for n in range(0, len(users), 10):
            doors[n // 10 % len(doors)](users[n : n + 10])

    def _send(self, bodies: list[str]) -> None:
        for n in range(0, len(bodies), 10):
            entries: Any = [
                {"Id": str(place), "MessageBody": body}
                for place, body in enumerate(bodies[n : n + 10])
            ]
            self._queues.client.send_message_batch(QueueUrl=self._queues.url, Entries=entries)


def plain(user: dict[str, Any]) -> str:
    return json.dumps({"id": user["user_id"], "action": "registerUser", "data": user})


@pytest.fixture
def writes(
    mongo_server: MongoServer, mongo_client: MongoClient[dict[str, Any]]
) -> Callable[[str], int]:
    """Tells how many commands have changed the users of a database within the block."""
    log = mongo_server.process.log

    def logged(slow_ms: int) -> None:
        # Of each update of one command the profiler would tell by itself, the log tells of both.
        mongo_client.admin.command("profile", 0, slowms=slow_ms)

    @contextmanager
    def counting(database: str) -> Iterator[list[str]]:
        start, counted = log.stat().st_size, list[str]()
        logged(-1)
        try:
            yield counted
        finally:
            logged(100)
        with log.open("rb") as lines:
            lines.seek(start)
            for line in lines:
                counted += command_on_users(json.loads(line), database)

    return counting


def command_on_users(line: dict[str, Any], database: str) -> list[str]:
    told = line["attr"] if line["c"] == "COMMAND" and "attr" in line else {}
    if told.get("ns", "").split(".")[0] != database:
        return []
    name, collection = next(iter(told.get("command", {}).items()), ("", ""))
    return [name] if name in WRITES and collection in ("users", 1) else []


@pytest.mark.slow
@pytest.mark.parametrize(
    "door",
    ["delay", "publish_many", "stock", "json", "sns", "mixed"],
)
def test_registrations_that_wait_together_share_a_write(
    start_worker: StartWorker,
    queues: Queues,
    environment: dict[str, str],
    tmp_path: Path,
    writes: Any,
    door: str,
) -> None:
    users = [
        {"stock_id": "s1", "user_id": f"u{n}", "user_info": {"nickname": "kim"}}
        for n in range(COUNT)
    ]
    getattr(Door(queues, environment, tmp_path), door)(users)
    assert queues.counts() == (COUNT, 0, 0)

    with MongoClient[dict[str, Any]](environment["MONGO_URI"]) as client:
        database = client.get_default_database()
        with writes(database.name) as counted:
            worker = start_worker(environment)
            worker.wait_for(queues.is_empty, SETTLE_SECONDS, "an empty queue")
        assert database["users"].count_documents({}) == COUNT
    assert queues.dead_letters() == []
    assert 0 < len(counted) <= COUNT / SHARE, counted
