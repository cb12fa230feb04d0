"""docs/runbooks/: the symptom of each page is produced, and the page's own commands show it and
mend it. What they print is what the page says, or `Runbook.run` fails.

What no command of a page can do, a test does in its place: it lets MongoDB, SQS or a clock be well
again, and corrects what a producer sends.
"""

import json
import os
import signal
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote

import pytest
from pymongo import MongoClient

from devstack.mongo import MongoServer
from devstack.sqs import LARGEST_MESSAGE, SqsServer
from tests.acceptance.test_commands import celery
from tests.acceptance.worker import Place, Service, StartWorker, place, workers
from tests.deployments.deployment import APPLICATION, Deployment
from tests.faults import proxy, tcp
from tests.faults.proxy import EXPIRED, THROTTLED, FaultProxy
from tests.faults.tcp import TcpProxy
from tests.runbooks import Page, Runbook, names
from tests.services import wait_until

# Each test starts a worker and ten or more commands.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

#: Seconds for what a worker does within a few of its checks.
PATIENCE = 90

#: Messages in the first table of the page on depth.
DEPTH = 120

#: Seconds that the clock of SQS is ahead.
SKEW = 30

#: Seconds of a short lease, and of the hard time limit that fits it.
LEASE, LIMIT = 12, 6


@dataclass
class Stage:
    """Queues and a database of its own, both behind proxies."""

    place: Place
    environment: Mapping[str, str]
    sqs: FaultProxy
    mongo: TcpProxy
    start_worker: StartWorker
    home: Path

    def start(self, *, ready: bool = True, **more: str) -> Service:
        """A worker with these variables in addition."""
        environment = {**self.environment, **more}
        worker = self.start_worker(environment, ready=ready)
        return Service(worker, self.place.queues, environment, self.place.database)

    def page(self, name: str, service: Service | None = None, **words: str) -> Runbook:
        """A page, whose commands are typed beside the log of the worker."""
        directory = service.worker.log.parent if service else self.home
        environment = service.environment if service else self.environment
        words = {"QUEUE": self.place.queues.name} | words
        return Runbook(Page(name), environment, directory, words)

    def celery(self, *arguments: str) -> str:
        """What a command of `celery -A app` prints."""
        ran = celery(self.environment, self.home, *arguments)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def bury(self, body: str) -> None:
        """Put a message into the dead-letter queue, as SQS itself does."""
        queues = self.place.queues
        queues.client.send_message(QueueUrl=queues.dead_letter_url, MessageBody=body)


@pytest.fixture
def stage(
    mongo_server: MongoServer, mongo_client: MongoClient, sqs_server: SqsServer, tmp_path: Path
) -> Iterator[Stage]:
    client = sqs_server.client()
    with (
        place(client, sqs_server.endpoint_url, mongo_server, mongo_client, tmp_path) as where,
        proxy.running(sqs_server.endpoint_url) as (sqs, url),
        tcp.running(mongo_server.port) as mongo,
        workers(tmp_path) as start,
    ):
        environment = {
            **where.environment,
            "AWS_ENDPOINT_URL": url,
            # Else the driver would go to the member's own address, past the proxy.
            "MONGO_URI": f"mongodb://{tcp.HOST}:{mongo.port}/{where.database.name}"
            "?directConnection=true",
            "SQS_MAX_MESSAGE_BYTES": str(LARGEST_MESSAGE),
            "WORKER_HEALTH_FILE": str(tmp_path / "health.json"),
        }
        yield Stage(where, environment, sqs, mongo, start, tmp_path)
    client.close()


def registration(id_: str, user: str, nickname: str = "kim", **more: Any) -> str:
    data = {"stockId": "s1", "userId": user, "userInfo": {"nickname": nickname}} | more
    return json.dumps({"id": id_, "action": "registerUser", "data": data})


def wait_for_event(service: Service, event: str, times: int = 1) -> None:
    service.worker.wait_for(
        lambda: len(service.worker.log_lines(event)) >= times, PATIENCE, f"{event} #{times}"
    )


def wait_for_letters(service: Service, count: int) -> None:
    """Until there are so many dead letters, all from a second that is over: a redrive leaves those
    that arrived since it began."""
    service.worker.wait_for(
        lambda: len(service.queues.dead_letters()) == count, PATIENCE, f"{count} dead letters"
    )
    pass_time(2)


def pass_time(seconds: float) -> None:
    end = monotonic() + seconds
    wait_until(lambda: monotonic() > end, seconds + 5, "the time")


def conflict(service: Service, id_: str, user: str) -> None:
    """Let a registration be refused, because the user is registered with another name."""
    service.send(registration(f"first-{user}", user, "lee"))
    service.user("s1", user)
    service.send(registration(id_, user, "kim"))


def test_depth_rising_is_shown_and_mended(stage: Stage) -> None:
    queue = stage.place.queues.name
    stage.celery("sqs", "pause", queue, "--reason", "index is built")
    service = stage.start()
    service.send_many([(registration(f"m-{n}", f"u{n}"), {}) for n in range(DEPTH)])

    page = stage.page("depth-rising", service)
    page.run("Show it")
    assert service.queues.counts() == (DEPTH, 0, 0)
    page.run("Mend it")

    service.settle()
    assert service.database["users"].count_documents({}) == DEPTH


def test_age_rising_is_shown_and_mended(stage: Stage) -> None:
    service = stage.start(SQS_MAX_ATTEMPTS="7")
    refused = {"user_id": {"$not": {"$regex": "^bad"}}}
    service.database.command("collMod", "users", validator=refused, validationAction="error")
    service.send(registration("m-1", "bad"))
    wait_for_event(service, "message.retry")

    page = stage.page("age-rising", service, ID="m-1")
    page.run("Show it")
    service.database.command("collMod", "users", validator={})
    wait_for_event(service, "message.done")
    page.run("Mend it")

    assert service.user("s1", "bad")
    assert service.queues.dead_letters() == []


def test_dead_letters_is_shown_and_mended(stage: Stage) -> None:
    service = stage.start()
    conflict(service, "m-1", "u1")
    conflict(service, "m-2", "u2")
    wait_for_letters(service, 2)

    page = stage.page("dead-letters", service, ID="m-1")
    page.run("Show it")
    # The cause of the first one: somebody else has registered this user by mistake.
    service.database["users"].delete_one({"user_id": "u1"})
    page.run("Mend it")

    assert service.user("s1", "u1")["user_info"]["nickname"] == "kim"
    service.settle()
    assert service.queues.dead_letters() == []
    exported = (page.directory / "letters.jsonl").read_text().splitlines()
    assert ["m-2" in line for line in exported] == [True]


def test_poison_is_shown_and_mended(stage: Stage) -> None:
    service = stage.start()
    service.send(registration("m-1", "u1", stockId=None))
    service.send(registration("m-2", "u2"))
    service.user("s1", "u2")
    wait_for_letters(service, 1)

    page = stage.page("poison", service, ID="m-1")
    page.run("Show it")
    page.run("Mend it", environment={"VISUAL": editor(stage.home, "stockId", "s1")})

    assert service.user("s1", "u1")
    assert service.queues.dead_letters() == []
    assert len(list(page.directory.glob("dead-letter-*.jsonl"))) == 1


def editor(directory: Path, field: str, value: str) -> str:
    """A program that a person could use as an editor: it sets a field of the data."""
    program = directory / "editor"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, sys\n"
        "file = pathlib.Path(sys.argv[-1])\n"
        "body = json.loads(file.read_text())\n"
        f"body['data'][{field!r}] = {value!r}\n"
        "file.write_text(json.dumps(body))\n"
    )
    program.chmod(stat.S_IRWXU)
    return str(program)


def test_lost_leases_is_shown_and_mended(stage: Stage) -> None:
    queues = stage.place.queues
    queues.client.set_queue_attributes(
        QueueUrl=queues.url, Attributes={"VisibilityTimeout": str(LIMIT)}
    )
    service = stage.start(
        SQS_VISIBILITY_TIMEOUT=str(LEASE),
        TASK_TIME_LIMIT=str(LIMIT),
        TASK_SOFT_TIME_LIMIT=str(LIMIT - 1),
    )
    # The machine stands still while a message is in hand, and its lease ends.
    pool = service.worker.pool_pids()
    stop(pool)
    service.send(registration("m-1", "u1"))
    wait_for_event(service, "message.received")
    stop([service.worker.pid])
    pass_time(LEASE + 1)
    for pid in [*pool, service.worker.pid]:
        os.kill(pid, signal.SIGCONT)
    wait_for_event(service, "lease.lost")

    page = stage.page("lost-leases", service)
    page.run("Show it")
    page.run("Mend it")

    assert service.user("s1", "u1")
    service.settle()
    attributes = queues.client.get_queue_attributes(QueueUrl=queues.url, AttributeNames=["All"])
    assert attributes["Attributes"]["VisibilityTimeout"] == str(LEASE)
    assert queues.dead_letters() == []


def stop(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def test_worker_deaf_is_shown_and_mended(stage: Stage) -> None:
    service = stage.start()
    queue = service.queues.name
    stage.celery("control", "cancel_consumer", queue, "--timeout", "5")
    service.send(registration("m-1", "u1"))

    page = stage.page("worker-deaf", service)
    page.run("Show it")
    # A poll that was open may have taken it, and released it again.
    service.worker.wait_for(
        lambda: service.queues.counts() == (1, 0, 0), PATIENCE, "the message in the queue"
    )
    page.run("Mend it")

    assert service.user("s1", "u1")
    service.settle()


def test_database_away_is_shown_and_mended(stage: Stage) -> None:
    service = stage.start()
    stage.mongo.refuse()
    service.send(registration("m-1", "u1"))
    wait_for_event(service, "outage.begins")

    page = stage.page("database-away", service)
    page.run("Show it")
    stage.mongo.heal()
    page.run("Mend it")

    assert service.user("s1", "u1")
    service.settle()
    assert service.queues.dead_letters() == []


def test_duplicates_seen_is_shown_and_mended(stage: Stage) -> None:
    service = stage.start()
    body = registration("m-1", "u1")
    service.send(body)
    service.user("s1")
    service.send(body)
    service.settle()
    for _ in range(2):
        stage.bury(body)
    pass_time(2)

    page = stage.page("duplicates-seen", service, ID="m-1")
    page.run("Show it")
    page.run("Mend it")

    service.settle()
    assert service.database["users"].count_documents({}) == 1
    assert service.queues.dead_letters() == []


def test_credentials_expired_is_shown_and_mended(stage: Stage) -> None:
    service = stage.start()
    for action in ("ReceiveMessage", "GetQueueAttributes"):
        stage.sqs.fail(action, EXPIRED)
    service.send(registration("m-1", "u1"))
    wait_for_event(service, "receive.failed")

    page = stage.page("credentials-expired", service)
    page.run("Show it")
    for action in ("ReceiveMessage", "GetQueueAttributes"):
        stage.sqs.heal(action)
    page.run("Mend it")

    assert service.user("s1", "u1")
    service.settle()


def test_secret_rotated_is_shown_and_mended(stage: Stage, secured: Deployment) -> None:
    name = stage.place.database.name
    for database in (name, f"{name}_control"):
        secured.grant(database)
    old, new = secured.uri(name), "the second p@ssword"
    admin = secured.client().admin
    page = stage.page("secret-rotated")
    admin.command("updateUser", APPLICATION.name, pwd=new)
    try:
        page.run("Show it", environment={"MONGO_URI": old})
        rotated = old.replace(quote(APPLICATION.password, safe=""), quote(new, safe=""))
        page.run("Mend it", environment={"MONGO_URI": rotated})
    finally:
        admin.command("updateUser", APPLICATION.name, pwd=APPLICATION.password)
        for database in (name, f"{name}_control"):
            secured.revoke(database)


def test_throttled_is_shown_and_mended(stage: Stage) -> None:
    service = stage.start()
    stage.sqs.fail("ReceiveMessage", THROTTLED)
    service.send(registration("m-1", "u1"))
    wait_for_event(service, "receive.failed")

    page = stage.page("throttled", service)
    page.run("Show it")
    stage.sqs.heal("ReceiveMessage")
    page.run("Mend it")

    assert service.user("s1", "u1")
    service.settle()


def test_deploy_gone_wrong_is_shown_and_mended(stage: Stage) -> None:
    # Workers of the release from before; its producer has sent what only the new ones know.
    service = stage.start(SQS_UNKNOWN_TASK_GRACE="0")
    unknown = {"id": "m-1", "action": "registerUsr", "data": {}}
    service.send(json.dumps(unknown))
    wait_for_letters(service, 1)

    page = stage.page("deploy-gone-wrong", service, ID="m-1")
    page.run("Show it", environment={"SQS_MAX_RECEIVE_COUNT": "11"})
    service.send(registration("m-2", "u2"))
    page.run("Mend it")

    assert service.user("s1", "u2")
    service.settle()
    assert len(service.queues.dead_letters()) == 1


def test_redrive_gone_wrong_is_shown_and_mended(stage: Stage) -> None:
    service = stage.start()
    conflict(service, "m-1", "u1")
    wait_for_letters(service, 1)
    # Nobody has mended the cause.
    stage.celery("sqs", "dlq", "redrive", "--yes")
    wait_for_event(service, "message.dead-letter", 2)
    wait_for_letters(service, 1)

    page = stage.page("redrive-gone-wrong", service, ID="m-1", UNWANTED="m-9")
    page.run("Show it")
    service.database["users"].delete_one({"user_id": "u1"})
    page.run("Mend it")

    service.send(registration("m-9", "unwanted"))
    wait_for_event(service, "task.revoked")
    assert service.user("s1", "u1")["user_info"]["nickname"] == "kim"
    service.settle()
    assert service.queues.dead_letters() == []
    assert service.database["users"].count_documents({}) == 1


def test_disk_full_is_shown_and_mended(stage: Stage) -> None:
    # Without room a file cannot be made either: the worker knows only that it could not write.
    directory = stage.home / "full"
    service = stage.start(WORKER_HEALTH_FILE=str(directory / "health.json"))
    wait_for_event(service, "health.broken")

    page = stage.page("disk-full", service)
    page.run("Show it")
    service.send(registration("m-1", "u1"))
    assert service.user("s1", "u1")
    directory.mkdir()
    page.run("Mend it")


def test_clock_skew_is_shown_and_mended(stage: Stage) -> None:
    stage.sqs.ahead = SKEW
    service = stage.start()

    page = stage.page("clock-skew", service)
    page.run("Show it")
    stage.sqs.ahead = 0.0
    page.run("Mend it")


def test_the_index_shows_what_happened_and_pauses(stage: Stage) -> None:
    service = stage.start()
    index = stage.page("README", service)
    service.send(registration("m-1", "u1"))
    wait_for_event(service, "message.done")

    looked = index.run("Before you begin")
    assert '"event": "message.done"' in "".join(looked)
    index.run("Stop the work without losing a message")

    service.send(registration("m-2", "u2"))
    assert service.user("s1", "u2")


def test_each_page_is_run() -> None:
    tests = {f"test_{name.replace('-', '_')}_is_shown_and_mended" for name in names()}
    assert tests <= globals().keys()
