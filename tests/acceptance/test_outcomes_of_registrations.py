"""What became of each registration with an id of the HTTP API, as a real worker keeps it."""

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from app.outcomes.reader import Outcome, Outcomes
from app.settings import get_settings
from tests.acceptance.worker import (
    SETTLE_SECONDS,
    Place,
    Service,
    StartWorker,
    run_program,
)
from tests.services import wait_until

pytestmark = pytest.mark.slow

SEND_EXPIRED = """
import json, sys
from datetime import UTC, datetime, timedelta
from app.tasks import register_user
past = datetime.now(UTC) - timedelta(seconds=5)
id_, user = map(json.loads, sys.argv[1:])
register_user.apply_async(kwargs=user, task_id=id_, expires=past)
print("null")
"""


@pytest.fixture(autouse=True)
def _settings(where: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGO_URI", where.environment["MONGO_URI"])
    get_settings.cache_clear()


def new_id() -> str:
    return (uuid.uuid4().hex * 2)[:40]


def body(id_: str, user_id: str, nickname: str = "Ann", **data: Any) -> str:
    data = {"stockId": "s1", "userId": user_id, "userInfo": {"nickname": nickname}} | data
    return json.dumps({"id": id_, "action": "registerUser", "data": data})


def state(where: Place | Service, id_: str) -> Outcome | None:
    async def read() -> Outcome | None:
        outcomes = Outcomes(where.environment["MONGO_URI"])
        try:
            return await outcomes.state(id_)
        finally:
            await outcomes.close()

    return asyncio.run(read())


def until(where: Place | Service, id_: str, wanted: str) -> Outcome:
    """What is known of it, once it has this state."""

    def look() -> Outcome | None:
        found = state(where, id_)
        return found if found is not None and found.state == wanted else None

    return wait_until(look, SETTLE_SECONDS, f"the state {wanted}")


def redrive(id_: str, environment: Mapping[str, str], directory: Path) -> None:
    command = [sys.executable, "-m", "celery", "-A", "app", "sqs", "dlq", "redrive"]

    def is_redriven() -> bool:
        ran = subprocess.run(
            [*command, "--yes", "--id", id_],
            env=dict(environment),
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return "redriven" in ran.stdout

    # A message of the second in which it starts is not redriven.
    wait_until(is_redriven, SETTLE_SECONDS, "the redrive")


@pytest.mark.contract
def test_each_end_of_a_registration_appears_with_its_time(service: Service, tmp_path: Path) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    good, late, bad, old = (new_id() for _ in range(4))
    user = f"u{good[:8]}"
    service.send(body(good, user))
    registered = until(service, good, "registered")
    service.send(body(late, user, "Bob"))
    service.send(body(bad, f"b{user}", index=-1))
    data = {"stock_id": "s1", "user_id": f"e{user}", "user_info": {"nickname": "Eve"}}
    run_program(SEND_EXPIRED, service.environment, tmp_path, old, data)

    conflict = until(service, late, "conflict")
    failed = until(service, bad, "failed")
    expired = until(service, old, "expired")

    reasons = {
        json.loads(letter["Body"])["id"]: letter["MessageAttributes"]
        for letter in service.queues.dead_letters()
        if letter["Body"].startswith("{")
    }
    assert conflict.reason in str(reasons[late])
    assert failed.reason in str(reasons[bad])
    assert "Bob" not in str((conflict, failed))
    assert registered.user is not None
    assert (registered.user["userId"], registered.user["userInfo"]["nickname"]) == (user, "Ann")
    for each in (registered, conflict, failed, expired):
        assert began < each.at < datetime.now(UTC) + timedelta(seconds=1)


@pytest.mark.contract
def test_a_repeat_changes_nothing_and_another_payload_is_listed(service: Service) -> None:
    id_ = new_id()
    user = f"u{id_[:8]}"
    service.send(body(id_, user))
    first = until(service, id_, "registered")
    service.send(body(id_, user))
    service.send(body(id_, user, "Bob"))
    service.settle()

    def listed() -> Outcome | None:
        found = state(service, id_)
        return found if found is not None and found.conflicts else None

    found = wait_until(listed, SETTLE_SECONDS, "a listed conflict")
    assert (found.state, found.at, found.user) == ("registered", first.at, first.user)
    assert len(found.conflicts) == 1


@pytest.mark.contract
def test_other_messages_leave_no_outcome(service: Service) -> None:
    before = service.database["outcomes"].count_documents({})
    for id_ in ("plain-1", str(uuid.uuid4())):
        service.send(body(id_, f"p{id_}"))
        service.user("s1", f"p{id_}")
    count = {"id": new_id(), "action": "increment", "data": {"input": 1}}
    service.send(json.dumps(count))
    marker = new_id()
    service.send(body(marker, f"m{marker[:8]}"))
    until(service, marker, "registered")
    service.settle()
    assert service.database["outcomes"].count_documents({}) == before + 1


@pytest.mark.contract
def test_a_redriven_registration_is_pending_and_then_registered(
    service: Service, tmp_path: Path
) -> None:
    first, second = new_id(), new_id()
    user = f"r{first[:8]}"
    service.send(body(first, user))
    until(service, first, "registered")
    service.send(body(second, user, "Bad"))
    until(service, second, "conflict")

    # It fails for a while, then it succeeds.
    service.database["users"].delete_one({"user_id": user})
    refuse = {"user_info.nickname": {"$ne": "Bad"}}
    service.database.command("collMod", "users", validator=refuse)
    try:
        # It may fail for good before the command has ended, so nothing waits for that.
        with ThreadPoolExecutor(1) as redriving:
            redriven = redriving.submit(redrive, second, service.environment, tmp_path)
            assert until(service, second, "pending").reason is None
            service.database.command("collMod", "users", validator={})
        redriven.result()
    finally:
        service.database.command("collMod", "users", validator={})
    registered = until(service, second, "registered")
    assert registered.user is not None
    assert registered.user["userInfo"]["nickname"] == "Bad"


def test_a_redriven_registration_is_pending_before_a_worker_has_received_it(
    own: Place, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(own.environment)
    id_ = new_id()
    queues = own.queues
    queues.client.send_message(QueueUrl=queues.url, MessageBody=body(id_, "gone", index=-1))
    until(own, id_, "failed")
    assert worker.stop() == 0
    # Clocks may differ: only what is seconds old is certainly of the delivery before.
    earlier = datetime.now(UTC) - timedelta(minutes=1)
    own.database["outcomes"].update_one({"_id": id_}, {"$set": {"at": earlier}})

    redrive(id_, own.environment, tmp_path)

    found = state(own, id_)
    assert found is not None
    assert (found.state, found.reason) == ("pending", None)


def test_the_last_outcome_before_a_stop_is_kept(
    own: Place, start_worker: StartWorker, mongo_client: MongoClient
) -> None:
    worker = start_worker(own.environment)
    id_ = new_id()
    fail_point = {
        "configureFailPoint": "failCommand",
        "mode": {"times": 1},
        "data": {
            "failCommands": ["findAndModify"],
            "namespace": f"{own.database.name}.users",
            "blockConnection": True,
            "blockTimeMS": 4_000,
        },
    }
    mongo_client.admin.command(fail_point)
    own.queues.client.send_message(QueueUrl=own.queues.url, MessageBody=body(id_, "last"))
    wait_until(lambda: worker.log_lines("message.received"), SETTLE_SECONDS, "a delivery")

    # The run is the last thing that it does.
    assert worker.stop() == 0

    assert worker.log_lines("message.done")
    found = own.database["outcomes"].find_one({"_id": id_})
    assert found is not None
    assert found["state"] == "registered"


def test_outcomes_that_cannot_be_written_delay_and_lose_no_message(
    own: Place, start_worker: StartWorker
) -> None:
    own.database.drop_collection("outcomes")
    own.database.create_collection("outcomes", viewOn="users", pipeline=[])
    try:
        worker = start_worker(own.environment)
        ids = [new_id() for _ in range(30)]
        for id_ in ids:
            own.queues.client.send_message(
                QueueUrl=own.queues.url, MessageBody=body(id_, f"w{id_}")
            )
        wanted = {f"w{id_}" for id_ in ids}
        wait_until(
            lambda: set(own.database["users"].distinct("user_id")) >= wanted,
            SETTLE_SECONDS,
            "all users",
        )
        wait_until(own.queues.is_empty, SETTLE_SECONDS, "an empty queue")
        wait_until(lambda: worker.log_lines("outcomes.failed"), SETTLE_SECONDS, "a log line")
        # Once it can be written, what waited is written.
        own.database.drop_collection("outcomes")
        for id_ in ids:
            until(own, id_, "registered")
        assert worker.stop() == 0
        assert not worker.log_lines("outage.begins")
    finally:
        own.database.drop_collection("outcomes")
