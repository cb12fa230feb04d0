"""The servers: SQS, a replica set of three MongoDB members, and a proxy before each."""

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo.database import Database
from pymongo.read_concern import ReadConcern

from devstack import sqs
from tests.chaos.plan import POOLS, PRODUCER, VISIBILITY
from tests.deployments import deployment
from tests.deployments.deployment import Deployment
from tests.faults import proxy, tcp
from tests.faults.proxy import FaultProxy
from tests.faults.tcp import TcpProxy
from tests.services import Queues

#: Deliveries that SQS allows: what a run does to a message may not use them up.
MOST_RECEIVES = 1_000

#: Members of the replica set.
MEMBERS = 3

#: Seconds for which MongoDB keeps the locks of a process that was killed in a transaction.
LOCKS = 5

#: Milliseconds of a write that is slow: the fleet is to be about as fast as its messages come.
SLOW = 100

#: Of the fleet's clients. They hear of a MongoDB that is away within a task's time limits.
TIMEOUTS = {"serverSelectionTimeoutMS": 1_500, "timeoutMS": 2_500}


@dataclass(frozen=True)
class Stage:
    """Where a run takes place."""

    queues: Queues
    proxies: list[FaultProxy]
    """Before SQS: one for each worker, and one for whoever sends."""
    mongo: Deployment
    mongo_proxies: list[TcpProxy]
    """Before the members: the fleet comes through them, the members and the run itself do not."""
    database_name: str
    directory: Path

    @property
    def database(self) -> Database[dict[str, Any]]:
        """As a majority has it."""
        client = self.mongo.client()
        return client.get_database(self.database_name, read_concern=ReadConcern("majority"))

    def mongo_uri(self, **options: object) -> str:
        """For the fleet's user, who may write in this database and in that of the control plane."""
        return self.mongo.uri(self.database_name, **TIMEOUTS, **options)

    @property
    def databases(self) -> tuple[str, str]:
        """Those that the fleet's user may write in."""
        return self.database_name, f"{self.database_name}_control"

    @property
    def producer(self) -> FaultProxy:
        return self.proxies[PRODUCER]


@contextmanager
def standing(directory: Path, slow_commands: tuple[str, ...]) -> Iterator[Stage]:
    """All of it until the end of the block. `slow_commands` of MongoDB take SLOW milliseconds, so
    that tasks take time and messages wait for them."""
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
        ways: list[TcpProxy] = []

        def front(port: int) -> int:
            ways.append(stack.enter_context(tcp.running(port)))
            return ways[-1].port

        mongo = stack.enter_context(
            deployment.running(
                directory,
                front=front,
                members=MEMBERS,
                authentication=True,
                tls=True,
                arguments=_arguments(slow_commands),
            )
        )
        # A server whose defaults acknowledge what a failover may undo, as one with an arbiter has.
        mongo.client().admin.command("setDefaultRWConcern", defaultWriteConcern={"w": 1})
        stage = Stage(queues, proxies, mongo, ways, name, directory)
        for each in stage.databases:
            mongo.grant(each)
        yield stage


def _arguments(slow_commands: tuple[str, ...]) -> tuple[str, ...]:
    """Of each member, so that one which is started again is as slow."""
    data = {"failCommands": slow_commands, "blockConnection": True, "blockTimeMS": SLOW}
    fail_point = json.dumps({"mode": "alwaysOn", "data": data})
    return (
        *("--setParameter", f"failpoint.failCommand={fail_point}"),
        *("--setParameter", f"transactionLifetimeLimitSeconds={LOCKS}"),
    )


@contextmanager
def _closing(client: Any) -> Iterator[Any]:
    yield client
    client.close()
