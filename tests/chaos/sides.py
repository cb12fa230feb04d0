"""Who goes through it: this project, and stock Celery."""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from celery import Celery
from kombu import Exchange, Queue

from devstack.sqs import ACCESS_KEY, REGION
from sqs_broker import install
from tests.acceptance.worker import procfile_command
from tests.chaos import traffic
from tests.chaos.fleet import Release
from tests.chaos.plan import NEW_TASK, POOLS, VISIBILITY, Scale
from tests.chaos.stage import LOCKS, MOST_RECEIVES, Stage
from tests.chaos.traffic import Door

ROOT = Path(__file__).parents[2]

#: Processes, or threads, of each worker.
CONCURRENCY = 2

#: Seconds. A lease outlasts the one, and a task is told to stop before it is killed.
HARD_LIMIT, SOFT_LIMIT = VISIBILITY - 1, VISIBILITY - 2

#: Seconds of a long poll: a worker stops when its last one has.
LONG_POLL = 2

#: Where workers find the tasks of a run, and by which names.
RELEASES = ROOT / "tests" / "chaos" / "releases"
FAILING, NEW = "chaos_failing", "chaos_new"

#: The file to which the failing task writes, in the directory of a run.
RUNS = "failed-runs.txt"

#: The tasks whose effect is one more in the running count.
COUNTED = ("increment", NEW_TASK)


@dataclass(frozen=True)
class Effects:
    """What the messages have done."""

    times: Counter[str]
    """How often each message had its effect."""
    last_at: Mapping[str, float]
    """When, in seconds since the epoch."""


class Side:
    """One of the two, on a stage."""

    name: str
    #: What a task of it does once in MongoDB.
    writes: tuple[str, ...]
    #: What it has to say of its own in its URI.
    mongo_options: ClassVar[Mapping[str, str]] = {}
    #: Whether its workers have the tasks of releases/.
    has_releases: ClassVar[bool]

    def __init__(self, stage: Stage, scale: Scale, old: Path | None = None) -> None:
        """`old`: a checkout of an older commit, from which the workers of that release run."""
        self.stage = stage
        self.queue = stage.queues.name
        self.scale = scale
        self.old = old

    def command(self, slot: int, release: Release) -> tuple[list[str], Mapping[str, str]]:
        """How the worker of a slot is started."""
        environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(self.stage.directory),
            "PYTHONPATH": str(ROOT),
            "AWS_EC2_METADATA_DISABLED": "true",
            "MONGO_URI": self.stage.mongo_uri(**self.mongo_options),
        }
        arguments = ["-c", str(CONCURRENCY), "-n", f"w{slot}@%h", "-P", POOLS[slot]]
        command, own = self._worker(slot, self.stage.proxies[slot].url, release)
        return [*command, *arguments], environment | dict(own)

    def doors(self) -> list[Door]:
        """The ways in."""
        raise NotImplementedError

    def effects(self) -> Effects:
        """What is in the database."""
        raise NotImplementedError

    def progress(self) -> int:
        """How many effects there are. Raises where MongoDB is away."""
        names = ("users", "increments")
        return sum(self.stage.database[name].count_documents({}) for name in names)

    def _worker(self, slot: int, url: str, release: Release) -> tuple[list[str], Mapping[str, str]]:
        raise NotImplementedError

    def _producer(self) -> Celery:
        producer = Celery("producer", set_as_current=False)
        producer.conf.update(
            task_queues=[Queue(self.queue, Exchange(""), routing_key=self.queue)],
            task_default_queue=self.queue,
            task_default_exchange="",
            task_default_routing_key=self.queue,
            task_create_missing_queues=False,
            task_ignore_result=True,
        )
        return producer


class Ours(Side):
    """This project, as the Procfile starts it."""

    name = "this project"
    writes = ("insert", "update", "commitTransaction")
    has_releases = True

    def doors(self) -> list[Door]:
        endpoint, url = self.stage.producer.url, self.stage.queues.url
        producer = self._producer()
        install(producer)
        producer.conf.broker_transport_options = {
            "region": REGION,
            "endpoint_url": endpoint,
            "credentials": {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": ACCESS_KEY},
            "predefined_queues": {self.queue: {"url": url}},
        }
        return [
            traffic.door_of_celery(producer),
            traffic.door_of_json(url, endpoint),
            traffic.door_of_sns(url, endpoint),
        ]

    def effects(self) -> Effects:
        database = self.stage.database
        times: Counter[str] = Counter()
        last_at: dict[str, float] = {}
        for user in database["users"].find({}, {"user_id": 1, "registration": 1}):
            id_ = f"registerUser-{user['user_id'][1:]}"
            times[id_] += 1
            last_at[id_] = user["registration"]["registered_at"].timestamp()
        for record in database["once"].find({}, {"applied_at": 1}):
            id_ = record["_id"].partition(":")[2]
            last_at[id_] = record["applied_at"].timestamp()
        for row in database["increments"].find({}, {"message_id": 1}):
            times[row["message_id"]] += 1
        # The running count is what counts: each one in it beyond the increments was counted twice.
        count = sum(part["count"] for part in database["counters"].find())
        increments = sum(n for id_, n in times.items() if id_.startswith(COUNTED))
        if count != increments:
            times["the running count"] = 1 + count - increments
        return Effects(times, last_at)

    def _worker(self, slot: int, url: str, release: Release) -> tuple[list[str], Mapping[str, str]]:
        tasks = [FAILING, NEW] if release == Release.NEXT else [FAILING]
        code = self.old if release == Release.OLD and self.old else ROOT
        return [*procfile_command("worker"), "-I", ",".join(tasks)], {
            "PYTHONPATH": os.pathsep.join([str(code), str(RELEASES)]),
            "CHAOS_RUNS": str(self.stage.directory / RUNS),
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
            "AWS_SQS_QUEUE_URL": self.stage.queues.url,
            "AWS_SQS_DLQ_URL": self.stage.queues.dead_letter_url,
            "SQS_CLIENT": self.scale.clients[slot],
            "SQS_WAIT_TIME": str(LONG_POLL),
            "SQS_VISIBILITY_TIMEOUT": str(VISIBILITY),
            "TASK_TIME_LIMIT": str(HARD_LIMIT),
            "TASK_SOFT_TIME_LIMIT": str(SOFT_LIMIT),
            "WORKER_SHUTDOWN_TIMEOUT": "10",
            "SQS_MAX_ATTEMPTS": str(self.scale.attempts),
            "SQS_MAX_RECEIVE_COUNT": str(MOST_RECEIVES),
            "SQS_BACKOFF_BASE": "0.5",
            "SQS_BACKOFF_MAX": "4",
            "MONGO_TRANSACTION_LIFETIME": str(LOCKS),
        }


class Stock(Side):
    """Stock Celery on kombu's own SQS transport. Only its own door leads in."""

    name = "stock Celery"
    writes = ("insert",)
    # It deletes the message of a task that it does not have, and of one that has failed for good.
    has_releases = False
    # pymongo leaves it to the server's defaults.
    mongo_options: ClassVar[Mapping[str, str]] = {"w": "majority", "journal": "true"}

    def doors(self) -> list[Door]:
        producer = self._producer()
        producer.conf.update(
            broker_url=_broker(self.stage.producer.url),
            broker_transport_options=self._transport(),
        )
        return [traffic.door_of_celery(producer)]

    def effects(self) -> Effects:
        times: Counter[str] = Counter()
        last_at: dict[str, float] = {}
        for collection in ("users", "increments"):
            for row in self.stage.database[collection].find({}, {"message_id": 1, "at": 1}):
                times[row["message_id"]] += 1
                last_at.setdefault(row["message_id"], row["at"].timestamp())
        return Effects(times, last_at)

    def _transport(self) -> dict[str, Any]:
        return {
            "region": REGION,
            "predefined_queues": {self.queue: {"url": self.stage.queues.url}},
            "visibility_timeout": VISIBILITY,
            "wait_time_seconds": LONG_POLL,
            "polling_interval": 0,
            "is_secure": False,
        }

    def _worker(self, slot: int, url: str, release: Release) -> tuple[list[str], Mapping[str, str]]:
        settings = {
            "broker": _broker(url),
            "queue": self.queue,
            "transport": self._transport(),
            "soft_time_limit": SOFT_LIMIT,
            "time_limit": HARD_LIMIT,
        }
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "tests.chaos.stock",
            "worker",
            "-l",
            "INFO",
        ]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return [*command, *quiet], {
            "CHAOS_STOCK": json.dumps(settings),
            "AWS_DEFAULT_REGION": REGION,
        }


def _broker(url: str) -> str:
    return f"sqs://{ACCESS_KEY}:{ACCESS_KEY}@{urlsplit(url).netloc}"
