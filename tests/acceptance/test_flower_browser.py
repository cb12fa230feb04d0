"""Flower in a real browser, with two workers, an SQS server and MongoDB behind it."""

import json
import os
import re
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect
from pymongo import MongoClient

from devstack import ports
from devstack.mongo import REPLICA_SET, MongoServer
from devstack.sqs import SqsServer
from tests.acceptance.browser import SHOWN, SIZE, browsing
from tests.acceptance.flower_process import LOGIN, Flower, flowering
from tests.acceptance.worker import Place, Worker, place, workers
from tests.services import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

expect.set_options(timeout=SHOWN)

IMAGES = Path(__file__).parents[2] / "docs" / "images"
#: What the pictures show.
QUEUE = "registrations"
#: Planted in each nickname; nothing but the queue and the user may hold it.
NICKNAME = "marker-of-a-nickname"
#: Planted in the keys of SQS and in the login of MongoDB.
SECRET = "marker-of-a-secret"
DONE_SECONDS = 60
#: Pictures end above it: it has paths of this machine.
TRACEBACK = ".detail-row:has(dt:text-is('Traceback'))"
#: One process each; and a message that fails until the test has seen it may fail often.
PATIENT = {"WORKER_CONCURRENCY": "1", "SQS_MAX_ATTEMPTS": "7", "SQS_BACKOFF_MAX": "4"}


@dataclass(frozen=True)
class Scene:
    """Two workers, Flower, and a browser that is logged in to it."""

    where: Place
    one: Worker
    two: Worker
    flower: Flower
    page: Page
    mongo: MongoClient[dict[str, Any]]
    takes_pictures: bool

    def send(self, user_id: str, **more: Any) -> str:
        """Put a registration on the queue; its id, which is the task's."""
        id_ = str(uuid.uuid4())
        data = {"stockId": "s1", "userId": user_id, "userInfo": {"nickname": NICKNAME}} | more
        body = {"id": id_, "action": "registerUser", "data": data}
        queues = self.where.queues
        queues.client.send_message(QueueUrl=queues.url, MessageBody=json.dumps(body))
        return id_

    def users(self) -> int:
        """How many are stored."""
        return self.where.database["users"].count_documents({})

    def open(self, path: str) -> None:
        """Go to a page of Flower's."""
        self.page.goto(self.flower.url + path)

    def see(self, selector: str) -> Locator:
        """What is on the page."""
        return self.page.locator(selector)

    def toast(self, text: str) -> None:
        """Returns once Flower says so in its corner."""
        expect(self.see("#toast-container")).to_contain_text(text)

    def wait_for(self, id_: str, state: str) -> None:
        """Returns once Flower has a task in this state."""

        def look() -> bool:
            answer = self.flower.get(f"/api/task/info/{id_}")
            return answer.status == 200 and answer.json["state"] == state

        wait_until(look, DONE_SECONDS, f"task {id_} in state {state}")

    def picture(self, name: str, down_to: str | None = None) -> None:
        """Keep what is seen for the documentation, where that was asked for.

        `down_to` is what it ends above; without it, the window.
        """
        if not self.takes_pictures:
            return
        IMAGES.mkdir(exist_ok=True)
        area: dict[str, Any] = {}
        if down_to:
            box = self.see(down_to).bounding_box()
            assert box is not None
            clip = {"x": 0, "y": 0, "width": SIZE["width"], "height": box["y"]}
            area = {"full_page": True, "clip": clip}
        self.page.screenshot(path=IMAGES / f"flower-{name}.png", animations="disabled", **area)

    @contextmanager
    def failing_database(self, after: float = 0) -> Iterator[None]:
        """Registrations fail inside the block, as if MongoDB refused them after some seconds."""
        data = {
            "failCommands": ["findAndModify"],
            "namespace": f"{self.where.database.name}.users",
            "errorCode": 96,
            "blockConnection": after > 0,
            "blockTimeMS": int(after * 1000),
        }
        self.mongo.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
        try:
            yield
        finally:
            self.mongo.admin.command("configureFailPoint", "failCommand", mode="off")

    @contextmanager
    def busy_pool(self, worker: Worker) -> Iterator[None]:
        """The worker's pool stands still inside the block."""
        pids = worker.pool_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def alone(self, worker: str, other: str) -> Iterator[None]:
        """One worker takes messages inside the block: the other one is told so on its page."""
        self.open(f"/worker/{other}")
        self.see("#worker-tab-queues").click()
        self.see(f"#worker-cancel-consumer-{QUEUE}").click()
        self.toast(f"no longer consuming from {QUEUE}")
        try:
            yield
        finally:
            self.open(f"/worker/{other}")
            self.see("#worker-tab-queues").click()
            self.see("#add-consumer-name").fill(QUEUE)
            self.see("#worker-add-consumer").click()
            self.toast(f"add consumer {QUEUE}")


@pytest.fixture(scope="module")
def secretive_uri(mongo_server: MongoServer, mongo_client: MongoClient) -> Iterator[str]:
    """MongoDB's address with a password in it, as it is in production."""
    user = f"kim-{uuid.uuid4().hex}"
    mongo_client.admin.command("createUser", user, pwd=SECRET, roles=["root"])
    host = f"{ports.HOST}:{mongo_server.port}"
    yield f"mongodb://{user}:{SECRET}@{host}/{QUEUE}?replicaSet={REPLICA_SET}&authSource=admin"
    mongo_client.admin.command("dropUser", user)


@pytest.fixture(scope="module")
def scene(
    secretive_uri: str,
    mongo_server: MongoServer,
    mongo_client: MongoClient[dict[str, Any]],
    sqs_server: SqsServer,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[Scene]:
    """All of it, and nothing has happened yet."""
    home = tmp_path_factory.mktemp("scene")
    client = sqs_server.client()
    url = sqs_server.endpoint_url
    with place(client, url, mongo_server, mongo_client, home, QUEUE) as where:
        secrets = {"AWS_SECRET_ACCESS_KEY": SECRET, "MONGO_URI": secretive_uri}
        environment = {**where.environment, **PATIENT, **secrets}
        with (
            flowering(environment, home) as flower,
            workers(home / "workers") as start,
            browsing(home / "profile", LOGIN) as browser,
        ):
            one = start(environment, "-n", "one@test", ready=False)
            two = start(environment, "-n", "two@test", ready=False)
            one.wait_until_ready()
            two.wait_until_ready()
            flower.wait_until_it_sees("one@test", "two@test")
            pictures = pytestconfig.getoption("--screenshots")
            yield Scene(where, one, two, flower, browser.pages[0], mongo_client, pictures)
    client.close()


@dataclass(frozen=True)
class Story:
    """50 users are registered, one of them at the second try; one fails; one is revoked."""

    scene: Scene
    retried: str
    failed: str
    revoked: str


@pytest.fixture(scope="module")
def story(scene: Scene) -> Story:
    """What has happened, part of it by clicks."""
    for number in range(48):
        scene.send(f"u{number}")
    wait_until(lambda: scene.users() == 48, DONE_SECONDS, "48 users")
    retried = retry_one(scene)
    failed = scene.send("u0", index=7)
    scene.wait_for(failed, "FAILURE")
    revoked = revoke_one(scene)
    wait_until(scene.where.queues.is_empty, DONE_SECONDS, "an empty queue")
    return Story(scene, retried, failed, revoked)


def retry_one(scene: Scene) -> str:
    with scene.failing_database(after=5):
        id_ = scene.send("u48")
        scene.wait_for(id_, "STARTED")
        scene.open(f"/task/{id_}")
        expect(scene.see("#task-page")).to_contain_text("STARTED")
        expect(scene.see("#task-terminate")).to_be_visible()
    with scene.failing_database():
        scene.wait_for(id_, "RETRY")
        scene.open("/tasks")
        scene.see("[data-task-state=RETRY]").click()
        row = scene.see("#tasks-table tbody tr")
        expect(row).to_have_count(1)
        expect(row).to_contain_text(id_)
        expect(row).to_contain_text("RETRY")
        scene.picture("retry")
    scene.wait_for(id_, "SUCCESS")
    return id_


def revoke_one(scene: Scene) -> str:
    with scene.alone("one@test", "two@test"):
        with scene.busy_pool(scene.one):
            in_the_pool = scene.send("u49")
            scene.wait_for(in_the_pool, "RECEIVED")
            waiting = scene.send("never")
            scene.wait_for(waiting, "RECEIVED")
            scene.open(f"/task/{waiting}")
            expect(scene.see("#task-page")).to_contain_text("RECEIVED")
            scene.see("#task-revoke").click()
            scene.toast(f"Revoked '{waiting}'")
            flagged = f"Tasks flagged as revoked: {waiting}"
            scene.one.wait_for(lambda: flagged in scene.one.log_text(), DONE_SECONDS, flagged)
        scene.wait_for(in_the_pool, "SUCCESS")
        scene.wait_for(waiting, "REVOKED")
    return waiting


def test_the_pages_count_what_mongodb_and_sqs_count(story: Story) -> None:
    scene = story.scene
    assert scene.users() == 50
    assert not scene.where.database["users"].find_one({"user_id": "never"})

    scene.open("/workers")
    expect(scene.see("#workers-online")).to_have_text("2")
    expect(scene.see("#workers-succeeded")).to_have_text(str(scene.users()))
    expect(scene.see("#workers-failed")).to_have_text("1")
    expect(scene.see("#workers-active")).to_have_text("0")
    scene.picture("workers")

    scene.open("/broker")
    queues = scene.where.queues
    for url in (queues.url, queues.dead_letter_url):
        shown = scene.see(f"tr#{url.rsplit('/', 1)[-1]} td").all_inner_texts()
        assert shown[1:4] == [str(count) for count in counted(scene, url)]
    assert counted(scene, queues.dead_letter_url) == (1, 0, 0)
    scene.picture("broker")

    scene.open("/tasks")
    for label, state, count in (
        ("Succeeded", "SUCCESS", scene.users()),
        ("Failed", "FAILURE", 1),
        ("Retried", "RETRY", 0),
        ("All", "", scene.users() + 2),
    ):
        scene.see(f"[data-task-state='{state}']").click()
        shown_of = f"of {count} tasks" if count else "No tasks to show"
        expect(scene.see("#tasks-table_info"), label).to_contain_text(shown_of)
    scene.picture("tasks", "#tasks-table tbody tr:nth-child(6)")


def test_the_page_of_a_task_tells_its_state_its_retries_and_its_exception(story: Story) -> None:
    scene = story.scene
    page = scene.see("#task-page")

    scene.open(f"/task/{story.retried}")
    expect(page).to_contain_text(re.compile(r"Status\s+SUCCESS"))
    expect(page).to_contain_text(re.compile(r"Retries\s+[1-6]\s"))
    expect(page).to_contain_text(re.compile(r"Exception\s+OperationFailure\(96\)"))
    expect(page).to_contain_text("user_info: hidden")
    scene.picture("task-retried", TRACEBACK)

    scene.open(f"/task/{story.failed}")
    expect(page).to_contain_text(re.compile(r"Status\s+FAILURE"))
    expect(page).to_contain_text(
        re.compile(r"Exception\s+Conflict\('the user is registered already")
    )
    scene.picture("task-failed", TRACEBACK)

    scene.open(f"/task/{story.revoked}")
    expect(page).to_contain_text(re.compile(r"Status\s+REVOKED"))


def test_the_api_and_the_metrics_count_alike(story: Story) -> None:
    flower = story.scene.flower

    tasks = flower.get("/api/tasks?limit=1000").json
    states = [task["state"] for task in tasks.values()]
    assert {state: states.count(state) for state in set(states)} == {
        "SUCCESS": 50,
        "FAILURE": 1,
        "REVOKED": 1,
    }
    told = flower.get("/api/workers?refresh=1").json
    assert {"one@test", "two@test"} == set(told)
    assert {queue["name"] for queue in told["one@test"]["active_queues"]} == {QUEUE}
    events = flower.get("/metrics").text
    assert total(events, "flower_events_total", type="task-succeeded") == 50
    assert total(events, "flower_events_total", type="task-failed") == 1
    assert total(events, "flower_events_total", type="task-revoked") == 1
    assert total(events, "flower_events_total", type="task-retried") >= 1
    assert total(events, "flower_worker_online") == 2


def test_a_pool_grows_and_shrinks_by_clicks(scene: Scene) -> None:
    assert len(scene.two.pool_pids()) == 1

    scene.open("/worker/two@test")
    scene.see("#worker-pool-grow").click()
    scene.toast("Growing 'two@test' worker's pool by 1")
    scene.two.wait_for(lambda: len(scene.two.pool_pids()) == 2, DONE_SECONDS, "two processes")

    def shows_two() -> bool:
        # What a worker told last is shown, and it is asked again meanwhile.
        scene.open("/worker/two@test")
        return bool(re.search(r"Processes\s+\d+, \d+\s", scene.see("#tab-pool").inner_text()))

    wait_until(shows_two, DONE_SECONDS, "two processes on the page")
    scene.picture("worker")
    scene.see("#worker-pool-shrink").click()
    scene.toast("Shrinking 'two@test' worker's pool by 1")
    scene.two.wait_for(lambda: len(scene.two.pool_pids()) == 1, DONE_SECONDS, "one process")


def test_no_nickname_and_no_secret_is_anywhere_to_be_seen(story: Story) -> None:
    scene = story.scene
    paths = [
        *("/workers", "/tasks", "/broker", "/metrics", "/api/tasks?limit=1000"),
        *("/api/workers?refresh=1", "/api/queues/length", "/worker/one@test", "/worker/two@test"),
        *(f"/task/{id_}" for id_ in (story.retried, story.failed, story.revoked)),
    ]
    seen = {path: scene.flower.get(path) for path in paths}
    assert {path: answer.status for path, answer in seen.items()} == dict.fromkeys(paths, 200)
    texts = {path: answer.text for path, answer in seen.items()}
    texts |= {program.name: program.log_text() for program in (scene.flower, scene.one, scene.two)}
    control = scene.mongo[f"{scene.where.database.name}_control"]
    texts |= {
        f"the collection {name}": "\n".join(map(str, control[name].find()))
        for name in control.list_collection_names()
    }

    assert "registerUser" in texts["the collection events"]
    for place_, text in texts.items():
        assert NICKNAME not in text, place_
        assert SECRET not in text, place_
    # And where they belong, they are.
    assert scene.where.database["users"].find_one()["user_info"]["nickname"] == NICKNAME


def counted(scene: Scene, url: str) -> tuple[int, ...]:
    """What SQS says: visible, in flight, delayed."""
    names = ("", "NotVisible", "Delayed")
    attributes = scene.where.queues.client.get_queue_attributes(
        QueueUrl=url, AttributeNames=["All"]
    )["Attributes"]
    return tuple(int(attributes[f"ApproximateNumberOfMessages{name}"]) for name in names)


def total(metrics: str, name: str, **labels: str) -> float:
    """The sum of a metric, over all that has these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        if line.startswith(f"{name}{{") and all(part in line for part in wanted)
    )
