"""What is deleted from SQS is in MongoDB and stays there, and no good message is dead-lettered,
whatever happens to MongoDB: deployments, failovers, refusals, rights, topology."""

import json
import os
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from tests.acceptance.worker import StartWorker, Worker
from tests.deployments import deployment
from tests.deployments.deployment import Deployment
from tests.services import Queues, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: Seconds. A run that is stuck in MongoDB takes its timeouts to end.
PATIENCE = 90

#: Seconds for which MongoDB refuses: long enough for each message to fail in every attempt.
REFUSES = 12

#: Soon again, so that three failures would fit into the time that MongoDB refuses.
QUICK = {
    "SQS_BACKOFF_BASE": "0.5",
    "SQS_BACKOFF_MAX": "2",
    "TASK_SOFT_TIME_LIMIT": "8",
    "TASK_TIME_LIMIT": "12",
    "SQS_VISIBILITY_TIMEOUT": "42",
    "MONGO_TRANSACTION_LIFETIME": "5",
}

KEY = [("stock_id", 1), ("user_id", 1)]


class Scene:
    """A worker, its queues, and a deployment of MongoDB that something happens to."""

    def __init__(
        self,
        there: Deployment,
        queues: Queues,
        environment: dict[str, str],
        start: StartWorker,
    ) -> None:
        self.deployment = there
        self.queues = queues
        self.name = f"test_{uuid.uuid4().hex}"
        self._environment = environment
        self._start = start
        self.workers: list[Worker] = []

    def work(self, *arguments: str, uri: str | None = None, **variables: str) -> Worker:
        """Start a worker; its URI has these options."""
        mongo = {"MONGO_URI": uri or self.deployment.uri(self.name)}
        worker = self._start(self._environment | QUICK | mongo | variables, *arguments)
        self.workers.append(worker)
        return worker

    @property
    def database(self) -> Database[dict[str, Any]]:
        return self.deployment.client()[self.name]

    def send(self, *users: str) -> None:
        """A registration of each, and an increment."""
        bodies = [body for user in users for body in (registration(user), increment(user))]
        for start in range(0, len(bodies), 10):
            self.queues.client.send_message_batch(
                QueueUrl=self.queues.url,
                Entries=[
                    {"Id": str(n), "MessageBody": body}
                    for n, body in enumerate(bodies[start : start + 10])
                ],
            )

    def users(self) -> list[str]:
        """The ids of all users that a majority has."""
        found = self.database.get_collection("users", read_concern=ReadConcern("majority"))
        return sorted(user["user_id"] for user in found.find({}, {"user_id": 1}))

    def done(self) -> int:
        return sum(len(worker.log_lines("message.done")) for worker in self.workers)

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for worker in self.workers for line in worker.log_lines(event)]

    def wait_for(self, event: str, seconds: float = PATIENCE) -> dict[str, Any]:
        self.workers[0].wait_for(lambda: self.said(event), seconds, event)
        return self.said(event)[0]

    def wait_until_done(self, *users: str) -> None:
        """Each is a user once and counts once, and nothing is left or dead-lettered."""
        wait_until(self.queues.is_empty, PATIENCE, f"an empty queue, not {self.queues.counts()}")
        assert self.queues.dead_letters() == []
        assert Counter(self.users()) == dict.fromkeys(users, 1)
        counted = sum(part["count"] for part in self.database["counters"].find())
        assert counted == len(users)


def registration(user: str) -> str:
    data = {"stockId": "s1", "userId": user, "userInfo": {"nickname": "kim"}}
    return json.dumps({"id": f"reg-{user}", "action": "registerUser", "data": data})


def increment(user: str) -> str:
    return json.dumps({"id": f"inc-{user}", "action": "increment", "data": {"input": 1}})


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


@pytest.fixture
def scene_of(
    queues: Queues, environment: dict[str, str], start_worker: StartWorker
) -> Callable[[Deployment], Scene]:
    return lambda there: Scene(there, queues, environment, start_worker)


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment.running(tmp_path_factory.mktemp("one")) as made:
        yield made


@pytest.fixture
def whole(one_node: Deployment) -> Iterator[Deployment]:
    """The one node, whole again after each test."""
    yield one_node
    one_node.repair()


# No majority -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"w": 1}, {"w": "majority", "wtimeoutMS": 500}, {"w": 0}, {"journal": False, "w": 1}],
    ids=str,
)
def test_what_only_the_primary_has_is_not_deleted_from_the_queue_and_not_lost(
    three_nodes: Deployment, scene_of: Callable[[Deployment], Scene], options: dict[str, Any]
) -> None:
    scene = scene_of(three_nodes)
    scene.work(uri=three_nodes.uri(scene.name, **options))
    scene.send(*names("before", 10))
    wait_until(lambda: scene.done() == 20, PATIENCE, "all messages done")
    done, primary = scene.done(), three_nodes.wait_for_primary()
    frozen = three_nodes.secondaries
    for member in frozen:
        three_nodes.freeze(member)

    scene.send(*names("x", 20))

    assert "outage" in scene.wait_for("outage.begins")["event"]
    assert scene.done() == done
    three_nodes.kill(primary)
    for member in frozen:
        three_nodes.thaw(member)
    three_nodes.wait_for_primary()
    three_nodes.start(primary)
    scene.wait_until_done(*names("before", 10), *names("x", 20))


def test_with_an_arbiter_nothing_is_acknowledged_while_the_secondary_is_away(
    with_arbiter: Deployment, scene_of: Callable[[Deployment], Scene]
) -> None:
    scene = scene_of(with_arbiter)
    scene.work()
    scene.send("before")
    wait_until(lambda: scene.done() == 2, PATIENCE, "both messages done")
    done, primary = scene.done(), with_arbiter.wait_for_primary()
    (secondary,) = with_arbiter.secondaries
    with_arbiter.kill(secondary)

    scene.send("lost")

    scene.wait_for("outage.begins")
    assert scene.done() == done
    with_arbiter.kill(primary)
    with_arbiter.start(secondary)
    with_arbiter.wait_for_primary()
    with_arbiter.start(primary)
    scene.wait_until_done("before", "lost")


# Failovers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_failovers_and_step_downs_while_messages_flow_lose_and_double_nothing(
    three_nodes: Deployment, scene_of: Callable[[Deployment], Scene], pool: str
) -> None:
    scene = scene_of(three_nodes)
    scene.work("--pool", pool)
    flow = Flow(scene)
    with flow:
        wait_until(lambda: scene.done() >= 20, PATIENCE, "the first messages")
        three_nodes.step_down(5)
        three_nodes.wait_for_primary()
        flow.wait_for_more(20)
        killed = three_nodes.wait_for_primary()
        three_nodes.kill(killed)
        three_nodes.wait_for_primary()
        flow.wait_for_more(20)
        three_nodes.start(killed)
        three_nodes.freeze(frozen := three_nodes.wait_for_primary())
        three_nodes.wait_for_primary()
        flow.wait_for_more(20)
        three_nodes.thaw(frozen)
    scene.wait_until_done(*flow.sent)


class Flow:
    """Messages that keep coming until the end of the block."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent: list[str] = []

    def wait_for_more(self, count: int) -> None:
        """Until so many more messages are done than now."""
        done = self._scene.done()
        wait_until(lambda: self._scene.done() >= done + count, PATIENCE, f"{count} more messages")

    def _run(self) -> None:
        while not self._stopping.wait(0.5):
            users = [f"u{len(self.sent) + n}" for n in range(5)]
            self._scene.send(*users)
            self.sent += users

    def __enter__(self) -> "Flow":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


# Another shape -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_member_that_was_a_standalone_for_a_while_is_found_again(
    whole: Deployment, scene_of: Callable[[Deployment], Scene], pool: str
) -> None:
    scene = scene_of(whole)
    scene.work("--pool", pool, WORKER_CONCURRENCY="4")
    scene.send(*names("before", 40))
    wait_until(scene.queues.is_empty, PATIENCE, "an empty queue")
    whole.stop(0)
    whole.start(0, as_standalone=True)
    scene.send(*names("during", 10))
    scene.wait_for("outage.begins")
    whole.stop(0)
    whole.start(0)
    whole.wait_for_primary()

    scene.send(*names("after", 20))

    scene.wait_until_done(*names("before", 40), *names("during", 10), *names("after", 20))


def test_a_set_that_comes_back_at_another_address_is_found_by_the_uri(
    three_nodes: Deployment, scene_of: Callable[[Deployment], Scene]
) -> None:
    scene = scene_of(three_nodes)
    scene.work()
    scene.send(*names("before", 20))
    wait_until(scene.queues.is_empty, PATIENCE, "an empty queue")

    for member in range(3):
        three_nodes.move(member)
        three_nodes.wait_until_whole()
    scene.send(*names("after", 20))

    scene.wait_until_done(*names("before", 20), *names("after", 20))


# MongoDB answers and takes no writes -------------------------------------------------------------


#: Codes of which each was seen to dead-letter every message; all others are tests/integration's.
CODES = (13, 112, 202, 462, 16500)


@pytest.mark.parametrize("code", CODES)
def test_no_message_pays_for_a_write_that_mongodb_refuses_for_a_while(
    whole: Deployment, scene_of: Callable[[Deployment], Scene], code: int
) -> None:
    scene = scene_of(whole)
    scene.work()
    namespace = f"{scene.name}.users"
    writes = ("insert", "update", "findAndModify")
    with whole.fail_command(*writes, errorCode=code, namespace=namespace):
        scene.send(*names("u", 20))
        scene.wait_for("outage.begins")
        with pytest.raises(TimeoutError):
            wait_until(scene.queues.dead_letters, REFUSES, "a dead letter")

    scene.wait_until_done(*names("u", 20))
    assert len(scene.said("outage.begins")) == len(scene.said("outage.ends")) == 1


def test_no_message_pays_for_writes_that_are_blocked(
    whole: Deployment, scene_of: Callable[[Deployment], Scene]
) -> None:
    scene = scene_of(whole)
    scene.work()
    whole.block_writes()
    scene.send(*names("u", 20))
    assert "371" in scene.wait_for("outage.begins")["error"]
    with pytest.raises(TimeoutError):
        wait_until(scene.queues.dead_letters, REFUSES, "a dead letter")

    whole.block_writes(False)

    scene.wait_until_done(*names("u", 20))


def test_no_message_pays_for_rights_that_are_revoked(
    secured: Deployment, scene_of: Callable[[Deployment], Scene]
) -> None:
    scene = scene_of(secured)
    for database in (scene.name, f"{scene.name}_control"):
        secured.grant(database)
    scene.work()
    scene.send(*names("before", 10))
    wait_until(scene.queues.is_empty, PATIENCE, "an empty queue")
    secured.revoke(scene.name)
    scene.send(*names("u", 20))
    assert "13" in scene.wait_for("outage.begins")["error"]
    with pytest.raises(TimeoutError):
        wait_until(scene.queues.dead_letters, REFUSES, "a dead letter")

    secured.grant(scene.name)

    scene.wait_until_done(*names("before", 10), *names("u", 20))


def test_one_message_that_mongodb_refuses_pauses_nobody_and_its_dead_letter_has_the_code(
    whole: Deployment, scene_of: Callable[[Deployment], Scene]
) -> None:
    scene = scene_of(whole)
    scene.work()
    scene.send("first")
    wait_until(scene.queues.is_empty, PATIENCE, "an empty queue")
    scene.database.command("collMod", "users", validator={"user_id": {"$ne": "odd"}})

    scene.queues.client.send_message(QueueUrl=scene.queues.url, MessageBody=registration("odd"))
    scene.send(*names("u", 20))

    wait_until(scene.queues.is_empty, PATIENCE, "an empty queue")
    assert scene.users() == sorted(["first", *names("u", 20)])
    (letter,) = scene.queues.dead_letters()
    note = json.loads(letter["MessageAttributes"]["dead-letter"]["StringValue"])
    assert "(121)" in note["reason"]
    assert scene.said("outage.begins") == []


# `users` changes while a worker runs -------------------------------------------------------------


def test_without_its_index_registration_pauses_and_with_it_goes_on(
    whole: Deployment, scene_of: Callable[[Deployment], Scene]
) -> None:
    scene = scene_of(whole)
    scene.work()
    scene.work()
    scene.send("first")
    wait_until(scene.queues.is_empty, PATIENCE, "an empty queue")

    scene.database["users"].drop_index("stock_id_user_id")
    for _ in range(3):
        scene.send(*names("u", 10))

    assert "stock_id_user_id" in scene.wait_for("outage.begins")["error"]
    assert scene.users() == ["first"]
    scene.database["users"].create_index(KEY, name="stock_id_user_id", unique=True)
    scene.wait_until_done("first", *names("u", 10))


@pytest.mark.parametrize("change", ["ttl", "unique"])
def test_an_index_that_could_cost_a_user_is_noticed_while_nothing_is_written(
    whole: Deployment, scene_of: Callable[[Deployment], Scene], change: str
) -> None:
    scene = scene_of(whole)
    scene.work()
    options = {"ttl": {"expireAfterSeconds": 3600}, "unique": {"unique": True}}[change]

    scene.database["users"].create_index("last_activity_time", name="mine", **options)

    assert "users.mine" in scene.wait_for("outage.begins")["error"]
    scene.database["users"].drop_index("mine")
    scene.wait_for("outage.ends")


# Connections -------------------------------------------------------------------------------------


def test_at_the_servers_limit_of_connections_no_message_pays_and_the_worker_is_not_stuck(
    tmp_path_factory: pytest.TempPathFactory, scene_of: Callable[[Deployment], Scene]
) -> None:
    directory = tmp_path_factory.mktemp("limit")
    with deployment.running(directory, arguments=("--maxConns", "60")) as there:
        scene = scene_of(there)
        worker = scene.work(WORKER_CONCURRENCY="2")
        scene.send(*names("before", 40))
        wait_until(scene.queues.is_empty, PATIENCE, "an empty queue")
        hogs = list(take_all_connections(there))
        # A process that comes in its place finds no connection.
        os.kill(min(worker.pool_pids()), signal.SIGKILL)
        scene.send(*names("u", 20))
        with pytest.raises(TimeoutError):
            wait_until(scene.queues.dead_letters, REFUSES, "a dead letter")
        for hog in hogs:
            hog.close()

        scene.wait_until_done(*names("before", 40), *names("u", 20))


def take_all_connections(there: Deployment) -> Iterator[MongoClient[dict[str, Any]]]:
    """Clients that keep every connection that was left."""
    host = there.members[0].host
    with suppress(PyMongoError):
        while True:
            client = MongoClient[dict[str, Any]](
                host, directConnection=True, serverSelectionTimeoutMS=1_000
            )
            yield client
            client.admin.command("ping")
