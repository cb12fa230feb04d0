"""MongoDB goes away and comes back while messages flow through three workers."""

import json
import os
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import AutoReconnect

from devstack import sqs
from devstack.mongo import MongoServer
from devstack.sqs import SqsServer
from tests.acceptance.worker import ROOT, Worker, workers
from tests.faults import tcp
from tests.faults.tcp import TcpProxy
from tests.services import Queues, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

POOLS = ("prefork", "prefork", "threads")

#: Seconds. A run that is stuck in MongoDB takes its timeouts to end.
PATIENCE = 90

#: Seconds from MongoDB's return to the worker's.
RESUME = 10

#: Seconds for which MongoDB keeps the locks of a transaction that was cut off.
LOCKS = 5

#: Messages that nobody takes in an outage: those of a few seconds.
PILE = 8

#: Seconds between two batches of messages. So few that no window is full: then each worker has a
#: poll open when its pause begins.
SEND_EVERY = 1


class Fleet:
    """Three workers with one queue and one database, behind a proxy."""

    def __init__(self, queues: Queues, database: Database[Any], started: list[Worker]) -> None:
        self.queues = queues
        self.database = database
        self.workers = started
        self.sent = 0

    def send(self) -> None:
        """A registration and an increment, with ids of their own."""
        number, self.sent = self.sent, self.sent + 1
        increment = {"id": f"inc-{number}", "action": "increment", "data": {"input": 1}}
        bodies = [registration(number), increment]
        self.queues.client.send_message_batch(
            QueueUrl=self.queues.url,
            Entries=[{"Id": str(n), "MessageBody": json.dumps(b)} for n, b in enumerate(bodies)],
        )

    @contextmanager
    def flow(self) -> Iterator[None]:
        """Messages keep coming until the end of the block."""
        stopping = threading.Event()

        def run() -> None:
            while not stopping.wait(SEND_EVERY):
                self.send()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()

    def lines(self, worker: Worker, *events: str) -> list[dict[str, Any]]:
        return [line for line in worker.log_lines() if line["event"] in events]

    def wait_for(self, event: str, times: int, seconds: float) -> None:
        """Until each worker has said this so often."""
        for worker in self.workers:
            worker.wait_for(
                lambda w=worker: len(self.lines(w, event)) >= times, seconds, f"{event} #{times}"
            )

    def wait_until_all_is_done(self) -> None:
        """Each message counts once, and none is left."""
        wait_until(lambda: self.done() == (self.sent, self.sent), PATIENCE, f"{self.sent} of each")
        wait_until(self.queues.is_empty, PATIENCE, "an empty queue")
        assert self.queues.dead_letters() == []

    def done(self) -> tuple[int, int]:
        """Users, and increments."""
        counted = sum(part["count"] for part in self.database["counters"].find())
        return self.database["users"].count_documents({}), counted


def registration(number: int) -> dict[str, Any]:
    data = {"stockId": "s1", "userId": f"u{number}", "userInfo": {"nickname": f"n{number}"}}
    return {"id": f"reg-{number}", "action": "registerUser", "data": data}


@pytest.fixture(scope="module")
def faults(mongo_server: MongoServer) -> Iterator[TcpProxy]:
    with tcp.running(mongo_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def fleet(
    mongo_client: MongoClient[Any],
    sqs_server: SqsServer,
    faults: TcpProxy,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    """One fleet for all outages: each finds it as the one before has left it."""
    home = tmp_path_factory.mktemp("outage")
    name = f"test-{uuid.uuid4().hex}"
    client = sqs_server.client()
    pair = sqs.create_queues(client, name, visibility_timeout=60, max_receive_count=10)
    environment = {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "AWS_REGION": sqs.REGION,
        "AWS_ENDPOINT_URL": sqs_server.endpoint_url,
        "AWS_ACCESS_KEY_ID": sqs.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": sqs.ACCESS_KEY,
        "AWS_SQS_QUEUE_URL": pair.url,
        "AWS_SQS_DLQ_URL": pair.dead_letter_url,
        "SQS_WAIT_TIME": "4",
        "MONGO_TRANSACTION_LIFETIME": str(LOCKS),
        # Else the driver would go to the member's own address, past the proxy.
        "MONGO_URI": f"mongodb://{tcp.HOST}:{faults.port}/{name}?directConnection=true",
    }
    queues = Queues(client, sqs_server.endpoint_url, pair.url, pair.dead_letter_url)
    lifetime = mongo_client.admin.command("getParameter", 1, transactionLifetimeLimitSeconds=1)
    keep_locks(mongo_client, LOCKS)
    with workers(home) as start:
        started = [
            start(environment, "-P", pool, "-n", f"w{number}@%h", ready=False)
            for number, pool in enumerate(POOLS)
        ]
        for worker in started:
            worker.wait_until_ready()
        yield Fleet(queues, mongo_client[name], started)
    keep_locks(mongo_client, lifetime["transactionLifetimeLimitSeconds"])
    mongo_client.drop_database(name)
    client.delete_queue(QueueUrl=pair.url)
    client.delete_queue(QueueUrl=pair.dead_letter_url)
    client.close()


def keep_locks(mongo_client: MongoClient[Any], seconds: int) -> None:
    mongo_client.admin.command("setParameter", 1, transactionLifetimeLimitSeconds=seconds)


def step_down(mongo_client: MongoClient[Any], seconds: int) -> None:
    """There is no primary for so many seconds."""
    with suppress(AutoReconnect):  # It closes connections.
        mongo_client.admin.command("replSetStepDown", seconds, force=True)


def wait_for_primary(mongo_client: MongoClient[Any]) -> None:
    def is_primary() -> bool:
        try:
            return bool(mongo_client.admin.command("hello")["isWritablePrimary"])
        except AutoReconnect:
            return False

    wait_until(is_primary, PATIENCE, "a primary")


@pytest.mark.parametrize("kind", ["refused", "packets dropped", "stepped down"])
def test_an_outage_of_mongodb_costs_no_message_and_one_delivery_a_worker(
    fleet: Fleet, faults: TcpProxy, mongo_client: MongoClient[Any], kind: str
) -> None:
    outages = len(fleet.lines(fleet.workers[0], "outage.begins"))
    logged = [len(worker.log_lines()) for worker in fleet.workers]
    with fleet.flow():
        wait_until(lambda: fleet.done()[0], PATIENCE, "the first users")
        {"refused": faults.refuse, "packets dropped": faults.swallow}.get(
            kind, lambda: step_down(mongo_client, 20)
        )()
        fleet.wait_for("outage.begins", outages + 1, PATIENCE)
        # Nobody takes what is sent meanwhile.
        wait_until(lambda: fleet.queues.counts()[0] >= PILE, PATIENCE, "a pile of messages")
        if kind == "stepped down":
            wait_for_primary(mongo_client)
        faults.heal()
        back_at = datetime.now(UTC)
        fleet.wait_for("outage.ends", outages + 1, PATIENCE)
    fleet.wait_until_all_is_done()

    handed_back = 0
    for worker, before in zip(fleet.workers, logged, strict=True):
        lines = worker.log_lines()[before:]
        begun, ended = (
            [line for line in lines if line["event"] == event]
            for event in ("outage.begins", "outage.ends")
        )
        assert (len(begun), len(ended)) == (1, 1)
        took = (datetime.fromisoformat(ended[0]["time"]) - back_at).total_seconds()
        assert took < RESUME
        # Every delivery that came to nothing.
        spent = Counter(
            line["sqs_message_id"]
            for line in lines
            if line["event"] in ("message.released", "message.retry", "lease.lost")
        )
        assert set(spent.values()) <= {1}
        handed_back += len(spent)
    assert handed_back
