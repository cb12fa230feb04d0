"""The stack: SQS server, queues, mongod, worker and Flower, each on 127.0.0.1."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.settings import get_settings
from devstack import flower, mongo, sqs
from devstack.directory import Directory
from devstack.errors import StackError
from devstack.mongo import MongoServer
from devstack.process import Process
from devstack.sqs import QueuePair, SqsServer
from devstack.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
SQS_PORT = 9324
MONGO_PORT = 27017
FLOWER_PORT = 5555
QUEUE = "sdc-sqs"
DATABASE = "registrations"
WORKER_START_SECONDS = 60
#: Beyond WORKER_SHUTDOWN_TIMEOUT, before a worker that still does not end is killed.
WORKER_STOP_MARGIN = 25
#: For one machine and one person, unless the environment says otherwise. A worker that stops waits
#: for the end of its long poll, and of its tasks.
WORKER_DEFAULTS = {"WORKER_CONCURRENCY": "2", "SQS_WAIT_TIME": "2"}
#: Seconds, for a person who waits for it.
WORKER_SHUTDOWN_TIMEOUT = 10
#: What Celery logs once it takes messages.
WORKER_READY = " ready."

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stack:
    """A running stack."""

    directory: Directory
    sqs: SqsServer
    mongo: MongoServer
    worker: Process
    flower: Process
    queues: QueuePair
    #: What a client on this machine needs, by name of the environment variable.
    environment: Mapping[str, str]

    def check(self) -> None:
        """Raises StackError if one of its processes ended."""
        for process in (self.sqs.process, self.mongo.process, self.worker, self.flower):
            process.check()


@contextmanager
def running(path: Path, say: Say) -> Iterator[Stack]:
    """A stack with its data under `path`, until the end of the block.

    `say` is told of each step. Worker and Flower stop first, the servers after them. Raises
    StackError if it does not start, or if another stack runs there.
    """
    directory = Directory(path)
    with directory.occupied() as lock, ExitStack() as started:
        # What a killed stack left would send clients to ports where it listens no more.
        directory.environment_file.unlink(missing_ok=True)

        sqs_server = started.enter_context(
            sqs.running(
                data=directory.queues, log=directory.log("sqs"), port=SQS_PORT, keep_open=[lock]
            )
        )
        say(f"SQS server   {sqs_server.endpoint_url}{_moved(sqs_server.port, SQS_PORT)}")
        queues = _create_queues(sqs_server)
        say(f"queues       {QUEUE}, {QUEUE}-dlq")

        mongo_server = started.enter_context(
            mongo.running(
                data=directory.database,
                log=directory.log("mongod"),
                port=MONGO_PORT,
                keep_open=[lock],
            )
        )
        say(f"MongoDB      {mongo_server.uri(DATABASE)}{_moved(mongo_server.port, MONGO_PORT)}")

        access = flower.Access.new(FLOWER_PORT)
        environment = _environment(sqs_server, queues, mongo_server) | access.environment
        directory.publish(environment)
        # Beside the worker, for both take a moment to start.
        web = started.enter_context(
            flower.running(
                access,
                environment=client_environment(environment),
                directory=ROOT,
                state=directory.path / "flower.db",
                log=directory.log("flower"),
                keep_open=[lock],
            )
        )
        worker = started.enter_context(_worker(directory, environment, lock))
        say(f"worker       ready, logs to {worker.log}")
        flower.wait_until_listening(web, access)
        say(f"Flower       {access.url}{_moved(access.port, FLOWER_PORT)}")
        say(f"             login: FLOWER_BASIC_AUTH in {directory.environment_file}")
        try:
            yield Stack(directory, sqs_server, mongo_server, worker, web, queues, environment)
        finally:
            say("\nStopping: worker and Flower first, the servers after them.")


def serve(stack: Stack, until: Callable[[], bool]) -> None:
    """Returns once the condition holds. Raises StackError if one of the stack's processes ends."""
    while not until():
        stack.check()
        time.sleep(0.5)


def client_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process with the stack's own in it, and no other AWS."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # Queues of another place, which a `.env` may name, are not on this server.
    return {**inherited, **environment, "SQS_QUEUES": "{}"}


def _moved(port: int, preferred: int) -> str:
    return "" if port == preferred else f"  (port {preferred} is busy, so it listens on {port})"


def _create_queues(server: SqsServer) -> QueuePair:
    settings = get_settings()
    client = server.client()
    try:
        return sqs.create_queues(
            client,
            QUEUE,
            visibility_timeout=settings.visibility_timeout,
            max_receive_count=settings.sqs_max_receive_count,
        )
    finally:
        client.close()


def _environment(sqs_server: SqsServer, queues: QueuePair, server: MongoServer) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": sqs_server.endpoint_url,
        "AWS_REGION": sqs.REGION,
        # The one that boto3 reads.
        "AWS_DEFAULT_REGION": sqs.REGION,
        "AWS_ACCESS_KEY_ID": sqs.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": sqs.ACCESS_KEY,
        "AWS_SQS_QUEUE_URL": queues.url,
        "AWS_SQS_DLQ_URL": queues.dead_letter_url,
        "SQS_MAX_MESSAGE_BYTES": str(sqs.LARGEST_MESSAGE),
        "MONGO_URI": server.uri(DATABASE),
    }


def _shutdown_timeout() -> int:
    settings = get_settings()
    is_set = "worker_shutdown_timeout" in settings.model_fields_set
    return settings.worker_shutdown_timeout if is_set else WORKER_SHUTDOWN_TIMEOUT


@contextmanager
def _worker(directory: Directory, environment: Mapping[str, str], lock: int) -> Iterator[Process]:
    inherited = WORKER_DEFAULTS | client_environment(environment)
    timeout = _shutdown_timeout()
    with Process(
        "the worker",
        [sys.executable, "-m", "celery", "-A", "app", "worker"],
        log=directory.log("worker"),
        grace=timeout + WORKER_STOP_MARGIN,
        # Its ready line, which is waited for, is of this level.
        environment=inherited | {"LOG_LEVEL": "INFO", "WORKER_SHUTDOWN_TIMEOUT": str(timeout)},
        directory=ROOT,
        keep_open=[lock],
    ) as worker:

        def is_ready() -> bool:
            worker.check()
            return WORKER_READY in worker.log.read_text(errors="replace")

        try:
            wait_until(is_ready, WORKER_START_SECONDS, "a worker that is ready")
        except TimeoutError as exc:
            raise StackError(f"{exc} (log: {worker.log})") from None
        yield worker
