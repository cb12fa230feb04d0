"""The servers: SQS, a MongoDB that can be taken away, and a proxy before each."""

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database

from devstack import mongo, sqs
from tests.acceptance.worker import living
from tests.chaos.plan import POOLS, PRODUCER, VISIBILITY
from tests.faults import proxy, tcp
from tests.faults.proxy import FaultProxy
from tests.faults.tcp import TcpProxy
from tests.services import Queues

#: Deliveries that SQS allows: what a run does to a message may not use them up.
MOST_RECEIVES = 1_000

#: Seconds for which MongoDB keeps the locks of a process that was killed in a transaction.
LOCKS = 5

#: Milliseconds of a write that is slow: the fleet is to be about as fast as its messages come.
SLOW = 100

#: Milliseconds after which our own looks into MongoDB give up.
LOOK = 2_000


@dataclass
class Mongo:
    """A mongod, started again where it was."""

    directory: Path
    slow_commands: tuple[str, ...]
    """Those that take SLOW milliseconds, so that tasks take time and messages wait for them."""
    port: int | None = None
    _running: ExitStack = field(default_factory=ExitStack)
    _guard: int = 0

    def start(self) -> None:
        """Start it, on the port of the first time."""
        server = self._running.enter_context(
            mongo.running(
                data=self.directory / "mongo",
                log=self.directory / "mongod.log",
                port=self.port,
                test_commands=True,
            )
        )
        self.port, self._guard = server.port, server.process.guard_pid
        with MongoClient[dict[str, Any]]("127.0.0.1", self.port, directConnection=True) as client:
            client.admin.command("setParameter", 1, transactionLifetimeLimitSeconds=LOCKS)
            data = {
                "failCommands": self.slow_commands,
                "blockConnection": True,
                "blockTimeMS": SLOW,
            }
            client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)

    def stop(self) -> None:
        """Shut it down."""
        self._running.close()

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the server itself."""
        (pid,) = (pid for pid, parent, _ in living() if parent == self._guard)
        os.kill(pid, number)


@dataclass(frozen=True)
class Stage:
    """Where a run takes place."""

    queues: Queues
    proxies: list[FaultProxy]
    """Before SQS: one for each worker, and one for whoever sends."""
    mongo: Mongo
    mongo_proxy: TcpProxy
    database: Database[dict[str, Any]]
    """Looked at past the proxy."""
    directory: Path

    @property
    def mongo_uri(self) -> str:
        # A client that learns of the replica set would go past the proxy.
        return (
            f"mongodb://{tcp.HOST}:{self.mongo_proxy.port}/{self.database.name}"
            "?directConnection=true&serverSelectionTimeoutMS=1500&timeoutMS=2500"
        )

    @property
    def producer(self) -> FaultProxy:
        return self.proxies[PRODUCER]


@contextmanager
def standing(directory: Path, slow_commands: tuple[str, ...]) -> Iterator[Stage]:
    """All of it until the end of the block."""
    with ExitStack() as stack:
        server = stack.enter_context(sqs.running(log=directory / "roto.log"))
        client = stack.enter_context(_closing(server.client()))
        name = f"chaos-{uuid.uuid4().hex[:8]}"
        pair = sqs.create_queues(
            client, name, visibility_timeout=VISIBILITY, max_receive_count=MOST_RECEIVES
        )
        queues = Queues(client, server.endpoint_url, pair.url, pair.dead_letter_url)
        proxies = [
            stack.enter_context(proxy.running(server.endpoint_url))[0] for _ in (*POOLS, PRODUCER)
        ]
        database_server = Mongo(directory, slow_commands)
        database_server.start()
        stack.callback(database_server.stop)
        assert database_server.port is not None
        way = stack.enter_context(tcp.running(database_server.port))
        look = stack.enter_context(
            MongoClient[dict[str, Any]](
                "127.0.0.1",
                database_server.port,
                directConnection=True,
                serverSelectionTimeoutMS=LOOK,
                timeoutMS=LOOK,
                tz_aware=True,
            )
        )
        yield Stage(queues, proxies, database_server, way, look[name], directory)


@contextmanager
def _closing(client: Any) -> Iterator[Any]:
    yield client
    client.close()
