"""How a worker starts, and stops: what it cannot run with is said in one line."""

import json
import uuid
from collections.abc import Iterator

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect
from pymongo.uri_parser import parse_uri

from devstack import mongo, ports
from devstack.process import Process
from tests.acceptance.worker import StartWorker
from tests.services import Queues, wait_until

#: For a worker that does not start to say so.
REFUSE_SECONDS = 30

#: To root Celery says more than one line, before anything of ours runs.
AS_ANY_USER = {
    "PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges:UserWarning"
}


@pytest.fixture(scope="module")
def standalone_mongo_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A mongod that is no replica set, so that it has no transactions."""
    directory = tmp_path_factory.mktemp("standalone")
    port = ports.preferred_or_any(None)
    command = [mongo.find_binary(), "--dbpath", directory, "--port", str(port)]
    command += ["--bind_ip", ports.HOST, "--nounixsocket", "--quiet"]
    with (
        Process("mongod", command, log=directory / "mongod.log", grace=10) as process,
        MongoClient(ports.HOST, port, serverSelectionTimeoutMS=100) as client,
    ):

        def answers() -> bool:
            process.check()
            try:
                return bool(client.admin.command("ping")["ok"])
            except AutoReconnect:
                return False

        wait_until(answers, mongo.START_SECONDS, "a standalone mongod")
        yield f"mongodb://{ports.HOST}:{port}/registrations"


@pytest.mark.parametrize(
    "missing", ["AWS_REGION", "AWS_SQS_QUEUE_URL", "AWS_SQS_DLQ_URL", "MONGO_URI"]
)
def test_a_missing_variable_is_named_in_one_line_with_the_fix(
    environment: dict[str, str], start_worker: StartWorker, missing: str
) -> None:
    del environment[missing]

    said = refusal(start_worker, environment)

    assert missing in said
    assert "make run" in said


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (
            {"SQS_MAX_ATTEMPTS": "8", "SQS_MAX_RECEIVE_COUNT": "10"},
            ("max_attempts", "max_receive_count"),
        ),
        (
            {"SQS_VISIBILITY_TIMEOUT": "30", "TASK_TIME_LIMIT": "30"},
            ("visibility_timeout", "task_time_limit"),
        ),
        (
            {"TASK_SOFT_TIME_LIMIT": "30", "TASK_TIME_LIMIT": "30"},
            ("task_soft_time_limit", "task_time_limit"),
        ),
    ],
    ids=["attempts", "visibility", "limits"],
)
def test_settings_that_contradict_each_other_are_named_in_one_line(
    environment: dict[str, str],
    start_worker: StartWorker,
    settings: dict[str, str],
    names: tuple[str, str],
) -> None:
    said = refusal(start_worker, environment | settings)

    for name in names:
        assert name in said.lower()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SQS_MAX_ATTEMPTS", "hunter2"),
        ("WORKER_CONCURRENCY", "0"),
        ("SQS_QUEUES", "hunter2"),
        ("MONGO_URI", "mongodb://kim:hunter2@localhost:port/"),
        ("AWS_ENDPOINT_URL", "hunter2"),
    ],
)
def test_an_impossible_value_is_refused_in_one_line_that_does_not_show_it(
    environment: dict[str, str], start_worker: StartWorker, variable: str, value: str
) -> None:
    said = refusal(start_worker, environment | {variable: value})

    assert variable in said
    assert "hunter2" not in said


def test_a_standalone_mongod_is_refused_in_one_line(
    environment: dict[str, str], start_worker: StartWorker, standalone_mongo_uri: str
) -> None:
    environment["MONGO_URI"] = standalone_mongo_uri

    said = refusal(start_worker, environment)

    assert "MONGO_URI" in said
    assert "--replSet" in said


def test_a_queue_without_a_redrive_policy_is_refused_in_one_line(
    environment: dict[str, str], queues: Queues, start_worker: StartWorker
) -> None:
    queues.client.set_queue_attributes(QueueUrl=queues.url, Attributes={"RedrivePolicy": ""})

    said = refusal(start_worker, environment)

    assert "redrive policy" in said
    assert queues.dead_letter_url in said


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}?x"])
def test_a_dead_letter_url_that_is_the_queue_is_refused_and_nothing_is_received(
    environment: dict[str, str], queues: Queues, start_worker: StartWorker, spelling: str
) -> None:
    queues.client.send_message(QueueUrl=queues.url, MessageBody=registration("s1"))

    said = refusal(
        start_worker, environment | {"AWS_SQS_DLQ_URL": spelling.format(queues.url)}, status=1
    )

    assert "AWS_SQS_DLQ_URL" in said
    assert queues.name in said
    assert_never_received(queues)


def test_dead_letters_that_come_back_by_another_queue_are_refused(
    environment: dict[str, str], queues: Queues, start_worker: StartWorker
) -> None:
    queues.client.send_message(QueueUrl=queues.url, MessageBody=registration("s1"))
    back = {"mail": {"url": queues.dead_letter_url, "dead_letter_url": queues.url}}

    said = refusal(start_worker, environment | {"SQS_QUEUES": json.dumps(back)}, status=1)

    assert "AWS_SQS_DLQ_URL and SQS_QUEUES" in said
    assert_never_received(queues)


@pytest.mark.slow
def test_a_mongod_that_is_away_is_named_in_one_line(
    environment: dict[str, str], start_worker: StartWorker
) -> None:
    nobody = ports.preferred_or_any(None)
    environment["MONGO_URI"] = f"mongodb://kim:hunter2@{ports.HOST}:{nobody}/registrations"

    said = refusal(start_worker, environment)

    assert "MONGO_URI" in said
    assert "hunter2" not in said


@pytest.mark.contract
def test_sigterm_ends_an_idle_worker_with_status_0_and_leaves_no_process(
    environment: dict[str, str], start_worker: StartWorker
) -> None:
    worker = start_worker(environment)
    pool = worker.pool_pids()

    assert worker.stop() == 0

    assert len(pool) == 2
    assert worker.processes() == []
    assert "Traceback" not in worker.log_text()


@pytest.mark.parametrize("pool", ["threads", "solo"])
@pytest.mark.contract
def test_other_pools_register_and_stop_too(
    environment: dict[str, str],
    queues: Queues,
    mongo_client: MongoClient,
    start_worker: StartWorker,
    pool: str,
) -> None:
    worker = start_worker(environment, "--pool", pool)
    users = mongo_client[parse_uri(environment["MONGO_URI"])["database"]]["users"]

    queues.client.send_message(QueueUrl=queues.url, MessageBody=registration("s1"))

    worker.wait_for(lambda: users.find_one({"stock_id": "s1"}), 30, "the user")
    worker.wait_for(queues.is_empty, 30, "an empty queue")
    assert worker.stop() == 0
    assert worker.processes() == []
    assert "Traceback" not in worker.log_text()


@pytest.mark.slow
def test_a_worker_that_stops_leaves_every_message_done_or_in_the_queue(
    environment: dict[str, str],
    queues: Queues,
    mongo_client: MongoClient,
    start_worker: StartWorker,
) -> None:
    users = mongo_client[parse_uri(environment["MONGO_URI"])["database"]]["users"]
    sent = {f"s{number}" for number in range(200)}
    for stock_id in sent:
        queues.client.send_message(QueueUrl=queues.url, MessageBody=registration(stock_id))

    first = start_worker(environment)
    first.wait_for(lambda: users.count_documents({}) >= 10, 30, "the first users")
    # Celery's pool may wait 30 s for a result that it has dropped.
    assert first.stop(60) == 0
    # None is held back for a lease: what was not done is there for the next worker once the polls
    # are over that this one had open.
    wait_until(lambda: queues.counts()[1:] == (0, 0), 10, "no message in flight")
    second = start_worker(environment)
    second.wait_for(queues.is_empty, 30, "an empty queue")

    assert set(users.distinct("stock_id")) == sent
    assert queues.dead_letters() == []


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_one_connection_to_mongodb_is_enough_for_the_tasks(
    environment: dict[str, str],
    queues: Queues,
    mongo_client: MongoClient,
    start_worker: StartWorker,
    pool: str,
) -> None:
    users = mongo_client[parse_uri(environment["MONGO_URI"])["database"]]["users"]
    separator = "&" if "?" in environment["MONGO_URI"] else "?"
    one = {"MONGO_URI": f"{environment['MONGO_URI']}{separator}maxPoolSize=1"}
    sent = {f"s{number}" for number in range(30)}
    for stock_id in sent:
        queues.client.send_message(QueueUrl=queues.url, MessageBody=registration(stock_id))

    worker = start_worker(environment | one, "--pool", pool, "-c", "4")

    worker.wait_for(queues.is_empty, 30, "an empty queue")
    assert set(users.distinct("stock_id")) == sent
    assert worker.stop() == 0
    assert "Traceback" not in worker.log_text()


def assert_never_received(queues: Queues) -> None:
    """The one message of the queue is delivered for the first time now."""
    [message] = queues.client.receive_message(
        QueueUrl=queues.url, MessageSystemAttributeNames=["ApproximateReceiveCount"]
    )["Messages"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"


def refusal(
    start_worker: StartWorker, environment: dict[str, str], status: int | None = None
) -> str:
    """The one line that a worker says which does not start with this environment."""
    worker = start_worker(environment | AS_ANY_USER, ready=False)
    ended = worker.wait(REFUSE_SECONDS)
    assert ended == status if status else ended not in (0, None)
    assert worker.processes() == []
    [line] = worker.log_text().strip().splitlines()
    return line


def registration(stock_id: str) -> str:
    data = {"stockId": stock_id, "userId": "u1", "userInfo": {"nickname": "kim"}}
    return json.dumps({"id": str(uuid.uuid4()), "action": "registerUser", "data": data})
