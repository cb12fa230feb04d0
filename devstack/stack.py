"""The stack: SQS server, queues, mongod, worker, Flower and the API, each on 127.0.0.1."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.settings import get_settings
from devstack import api, flower, mongo, sqs
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
API_PORT = 8000
QUEUE = "sdc-sqs"
DATABASE = "registrations"
WORKER_START_SECONDS = 60
#: The node name of the worker, beside Celery's default `celery@%h`.
WORKER_NODE = "first@%h"

#: Seconds after WORKER_SHUTDOWN_TIMEOUT until a worker that still runs is killed.
WORKER_STOP_MARGIN = 25
#: Defaults for one machine and one person; the environment overrides them. The long poll is short,
#: because a worker waits for its end when it stops.
WORKER_DEFAULTS = {"WORKER_CONCURRENCY": "2", "SQS_WAIT_TIME": "2"}
#: In seconds. Short, because a person waits for it.
WORKER_SHUTDOWN_TIMEOUT = 10
#: The end of the line that Celery logs when it accepts messages.
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
    api: Process
    queues: QueuePair
    #: The environment variables that a client on this machine needs.
    environment: Mapping[str, str]

    @property
    def _processes(self) -> list[Process]:
        return [self.sqs.process, self.mongo.process, self.worker, self.flower, self.api]

    def check(self) -> None:
        """Raise StackError if a process of the stack has ended."""
        for process in self._processes:
            process.check()


@contextmanager
def running(path: Path, say: Say) -> Iterator[Stack]:
    """A stack with its data in `path`, until the end of the block.

    It calls `say` with a line for each step. The API, the worker and Flower stop first, then the
    servers. Raises StackError if the stack does not start, or if another stack runs in `path`.
    """
    directory = Directory(path)
    with directory.occupied() as lock, ExitStack() as started:
        # The file of a killed stack would send clients to ports that are no longer open.
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
        api_access = api.Access.new(API_PORT)
        environment = _environment(sqs_server, queues, mongo_server)
        environment |= access.environment | api_access.environment
        directory.publish(environment)
        # Started before the worker, because both take a moment.
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
        http = started.enter_context(
            api.running(
                api_access,
                environment=client_environment(environment),
                directory=ROOT,
                log=directory.log("api"),
                keep_open=[lock],
            )
        )
        worker = started.enter_context(_worker(directory, environment, lock))
        say(f"worker       ready, logs to {worker.log}")
        web.wait_until_listening(access.port, flower.START_SECONDS)
        say(f"Flower       {access.url}{_moved(access.port, FLOWER_PORT)}")
        say(f"             login: FLOWER_BASIC_AUTH in {directory.environment_file}")
        http.wait_until_listening(api_access.port, api.START_SECONDS)
        say(f"API          {api_access.url}{_moved(api_access.port, API_PORT)}")
        say(f"             key: API_KEY in {directory.environment_file}")
        try:
            yield Stack(directory, sqs_server, mongo_server, worker, web, http, queues, environment)
        finally:
            say("\nStopping the worker, the API and Flower, then the servers.")


def serve(stack: Stack, until: Callable[[], bool]) -> None:
    """Wait until the condition is true. Raises StackError if a process of the stack ends."""
    while not until():
        stack.check()
        time.sleep(0.5)


def client_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process, with the stack's variables and no other AWS variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # A `.env` may name other queues, which this server does not have.
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
        # boto3 reads this variable.
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
        # Named, so that a second worker with Celery's own name is another node.
        [sys.executable, "-m", "celery", "-A", "app", "worker", "-n", WORKER_NODE],
        log=directory.log("worker"),
        grace=timeout + WORKER_STOP_MARGIN,
        # Celery logs its ready line, which is awaited below, at this level.
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
