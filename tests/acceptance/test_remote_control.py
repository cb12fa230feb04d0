"""Events and remote control of two real workers: what is asked is answered by both, what is told is
done by both, and nothing of a user is to be seen in it."""

import json
import os
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue
from pymongo import MongoClient
from pymongo.database import Database

from devstack.sqs import create_queues
from sqs_broker import install
from sqs_broker.control import planes
from tests.acceptance.worker import PROGRAM_SECONDS, Place, Service, StartWorker, serving, workers
from tests.services import wait_until

pytestmark = pytest.mark.slow

NAMES = ("one@test", "two@test")

#: Seconds for an answer, or for what follows from a command.
PATIENCE = 30

#: Stands where a user could have typed something, and where a key of AWS stands.
MARKER, SECRET = "Kim-1f9c", "secret-7d21"


@dataclass
class Pair:
    """Two workers with two queues, and a client that controls them."""

    service: Service
    start: StartWorker
    client: Celery
    control: Database[dict[str, Any]]
    users: Database[dict[str, Any]]
    home: Path
    extra_queue: str

    def ask(self, command: str, **arguments: Any) -> list[Any]:
        """The answer of each worker, in order."""
        answers: dict[str, Any] = {}
        for answer in self.client.control.broadcast(
            command, arguments=arguments, reply=True, destination=NAMES, timeout=PATIENCE
        ):
            answers |= answer
        return [answers[name] for name in NAMES]

    def celery(self, *arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
        """What a command of Celery's does, and says."""
        environment = {k: v for k, v in self.service.environment.items() if k != without}
        return subprocess.run(
            ["celery", "-A", "app", *arguments],
            env=environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
        )

    def register(self, id_: str, delay: int = 0) -> str:
        """Send a registration as plain JSON; its id, which is the user's too."""
        info = {"nickname": MARKER, "introduction": MARKER}
        data = {"stockId": "s1", "userId": id_, "userInfo": info}
        body = {"id": id_, "action": "registerUser", "data": data}
        queues = self.service.queues
        queues.client.send_message(
            QueueUrl=queues.url, MessageBody=json.dumps(body), DelaySeconds=delay
        )
        return id_

    def pool_pids(self) -> list[int]:
        """The processes of both pools."""
        return [pid for answer in self.ask("stats") for pid in answer["pool"]["processes"]]

    def is_registered(self, id_: str) -> bool:
        return self.users.users.find_one({"user_id": id_}) is not None

    def logged(self, event: str, id_: str) -> list[dict[str, Any]]:
        """Lines of the first worker's log."""
        lines = self.service.worker.log_lines(event)
        return [line for line in lines if line.get("message_id") == id_]

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        return self.service.worker.wait_for(condition, PATIENCE, what)

    @contextmanager
    def slow_registrations(self, milliseconds: int) -> Iterator[None]:
        """MongoDB takes its time with users meanwhile."""
        admin = self.control.client.admin
        admin.command(
            "configureFailPoint",
            "failCommand",
            mode="alwaysOn",
            data={
                "failCommands": ["findAndModify", "update", "insert"],
                "namespace": f"{self.users.name}.users",
                "blockConnection": True,
                "blockTimeMS": milliseconds,
            },
        )
        try:
            yield
        finally:
            admin.command("configureFailPoint", "failCommand", mode="off")


@pytest.fixture(scope="module")
def pair(
    where: Place,
    mongo_client: MongoClient[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    sqs, home = where.queues.client, tmp_path_factory.mktemp("pair")
    extra = create_queues(sqs, f"{home.name}-extra", visibility_timeout=60, max_receive_count=10)
    name = extra.url.rsplit("/", 1)[1]
    more = {name: {"url": extra.url, "dead_letter_url": extra.dead_letter_url}}
    changes = {"AWS_SECRET_ACCESS_KEY": SECRET, "SQS_QUEUES": json.dumps(more)}
    where = replace(where, environment={**where.environment, **changes})
    control = {
        "database_uri": where.environment["MONGO_URI"],
        "database": f"{where.database.name}_control",
    }
    with (
        serving(where, home / "one", "-n", NAMES[0]) as service,
        workers(home / "others") as start,
    ):
        start(where.environment, "-n", NAMES[1])
        client = client_of(service, control)
        database = mongo_client[control["database"]]
        yield Pair(service, start, client, database, where.database, home, name)
        client.close()
    sqs.delete_queue(QueueUrl=extra.url)
    sqs.delete_queue(QueueUrl=extra.dead_letter_url)


def client_of(service: Service, control: dict[str, Any]) -> Celery:
    """A program that only controls workers; its readers end with the test."""
    queues = service.queues
    client = Celery("client", set_as_current=False)
    install(client)
    client.conf.update(
        broker_transport_options={
            "region": queues.region,
            "predefined_queues": {queues.name: {"url": queues.url}},
            "control": control,
        },
        accept_content=["json"],
        task_queues=[Queue(queues.name, Exchange(""), routing_key=queues.name)],
    )
    client.connection_for_read().release()
    return client


@pytest.fixture(scope="module", autouse=True)
def _close_what_the_client_opened() -> Iterator[None]:
    yield
    for options in tuple(planes._planes):
        planes._planes.pop(options).close()


# Asking


def test_celery_status_shows_both(pair: Pair) -> None:
    ran = pair.celery("status", "--timeout", "10")
    assert ran.returncode == 0, ran.stderr
    assert all(f"{name}: OK" in ran.stdout for name in NAMES)
    assert "2 nodes online" in ran.stdout


def test_a_ping_is_answered_within_a_second(pair: Pair) -> None:
    took = []
    for _ in range(3):
        began = monotonic()
        assert pair.ask("ping") == [{"ok": "pong"}] * 2
        took.append(monotonic() - began)
    # The best of three, for another process may have had the machine meanwhile.
    assert min(took) < 1


ASKED: list[tuple[str, dict[str, Any], Callable[[Any], bool]]] = [
    ("ping", {}, lambda answer: answer == {"ok": "pong"}),
    ("clock", {}, lambda answer: answer["clock"] > 0),
    ("active", {}, lambda answer: answer == []),
    ("reserved", {}, lambda answer: answer == []),
    ("scheduled", {}, lambda answer: answer == []),
    ("revoked", {}, lambda answer: isinstance(answer, list)),
    ("registered", {}, lambda answer: {"increment", "registerUser"} <= set(answer)),
    ("stats", {}, lambda answer: answer["pool"]["max-concurrency"] == 2),
    ("active_queues", {}, lambda answer: len(answer) == 2),
    ("report", {}, lambda answer: "transport:sqs_broker:Transport" in answer["ok"]),
    ("conf", {}, lambda answer: answer["task_acks_late"] is True),
    ("query_task", {"ids": ["nobody"]}, lambda answer: answer == {}),
]


@pytest.mark.parametrize(("command", "arguments", "is_right"), ASKED, ids=[a[0] for a in ASKED])
def test_both_answer(
    pair: Pair, command: str, arguments: dict[str, Any], is_right: Callable[[Any], bool]
) -> None:
    answers = pair.ask(command, **arguments)
    assert all(is_right(answer) for answer in answers), answers
    said = json.dumps(answers)
    assert SECRET not in said
    assert pair.service.environment["MONGO_URI"] not in said


def test_what_runs_is_shown_without_its_arguments(pair: Pair) -> None:
    with pair.slow_registrations(4_000):
        ids = [pair.register(f"shown-{number}") for number in range(6)]
        active = pair.wait_for(
            lambda: [task for tasks in pair.ask("active") for task in tasks], "some that run"
        )
        told = pair.ask("query_task", ids=ids)
    assert {task["name"] for task in active} == {"registerUser"}
    assert active[0]["kwargs"].startswith("{stock_id: 's1', user_id: 'shown-")
    states = {state for answer in told for state, _ in answer.values()}
    assert "active" in states
    assert states <= {"active", "reserved"}
    assert MARKER not in json.dumps([active, told])
    pair.wait_for(pair.service.queues.is_empty, "an empty queue")


# Telling


TOLD: list[tuple[str, dict[str, Any], str]] = [
    ("rate_limit", {"task_name": "increment", "rate_limit": "100/s"}, "new rate limit set"),
    ("time_limit", {"task_name": "increment", "soft": 5.0, "hard": 10.0}, "time limits set"),
    ("enable_events", {}, "task events already enabled"),
    ("revoke", {"task_id": ["nobody"]}, "flagged as revoked"),
    ("revoke_by_stamped_headers", {"headers": {"batch": "b1"}}, "flagged as revoked"),
]


@pytest.mark.parametrize(("command", "arguments", "said"), TOLD, ids=[t[0] for t in TOLD])
def test_both_do_it(pair: Pair, command: str, arguments: dict[str, Any], said: str) -> None:
    assert all(said in answer["ok"] for answer in pair.ask(command, **arguments))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("time_limit", {"task_name": "increment", "soft": 5.0, "hard": 99.0}, "visibility_timeout"),
    ("add_consumer", {"queue": "nowhere"}, "no queue 'nowhere' is configured"),
    ("cancel_consumer", {"queue": "nowhere"}, "no queue 'nowhere' is configured"),
    ("election", {"id": "1", "topic": "task"}, "elections are not supported"),
    ("autoscale", {"max": 3, "min": 1}, "Autoscale not enabled"),
    ("pool_restart", {}, "Pool restarts not enabled"),
]


@pytest.mark.parametrize(("command", "arguments", "why"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_is_not_supported_says_so(
    pair: Pair, command: str, arguments: dict[str, Any], why: str
) -> None:
    assert all(why in answer["error"] for answer in pair.ask(command, **arguments))


def test_the_pools_grow_and_shrink(pair: Pair) -> None:
    def sizes() -> list[int]:
        return [len(answer["pool"]["processes"]) for answer in pair.ask("stats")]

    before = len(pair.service.worker.pool_pids())
    assert pair.ask("pool_grow", n=1) == [{"ok": "pool will grow"}] * 2
    pair.wait_for(lambda: sizes() == [3, 3], "pools of three")
    assert len(pair.service.worker.pool_pids()) == before + 1
    assert pair.ask("pool_shrink", n=1) == [{"ok": "pool will shrink"}] * 2
    pair.wait_for(lambda: sizes() == [2, 2], "pools of two")


def test_a_queue_is_consumed_again_that_was_cancelled(pair: Pair) -> None:
    def consumed() -> set[int]:
        return {len(answer) for answer in pair.ask("active_queues")}

    pair.ask("cancel_consumer", queue=pair.extra_queue)
    pair.wait_for(lambda: consumed() == {1}, "one queue")
    pair.ask("add_consumer", queue=pair.extra_queue)
    pair.wait_for(lambda: consumed() == {2}, "two queues")


def test_a_queue_that_is_cancelled_and_consumed_again_and_again_costs_nothing(pair: Pair) -> None:
    pid = pair.service.worker.pid

    def cycle(times: int) -> None:
        for _ in range(times):
            pair.ask("cancel_consumer", queue=pair.extra_queue)
            pair.ask("add_consumer", queue=pair.extra_queue)

    def counts() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))

    def megabytes() -> int:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() >> 20

    cycle(2)
    threads, files = counts()
    memory = megabytes()
    cycle(20)

    # The last open receive calls end soon.
    pair.wait_for(lambda: counts() <= (threads + 1, files + 3), "no more threads and files")
    assert megabytes() < memory + 20


# Revoking


def test_a_revoked_registration_is_done_and_the_log_says_it(pair: Pair) -> None:
    pair.ask("cancel_consumer", queue=pair.extra_queue)
    pair.client.control.revoke("revoked-1")
    pair.register("revoked-1")
    pair.wait_for(pair.service.queues.is_empty, "an empty queue")
    assert not pair.is_registered("revoked-1")
    assert pair.service.dead_letters("revoked-1") == []
    pair.ask("add_consumer", queue=pair.extra_queue)


def test_a_revoke_reaches_a_worker_that_starts_later(pair: Pair) -> None:
    pair.client.control.revoke("revoked-2")
    late = pair.start(pair.service.environment, "-n", "late@test")
    answer = pair.client.control.inspect(destination=["late@test"], timeout=PATIENCE).revoked()
    assert "revoked-2" in answer["late@test"]
    assert late.stop() == 0


@pytest.mark.parametrize("number", ["TERM", "HUP", "KILL"])
def test_a_running_task_is_terminated(pair: Pair, number: str) -> None:
    with pair.slow_registrations(8_000), events(pair) as seen:
        id_ = pair.register(f"terminated-{number}")
        pair.wait_for(
            lambda: any(t["id"] == id_ for tasks in pair.ask("active") for t in tasks), "it runs"
        )
        before = set(pair.pool_pids())
        pair.ask("revoke", task_id=id_, terminate=True, signal=number)
        pair.wait_for(lambda: len(before - set(pair.pool_pids())) == 1, "the end of its process")
        pair.wait_for(lambda: ("task-revoked", id_) in seen(), "the event of it")
        pair.wait_for(pair.service.queues.is_empty, "an empty queue")
        assert [type_ for type_, uuid in seen() if uuid == id_][-1] == "task-revoked"
    assert pair.service.dead_letters(id_) == []


# Events


@contextmanager
def events(pair: Pair) -> Iterator[Callable[[], Sequence[tuple[str, str]]]]:
    """What is told of tasks, as Flower hears it: (type of the event, id of the task)."""
    taken: list[tuple[str, str]] = []
    with pair.client.connection_for_read() as connection:
        receiver = pair.client.events.Receiver(
            connection,
            handlers={"*": lambda event: taken.append((event["type"], event.get("uuid", "")))},
        )
        thread = threading.Thread(target=receiver.capture, daemon=True)
        thread.start()
        # A worker answers the receiver's call for signs of life.
        pair.wait_for(lambda: any(type_ == "worker-heartbeat" for type_, _ in taken), "life")
        yield lambda: tuple(taken)
        receiver.should_stop = True
        thread.join(PATIENCE)


def test_events_tell_the_life_of_a_task_and_nothing_of_the_user(pair: Pair) -> None:
    with events(pair) as seen:
        id_ = pair.register("event-1")
        pair.wait_for(lambda: ("task-succeeded", id_) in seen(), "the end of it")
        types = [type_ for type_, uuid in seen() if uuid == id_]
    assert types == ["task-received", "task-started", "task-succeeded"]
    pair.service.settle()
    kept = [
        document
        for name in pair.control.list_collection_names()
        for document in pair.control[name].find()
    ]
    assert any("event-1" in str(document) for document in kept)
    assert MARKER not in str(kept)


def test_events_can_be_turned_off_and_on(pair: Pair) -> None:
    with events(pair) as seen:
        assert pair.ask("disable_events") == [{"ok": "task events disabled"}] * 2
        pair.register("quiet-1")
        pair.wait_for(lambda: pair.is_registered("quiet-1"), "the user")
        pair.service.settle()
        assert pair.ask("enable_events") == [{"ok": "task events enabled"}] * 2
        pair.register("heard-1")
        pair.wait_for(lambda: ("task-succeeded", "heard-1") in seen(), "an event")
        assert "quiet-1" not in {uuid for _, uuid in seen()}


def test_celery_events_dumps_them(pair: Pair) -> None:
    with (pair.home / "events.log").open("wb") as output:
        dump = subprocess.Popen(
            ["celery", "-A", "app", "events", "--dump"],
            env=dict(pair.service.environment),
            cwd=pair.home,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        log = pair.home / "events.log"
        pair.wait_for(lambda: "heartbeat" in log.read_text(), "a heartbeat")
        pair.register("dumped-1")
        pair.wait_for(lambda: "task succeeded: registerUser(dumped-1)" in log.read_text(), "it")
    finally:
        dump.terminate()
        dump.wait(PATIENCE)
    assert MARKER not in log.read_text()


# Without MongoDB, and after it all


def test_a_control_plane_that_is_away_costs_events_and_no_task(pair: Pair) -> None:
    admin = pair.control.client.admin
    fault = {
        "failCommands": ["insert", "find", "getMore", "create", "listCollections"],
        "closeConnection": True,
        "appName": "celery-control",
    }
    pair.register("before-1")
    pair.wait_for(lambda: pair.is_registered("before-1"), "a user before")
    admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=fault)
    try:
        for number in range(10):
            pair.register(f"meanwhile-{number}")
        pair.wait_for(lambda: pair.is_registered("meanwhile-9"), "the users")
        pair.wait_for(pair.service.queues.is_empty, "an empty queue")
        pair.wait_for(lambda: pair.service.worker.log_lines("control.down"), "a word of it")
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")
    pair.wait_for(lambda: pair.service.worker.log_lines("control.up"), "a word of its end")
    assert pair.ask("ping") == [{"ok": "pong"}] * 2
    # The writer and the reader, each once.
    assert len(pair.service.worker.log_lines("control.down")) <= 2
    assert [answer["control"]["lost_events"] for answer in pair.ask("stats")] == [0, 0]


@pytest.mark.parametrize("command", [("inspect", "ping"), ("control", "revoke", "id-1")])
def test_a_client_without_mongodb_is_told_what_is_missing(
    pair: Pair, command: Sequence[str]
) -> None:
    ran = pair.celery(*command, without="MONGO_URI")
    assert ran.returncode == 1
    (line,) = ran.stderr.strip().splitlines()
    assert "MONGO_URI is not set" in line


def test_an_idle_worker_costs_less_than_five_operations_a_second(pair: Pair) -> None:
    def operations() -> int:
        counted = pair.control.command("serverStatus")["opcounters"]
        return sum(counted[kind] for kind in ("insert", "query", "update", "delete", "getmore"))

    pair.service.settle()
    began, before = monotonic(), operations()
    # Long enough for two signs of life of each worker.
    wait_until(lambda: monotonic() - began > 5, PATIENCE, "five seconds")
    # The client of these tests waits for replies, which counts here too.
    assert (operations() - before) / (monotonic() - began) < 2 * 5


def test_nothing_waits_for_a_client_any_more(pair: Pair) -> None:
    assert pair.control.replies.count_documents({}) == 0


def test_a_worker_can_be_shut_down(pair: Pair) -> None:
    pair.client.control.shutdown(destination=["one@test"])
    assert pair.service.worker.wait() == 0
