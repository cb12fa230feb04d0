"""At the most talkative level, with every logger of the process turned up, no log line, event or
dead-letter note of a worker holds what a user typed, or a secret."""

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.uri_parser import parse_uri

from tests.acceptance.worker import SETTLE_SECONDS, StartWorker
from tests.services import Queues

#: What a user typed, in each message.
MARKER = "Zqx7MarkerOfAUser"

SECRETS = {"the secret key": "Zqx7SecretKey", "the password": "Zqx7Password"}

#: Turns all loggers up once the log is set up, in the main process and in each of the pool: as
#: somebody who looks for a fault would, or a library that knows better.
LOUD = """
import logging
from celery import signals

def turn_up(**_):
    for name in ("", "amqp", "asyncio", "botocore", "boto3", "urllib3", "pymongo", "celery",
                 "celery.pool", "kombu", "multiprocessing", *logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.DEBUG)
    logging.getLogger("app.loud").debug("All is turned up.")

for signal in (signals.celeryd_after_setup, signals.worker_process_init, signals.worker_ready):
    signal.connect(turn_up, weak=False)
"""


@pytest.fixture
def loud(
    environment: dict[str, str], tmp_path: Path, mongo_client: MongoClient[dict[str, Any]]
) -> Iterator[dict[str, str]]:
    """The environment of a worker whose loggers are turned up, with secrets that can be told."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(LOUD)
    uri = environment["MONGO_URI"]
    database = mongo_client[parse_uri(uri)["database"]]
    roles = [
        {"role": "readWrite", "db": name} for name in (database.name, f"{database.name}_control")
    ]
    database.command("createUser", "kim", pwd=SECRETS["the password"], roles=roles)
    yield environment | {
        "PYTHONPATH": os.pathsep.join([str(site), environment["PYTHONPATH"]]),
        "AWS_SECRET_ACCESS_KEY": SECRETS["the secret key"],
        "MONGO_URI": uri.replace("://", f"://kim:{SECRETS['the password']}@"),
        "SQS_MAX_ATTEMPTS": "2",
        "SQS_BACKOFF_BASE": "0.05",
    }
    database.command("dropUser", "kim")


@dataclass(frozen=True)
class Story:
    """Messages of each fate."""

    queues: Queues
    database: Any

    def send(self, user_id: str, nickname: str = MARKER, action: str = "registerUser") -> None:
        info = {"nickname": nickname, "introduction": MARKER}
        data = {"stockId": "s1", "userId": user_id, "userInfo": info, MARKER: MARKER}
        self.put(json.dumps({"id": f"{user_id}-{len(nickname)}", "action": action, "data": data}))

    def put(self, body: str) -> None:
        self.queues.client.send_message(QueueUrl=self.queues.url, MessageBody=body)

    def tell(self) -> None:
        """Success, again, conflict, invalid, unknown task, poison, and a write that MongoDB refuses
        each time, with an error that holds the nickname."""
        self.database.command(
            "collMod", "users", validator={"user_info.nickname": {"$not": {"$regex": "refused"}}}
        )
        for user_id in ("u1", "u1", "u2", "u3"):
            self.send(user_id)
        self.send("u1", nickname=f"{MARKER}-2")
        self.send("invalid", nickname=MARKER * 100)
        self.send("unknown", action="noSuchTask")
        self.put(f"poison {MARKER}")
        self.put(json.dumps({"id": "p", "action": "registerUser", "data": {"nickname": MARKER}}))
        self.send("refused", nickname=f"{MARKER}-refused")

    def notes(self) -> list[str]:
        letters = self.queues.dead_letters()
        return [each["MessageAttributes"]["dead-letter"]["StringValue"] for each in letters]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("way", ["LOG_LEVEL", pytest.param("-l", marks=pytest.mark.slow)])
def test_nothing_personal_and_no_secret_is_told_at_any_level(
    loud: dict[str, str],
    queues: Queues,
    mongo_client: MongoClient[dict[str, Any]],
    start_worker: StartWorker,
    pool: str,
    way: str,
) -> None:
    database = mongo_client[parse_uri(loud["MONGO_URI"])["database"]]
    level = ("-l", "DEBUG") if way == "-l" else ()
    worker = start_worker(loud | ({} if level else {"LOG_LEVEL": "DEBUG"}), "--pool", pool, *level)
    story = Story(queues, database)

    story.tell()
    worker.wait_for(lambda: len(story.notes()) == 5, SETTLE_SECONDS, "the dead letters")
    # The message of the unknown task is released, for another worker might have the task.
    worker.wait_for(lambda: sum(queues.counts()) == 1, SETTLE_SECONDS, "nothing else in the queue")
    worker.stop()

    # Of the two payloads of the first one, threads may store either.
    assert sorted(database["users"].distinct("user_id")) == ["u1", "u2", "u3"]
    told = {"the log": worker.log_text(), "the notes": "\n".join(story.notes())}
    control = mongo_client[f"{database.name}_control"]
    for name in control.list_collection_names():
        told[name] = "\n".join(map(str, control[name].find()))
    assert "All is turned up." in told["the log"]
    assert "message.retry" in told["the log"]
    assert "task.unknown" in told["the log"]
    assert "task-received" in told["events"]
    hidden = {"what a user typed": MARKER, **SECRETS}
    hidden["what a user typed, in base64"] = base64.b64encode(MARKER.encode()).decode()[:16]
    found = [
        (where, what)
        for where, text in told.items()
        for what, mark in hidden.items()
        if mark in text
    ]
    assert found == []
