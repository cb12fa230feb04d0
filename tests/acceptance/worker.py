"""A worker as it is run: the Procfile's command, in a process of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pymongo import MongoClient
from pymongo.database import Database

from devstack import sqs
from devstack.mongo import MongoServer
from devstack.sqs import LARGEST_MESSAGE
from sqs_broker.sqs.requests import Outgoing, packed
from tests.growing import log_lines
from tests.services import Queues, wait_until

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

ROOT = Path(__file__).parents[2]
#: What suits a test: a small pool on a small machine, and a long poll that ends soon, for a worker
#: stops when its last one has.
FOR_TESTS = {"WORKER_CONCURRENCY": "2", "SQS_WAIT_TIME": "1"}
READY_SECONDS = 60
#: Beyond the long poll and the hard time limit that the tests set.
STOP_SECONDS = 30
#: For what a worker does with a message that it can take at once.
SETTLE_SECONDS = 30
#: For a program that sends something.
PROGRAM_SECONDS = 60


def procfile_command(name: str) -> list[str]:
    """A line of the Procfile."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return shlex.split(dict(line.split(": ", 1) for line in lines)[name])


class Program:
    """A line of the Procfile, all its processes in one process group, their output in one file."""

    name: ClassVar[str]

    def __init__(self, environment: Mapping[str, str], directory: Path, *arguments: str) -> None:
        # A directory of its own, for a developer's .env would be read.
        directory.mkdir(parents=True)
        self.log = directory / f"{self.name}.log"
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [*procfile_command(self.name), *arguments],
                # A process that is killed leaves its temporary files.
                env={"TMPDIR": str(directory)} | dict(environment),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the main process, which is the process group's id too."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, condition: Any, seconds: float, what: str) -> Any:
        """The first true value of the condition; fails at once, with the log, if it is gone."""

        def look() -> Any:
            assert self.is_running, f"the {self.name} ended:\n{self.log_text()}"
            return condition()

        try:
            return wait_until(look, seconds, what)
        except TimeoutError as exc:
            raise AssertionError(f"{exc}; the {self.name} said:\n{self.log_text()}") from None

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit status once it ended by itself; negative where a signal ended it."""
        return self._process.wait(seconds)

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Send SIGTERM to the main process, as a process manager does; the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """Kill the worker and its pool at one instant, as a machine that is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: not self.processes(), STOP_SECONDS, "the end of the process group")

    def processes(self) -> list[int]:
        """The ids of all processes in its group, the main one included; zombies do not count."""
        return [pid for pid, _, group in living() if group == self.pid]

    def log_text(self) -> str:
        """All it wrote to stdout and stderr."""
        return self.log.read_text(errors="replace")

    def log_lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The JSON lines of its log; with `event`, those of this event."""
        return log_lines(self.log, event)


class Worker(Program):
    """A worker and its pool."""

    name = "worker"

    def wait_until_ready(self) -> None:
        """Returns once it takes messages."""
        self.wait_for(
            lambda: any(line["message"].endswith(" ready.") for line in self.log_lines()),
            READY_SECONDS,
            "a worker that is ready",
        )

    def pool_pids(self) -> list[int]:
        """The ids of the children of the main process."""
        return [pid for pid, parent, _ in living() if parent == self.pid]


class StartWorker(Protocol):
    """Starts a worker that lives until the end of the test, or shorter.

    `environment` is all it gets; `arguments` are added to the Procfile's command. Returns once
    the worker is ready, or with `ready=False` at once.
    """

    def __call__(
        self, environment: Mapping[str, str], *arguments: str, ready: bool = True
    ) -> Worker: ...


@contextmanager
def workers(directory: Path) -> Iterator[StartWorker]:
    """A function that starts workers, each in a directory of its own below this one.

    At the end their process groups are killed, whatever has happened.
    """
    started: list[Worker] = []

    def start(environment: Mapping[str, str], *arguments: str, ready: bool = True) -> Worker:
        home = directory / f"worker-{uuid.uuid4().hex[:8]}"
        worker = Worker(FOR_TESTS | dict(environment), home, *arguments)
        started.append(worker)
        if ready:
            worker.wait_until_ready()
        return worker

    try:
        yield start
    finally:
        for worker in started:
            worker.kill()
            # pytest shows it where the test failed.
            sys.stdout.write(f"--- {worker.log}\n{worker.log_text()}")


@dataclass(frozen=True)
class Service:
    """A worker, ready, and all it works with."""

    worker: Worker
    queues: Queues
    #: What the worker got, and what a program needs to join in.
    environment: Mapping[str, str]
    database: Database[dict[str, Any]]

    def send(self, body: str, attributes: Mapping[str, Any] | None = None) -> str:
        """Put a message on the queue as any program can; SQS's id of it."""
        sent = self.queues.client.send_message(
            QueueUrl=self.queues.url, MessageBody=body, MessageAttributes=attributes or {}
        )
        return sent["MessageId"]

    def send_many(self, messages: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Put bodies with attributes on the queue, up to ten a call; SQS's id of each."""
        ids: list[str] = []
        for pack in packed([Outgoing(*message) for message in messages], LARGEST_MESSAGE // 2):
            answer = self.queues.client.send_message_batch(
                QueueUrl=self.queues.url,
                Entries=[
                    {
                        "Id": str(place),
                        "MessageBody": message.body,
                        "MessageAttributes": dict(message.attributes),
                    }
                    for place, message in enumerate(pack)
                ],
            )
            sent = {int(each["Id"]): each["MessageId"] for each in answer["Successful"]}
            ids += [sent[place] for place in range(len(pack))]
        return ids

    def user(self, stock_id: str, user_id: str = "u1") -> dict[str, Any]:
        """The stored document of a user, once it is there."""
        key = {"stock_id": stock_id, "user_id": user_id}
        return self.worker.wait_for(
            lambda: self.database["users"].find_one(key), SETTLE_SECONDS, f"the user {key}"
        )

    def settle(self) -> None:
        """Returns once every message is settled."""
        self.worker.wait_for(self.queues.is_empty, SETTLE_SECONDS, "an empty queue")

    def dead_letters(self, mark: str) -> list[dict[str, Any]]:
        """The dead letters whose body holds `mark`."""
        return [letter for letter in self.queues.dead_letters() if mark in letter["Body"]]


@dataclass(frozen=True)
class Place:
    """Queues and a database, and the environment of a process that works with them."""

    queues: Queues
    environment: Mapping[str, str]
    database: Database[dict[str, Any]]


@contextmanager
def place(
    client: "SQSClient",
    endpoint_url: str,
    mongo_server: MongoServer,
    mongo_client: MongoClient[dict[str, Any]],
    home: Path,
    name: str | None = None,
) -> Iterator[Place]:
    """Queues and a database of its own, all gone at the end of the block."""
    name = name or f"test-{uuid.uuid4().hex}"
    pair = sqs.create_queues(client, name, visibility_timeout=60, max_receive_count=10)
    environment = surroundings(home) | {
        "AWS_REGION": sqs.REGION,
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": sqs.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": sqs.ACCESS_KEY,
        "AWS_SQS_QUEUE_URL": pair.url,
        "AWS_SQS_DLQ_URL": pair.dead_letter_url,
        "MONGO_URI": mongo_server.uri(name),
    }
    queues = Queues(client, endpoint_url, pair.url, pair.dead_letter_url)
    with database(mongo_client, name):
        yield Place(queues, environment, mongo_client[name])
    client.delete_queue(QueueUrl=pair.url)
    client.delete_queue(QueueUrl=pair.dead_letter_url)


@contextmanager
def database(mongo_client: MongoClient[dict[str, Any]], name: str | None = None) -> Iterator[str]:
    """The name of a database that is gone, with its control plane, at the end of the block."""
    name = name or f"test-{uuid.uuid4().hex}"
    yield name
    mongo_client.drop_database(name)
    mongo_client.drop_database(f"{name}_control")


def surroundings(home: Path) -> dict[str, str]:
    """The variables of any process of this project."""
    return {
        # The interpreter's own scripts first: `celery` is the one of this environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def serving(where: Place, home: Path, *arguments: str) -> Iterator[Service]:
    """A worker that works there until the end of the block. `arguments` go to its command."""
    with workers(home) as start:
        worker = start(where.environment, *arguments)
        yield Service(worker, where.queues, where.environment, where.database)


def run_program(
    program: str, environment: Mapping[str, str], directory: Path, *arguments: object
) -> Any:
    """Run Python code in a process of its own, warnings as errors; what it printed, as JSON.

    The arguments are what `json.loads(sys.argv[n])` gives.
    """
    ran = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            program,
            *(json.dumps(argument) for argument in arguments),
        ],
        env=dict(environment),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def living() -> Iterator[tuple[int, int, int]]:
    """Each process of this machine that is no zombie: its id, its parent's and its group's."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # "pid (name) state parent group …", and a name may hold anything.
            state, parent, group = stat.read_text().rpartition(")")[2].split()[:3]
            if state not in "ZX":
                yield int(stat.parent.name), int(parent), int(group)
