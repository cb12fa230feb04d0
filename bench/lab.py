"""What stays up for a whole run, and the stage of one measurement on it."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from bench import node, servers, traffic
from bench.bodies import Body
from bench.candidates import OURS, STOCK_PRODUCER, Candidate, Place
from bench.database import Client
from bench.doors import DOORS, copies, in_turn
from bench.errors import BenchError
from bench.sender import Sender
from bench.servers import Server
from bench.traffic import ROOT, Progress, Traffic
from devstack import mongo, sqs
from devstack.mongo import MongoServer
from devstack.process import Process
from devstack.waiting import wait_until

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

VISIBILITY_TIMEOUT = 60
#: Seconds from a worker's start to its first deleted message.
FIRST_SECONDS = 60


@dataclass
class Stage:
    """One consumer with a queue, a proxy and a database of its own."""

    lab: "Lab"
    candidate: Candidate
    task: str
    place: Place
    proxy: Traffic
    database: str
    workers: list[Process] = field(default_factory=list)

    def check(self) -> None:
        """Raises StackError if a worker ended."""
        for worker in self.workers:
            worker.check()

    def stored(self) -> int:
        """Users in the database, each of them seen."""
        return self.lab.mongo[self.database]["users"].count_documents({})

    def stored_about(self) -> int:
        """The same from what the collection knows of itself, without a look at the users."""
        return self.lab.mongo[self.database]["users"].estimated_document_count()

    def first_delete(self) -> float:
        """Waits for it; monotonic seconds. Raises BenchError where none comes."""

        def first() -> Progress | None:
            self.check()
            progress = self.proxy.progress()
            return progress if progress.first_delete else None

        try:
            progress = wait_until(first, FIRST_SECONDS, "a first deleted message")
        except TimeoutError as exc:
            last = self.workers[0].last_words()
            raise BenchError(f"{self.candidate.name}: {exc}: {last}") from None
        assert progress is not None
        assert progress.first_delete is not None
        return progress.first_delete

    def wait_until_deleted(self, messages: int, seconds: float) -> None:
        """Returns when so many are, or after so many seconds."""
        end = time.monotonic() + seconds
        while self.proxy.progress().deleted < messages and time.monotonic() < end:
            self.check()
            time.sleep(0.05)


@dataclass
class Lab:
    """An SQS server, a mongod and a directory for logs."""

    server: Server
    mongo_server: MongoServer
    mongo: Client
    logs: Path
    why_no_node: str | None

    def __post_init__(self) -> None:
        self._numbers = count(1)

    @contextmanager
    def proxy(self, delay_ms: float) -> Iterator[Traffic]:
        """A proxy before the SQS server."""
        log = self.logs / f"proxy-{next(self._numbers)}.log"
        with traffic.running(self.server.sqs.port, delay_ms / 1000, log) as proxy:
            yield proxy

    @contextmanager
    def stage(
        self,
        candidate: Candidate,
        task: str,
        delay_ms: float,
        *,
        size: int = 0,
        workers: int = 1,
        queues: int = 1,
        visibility_timeout: int = VISIBILITY_TIMEOUT,
        max_receive_count: int = 10,
    ) -> Iterator[Stage]:
        """A queue with `size` messages, so many queues with it that are empty, and so many workers
        that have just been started."""
        name = f"bench-{next(self._numbers)}"
        client = self.server.sqs.client()
        with ExitStack() as stack:
            stack.callback(client.close)
            made = [
                sqs.create_queues(
                    client,
                    each,
                    visibility_timeout=visibility_timeout,
                    max_receive_count=max_receive_count,
                )
                for each in (name, *(f"{name}-{number}" for number in range(1, queues)))
            ]
            for pair in made:
                stack.callback(client.delete_queue, QueueUrl=pair.url)
                stack.callback(client.delete_queue, QueueUrl=pair.dead_letter_url)
            for database in (name, f"{name}_control"):
                stack.callback(self.mongo.drop_database, database)
            with closing(self.sender(made[0].url)) as sender:
                sender.fill(self._body(candidate, task, name), size)
            proxy = stack.enter_context(self.proxy(delay_ms))
            uri = self.mongo_server.uri(name)
            place = Place(proxy.endpoint_url, made[0], uri, tuple(made[1:]))
            stage = Stage(self, candidate, task, place, proxy, name)
            for _ in range(workers):
                stage.workers.append(stack.enter_context(self.worker(stage)))
            yield stage

    def _body(self, candidate: Candidate, task: str, queue: str) -> Body:
        if candidate.door is None:
            return candidate.body(task, queue)
        made = {door: copies(text) for door, text in self.sent.items()}
        return made.get(candidate.door) or in_turn(list(made.values()))

    @cached_property
    def sent(self) -> dict[str, str]:
        """What stood in a queue after the producer of each door had sent one registration."""
        client, name = self.server.sqs.client(), "bench-doors"
        with closing(client):
            queues = sqs.create_queues(
                client, name, visibility_timeout=VISIBILITY_TIMEOUT, max_receive_count=10
            )
            place = Place(self.server.sqs.endpoint_url, queues, self.mongo_server.uri(name))
            return {door: self._sent_by(door, client, place) for door in DOORS}

    def _sent_by(self, door: str, client: "SQSClient", place: Place) -> str:
        candidate = STOCK_PRODUCER if door == "stock producer" else OURS
        with Process(
            f"the producer of {door}",
            [sys.executable, "-m", "bench.doors", door],
            log=self.logs / f"producer-{next(self._numbers)}.log",
            grace=1,
            environment=self._environment(candidate.environment(place, "register")),
            directory=self.logs,
        ) as producer:
            if producer.wait(FIRST_SECONDS) != 0:
                producer.check()
        url = place.queues.url
        (message,) = client.receive_message(QueueUrl=url, WaitTimeSeconds=5).get("Messages", ())
        client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return message["Body"]

    def sender(self, url: str) -> Sender:
        """Sends to a queue, past the proxy."""
        return Sender(self.server.sqs.port, url)

    @contextmanager
    def worker(self, stage: Stage) -> Iterator[Process]:
        """One worker more on a stage."""
        with Process(
            f"the worker of {stage.candidate.name}",
            stage.candidate.command(),
            log=self.logs / f"worker-{next(self._numbers)}.log",
            # It would wait for its long poll, and nobody needs what it holds.
            grace=0.2,
            environment=self._environment(stage.candidate.environment(stage.place, stage.task)),
            # Away from a `.env`.
            directory=self.logs,
        ) as worker:
            yield worker

    @staticmethod
    def _environment(its_own: dict[str, str]) -> dict[str, str]:
        # Nothing of this user's own: a WORKER_CONCURRENCY would be no default.
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return inherited | its_own | {"PYTHONPATH": str(ROOT)}


@contextmanager
def running(logs: Path, *, with_node: bool = True) -> Iterator[Lab]:
    """A lab, until the end of the block. Without Node, nothing is installed, and the SQS server is
    that of the stack. Raises StackError if a server does not start."""
    why_no_node = node.missing() if with_node else "not wanted"
    with (
        servers.running(logs / "sqs.log", why_no_node) as server,
        mongo.running(data=logs / "mongod", log=logs / "mongod.log") as database,
        Client(database.uri("admin")) as client,
    ):
        yield Lab(server, database, client, logs, why_no_node)
