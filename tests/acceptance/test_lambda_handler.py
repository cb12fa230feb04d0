"""The Lambda function in AWS's runtime client, with a real queue and a real MongoDB."""

import json
import os
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest
from pymongo import MongoClient

from app.registration_ids import LENGTH
from devstack.mongo import MongoServer
from sqs_broker.rules.dead_letter import read_note
from tests.acceptance.function import Sandbox, event_of, sandbox
from tests.acceptance.worker import StartWorker
from tests.deployments.deployment import Deployment, User
from tests.faults.tcp import TcpProxy, running
from tests.services import Queues, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

NAME = "Kim-1f9c"

Start = Callable[..., Sandbox]


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Starts sandboxes that live until the end of the test."""
    with ExitStack() as stack:

        def start_one(*, is_ready: bool = True, timeout: float = 30, **changes: str) -> Sandbox:
            directory = tmp_path / uuid.uuid4().hex
            directory.mkdir()
            made = stack.enter_context(
                sandbox(directory, environment | changes, root=ROOT, timeout=timeout)
            )
            if is_ready:
                made.wait_until_ready()
            return made

        yield start_one


@pytest.fixture
def send(queues: Queues) -> Callable[[str], str]:
    """Sends a message; gives its MessageId."""
    return lambda body: queues.client.send_message(QueueUrl=queues.url, MessageBody=body)[
        "MessageId"
    ]


@pytest.fixture
def proxy(mongo_server: MongoServer) -> Iterator[TcpProxy]:
    with running(mongo_server.port) as made:
        yield made


@pytest.fixture
def through_proxy(mongo_uri: str, proxy: TcpProxy) -> str:
    """The URI of MongoDB behind the proxy."""
    database = mongo_uri.rsplit("/", 1)[1].split("?")[0]
    return f"mongodb://127.0.0.1:{proxy.port}/{database}?directConnection=true"


def registration(user: str, **changes: Any) -> str:
    data = {"stockId": "s1", "userId": user, "userInfo": {"nickname": NAME}} | changes
    return json.dumps({"id": f"id-{user}", "action": "registerUser", "data": data})


def users(mongo_client: MongoClient, mongo_uri: str) -> list[str]:
    database = mongo_uri.rsplit("/", 1)[1].split("?")[0]
    return sorted(user["user_id"] for user in mongo_client[database].users.find())


def reasons(queues: Queues) -> list[str]:
    notes = [read_note(message["MessageAttributes"]) or {} for message in queues.dead_letters()]
    return sorted(note["reason"] for note in notes)


def writes(mongo_client: MongoClient) -> Counter[str]:
    """How many commands of each kind have written."""
    done = mongo_client.admin.command("serverStatus")["metrics"]["commands"]
    names = ("insert", "update", "findAndModify")
    return Counter({name: int(done[name]["total"]) for name in names})


def refuse_one_write(mongo_uri: str) -> None:
    """Let MongoDB refuse the next write of a user, without being away."""
    client: MongoClient = MongoClient(mongo_uri)
    database = client.get_default_database().name
    client.admin.command(
        {
            "configureFailPoint": "failCommand",
            "mode": {"times": 1},
            "data": {
                "errorCode": 8000,
                "failCommands": ["findAndModify", "insert", "update"],
                # Not the next write of the control plane, which a worker begins at any time.
                "namespace": f"{database}.users",
            },
        }
    )
    client.close()


def failed_runs(mongo_client: MongoClient, mongo_uri: str, id_: str) -> list[int]:
    """The deliveries of a message that failed, as the control database has them."""
    database = mongo_uri.rsplit("/", 1)[1].split("?")[0]
    found = mongo_client[f"{database}_control"].attempts.find_one({"_id": id_}) or {}
    return sorted(found.get("failed", ()))


def heals(proxy: TcpProxy) -> bool:
    try:
        proxy.heal()
    except OSError:
        return False
    return True


def visible_at_once(queues: Queues) -> int:
    return queues.counts()[0]


def test_each_kind_of_message_ends_as_in_a_worker(
    start: Start,
    send: Callable[[str], str],
    queues: Queues,
    mongo_client: MongoClient,
    mongo_uri: str,
) -> None:
    function = start()
    for number in range(4):
        send(registration(f"u{number}"))
    send(registration("u0", money=7))
    send("nonsense")
    unknown = send(registration("u5").replace("registerUser", "nobody"))
    send(registration("u6").replace("nickname", "name"))
    send(json.dumps({"action": "increment", "data": {"input": 1}}))
    notification = {
        "Type": "Notification",
        "TopicArn": "arn:aws:sns:us-east-1:1:t",
        "Message": registration("u9"),
    }
    send(json.dumps(notification))
    event = event_of(queues)
    assert len(event["Records"]) == 10
    # Another release may know the task.
    assert function.invoke(event).returned == [unknown]
    assert users(mongo_client, mongo_uri) == ["u0", "u1", "u2", "u3", "u9"]
    assert queues.counts()[:2] == (0, 1)
    assert reasons(queues) == [
        "registerUser: user_info.nickname: Field required",
        "the body is neither JSON nor base64 of JSON",
        "the message has no id from its producer, so it cannot run once",
        "the user is registered already, with another payload",
    ]
    assert NAME not in function.log_text()


def test_the_outcome_of_a_registration_is_stored_when_the_invocation_ends(
    start: Start,
    send: Callable[[str], str],
    queues: Queues,
    mongo_client: MongoClient,
    mongo_uri: str,
) -> None:
    function = start()
    ids = ["a" * LENGTH, "b" * LENGTH]
    for id_, money in zip(ids, (1, 2), strict=True):
        send(registration("u1", money=money).replace("id-u1", id_))
    assert function.invoke(event_of(queues)).returned == []
    database = mongo_uri.rsplit("/", 1)[1].split("?")[0]
    found = mongo_client[database].outcomes.find({"_id": {"$in": ids}}).sort("_id")
    assert sorted(record["state"] for record in found) == ["conflict", "registered"]


def test_a_batch_of_registrations_is_one_bulk_write(
    start: Start,
    send: Callable[[str], str],
    queues: Queues,
    mongo_client: MongoClient,
    mongo_uri: str,
) -> None:
    function = start()
    for number in range(10):
        send(registration(f"u{number}"))
    event = event_of(queues)
    before = writes(mongo_client)
    assert function.invoke(event).returned == []
    assert writes(mongo_client) - before == {"insert": 1}
    assert len(users(mongo_client, mongo_uri)) == 10
    (line,) = function.metrics()
    assert (line["Ended"], line["Failed"]) == (10, 0)


def test_the_connections_of_the_start_are_used_by_each_invocation(
    start: Start, send: Callable[[str], str], queues: Queues, mongo_client: MongoClient
) -> None:
    def opened() -> int:
        return int(mongo_client.admin.command("serverStatus")["connections"]["totalCreated"])

    function = start()
    before = opened()
    for number in range(3):
        send(registration(f"u{number}"))
        assert function.invoke(event_of(queues)).returned == []
    assert opened() == before
    assert len(function.log_lines("function.ready")) == 1


def test_malformed_events_raise_and_the_sandbox_goes_on(
    start: Start, send: Callable[[str], str], queues: Queues
) -> None:
    function = start()
    assert function.invoke({"nonsense": 1}).kind == "error"
    assert function.invoke(["Records"]).kind == "error"
    assert function.invoke({"Records": []}).returned == []
    bad = send(registration("bad"))
    send(registration("u1"))
    event = event_of(queues)
    for record in event["Records"]:
        if record["messageId"] == bad:
            del record["receiptHandle"]
    assert function.invoke(event).returned == [bad]


def test_a_failure_comes_again_after_its_backoff(
    start: Start, send: Callable[[str], str], queues: Queues, environment: dict[str, str]
) -> None:
    # The lease of the queue is much longer than the backoff.
    function = start(SQS_BACKOFF_BASE="1")
    id_ = send(registration("u1"))
    refuse_one_write(environment["MONGO_URI"])
    assert function.invoke(event_of(queues)).returned == [id_]
    wait_until(lambda: visible_at_once(queues) == 1, 30, "the message after its backoff")
    assert function.invoke(event_of(queues)).returned == []


def test_runs_that_failed_in_a_function_and_in_a_worker_are_attempts_of_one_message(
    start: Start,
    start_worker: StartWorker,
    send: Callable[[str], str],
    queues: Queues,
    environment: dict[str, str],
    mongo_client: MongoClient,
    mongo_uri: str,
) -> None:
    settings = {"SQS_BACKOFF_BASE": "1", "SQS_MAX_ATTEMPTS": "2"}
    function = start(**settings)
    id_ = send(registration("u1"))
    event = event_of(queues)
    # Only now, because the function must get the message first.
    start_worker(environment | settings)
    refuse_one_write(mongo_uri)
    assert function.invoke(event).returned == [id_]
    assert failed_runs(mongo_client, mongo_uri, id_) == [1]
    refuse_one_write(mongo_uri)
    wait_until(queues.is_empty, 60, "an empty queue")
    (reason,) = reasons(queues)
    assert reason.endswith("(failed runs: 2, deliveries: 2)")


def test_while_mongodb_is_away_the_invocation_fails_and_nothing_is_lost(
    start: Start,
    send: Callable[[str], str],
    queues: Queues,
    proxy: TcpProxy,
    through_proxy: str,
    mongo_client: MongoClient,
    mongo_uri: str,
) -> None:
    function = start(MONGO_URI=through_proxy)
    send(registration("u1"))
    assert function.invoke(event_of(queues)).returned == []
    proxy.refuse()
    for number in range(2, 5):
        send(registration(f"u{number}"))
    send("nonsense")
    answer = function.invoke(event_of(queues))
    assert answer.kind == "error"
    assert answer.content["errorType"] == "ServiceAway"
    assert queues.counts()[:2] == (0, 3)
    assert len(reasons(queues)) == 1
    wait_until(lambda: visible_at_once(queues) == 3, 30, "the messages after the first delay")
    assert function.invoke(event_of(queues)).kind == "error"
    proxy.heal()
    wait_until(lambda: visible_at_once(queues) == 3, 30, "the messages after the second delay")
    assert function.invoke(event_of(queues)).returned == []
    assert users(mongo_client, mongo_uri) == ["u1", "u2", "u3", "u4"]
    assert queues.is_empty()


def test_if_mongodb_does_not_answer_the_invocation_ends_before_the_timeout(
    start: Start,
    send: Callable[[str], str],
    queues: Queues,
    proxy: TcpProxy,
    through_proxy: str,
) -> None:
    function = start(MONGO_URI=through_proxy, timeout=10)
    send(registration("u1"))
    assert function.invoke(event_of(queues)).returned == []
    proxy.swallow()
    send("nonsense")
    send(registration("u2"))
    send(registration("u3"))
    answer = function.invoke(event_of(queues))
    assert (answer.kind, answer.content["errorType"]) == ("error", "ServiceAway")
    assert answer.seconds < 10
    assert queues.counts()[:2] == (0, 2)
    assert len(reasons(queues)) == 1
    proxy.heal()
    wait_until(lambda: visible_at_once(queues) == 2, 30, "the messages after their delay")
    event = event_of(queues)
    while (answer := function.invoke(event)).kind == "error":
        wait_until(lambda: visible_at_once(queues) == 2, 20, "the messages after their delay")
        event = event_of(queues)
    assert answer.returned == []


def test_a_sandbox_that_starts_while_mongodb_is_away_hands_its_messages_back(
    start: Start,
    send: Callable[[str], str],
    queues: Queues,
    proxy: TcpProxy,
    through_proxy: str,
) -> None:
    proxy.refuse()
    function = start(MONGO_URI=through_proxy)
    send(registration("u1"))
    assert function.invoke(event_of(queues)).kind == "error"
    proxy.heal()
    wait_until(lambda: visible_at_once(queues) == 1, 30, "the message after its delay")
    assert function.invoke(event_of(queues)).returned == []


def test_a_sandbox_that_was_frozen_while_its_connections_were_cut_works_again(
    start: Start,
    send: Callable[[str], str],
    queues: Queues,
    proxy: TcpProxy,
    through_proxy: str,
    mongo_client: MongoClient,
    mongo_uri: str,
) -> None:
    function = start(MONGO_URI=through_proxy)
    send(registration("u1"))
    assert function.invoke(event_of(queues)).returned == []
    function.freeze()
    proxy.refuse()
    wait_until(lambda: heals(proxy), 30, "the port to be free")
    function.thaw()
    send(registration("u2"))
    event = event_of(queues)
    while (answer := function.invoke(event)).returned:
        # A connection that looked open was dead. The message is delivered again.
        wait_until(lambda: visible_at_once(queues) == 1, 30, "the message")
        event = event_of(queues)
    assert answer.kind == "response"
    assert users(mongo_client, mongo_uri) == ["u1", "u2"]
    assert queues.is_empty()
    assert queues.dead_letters() == []


def test_a_missing_variable_is_named_at_the_start(start: Start) -> None:
    function = start(is_ready=False, AWS_SQS_DLQ_URL="")
    answer = function.invoke({"Records": []})
    assert answer.kind != "response"
    assert "AWS_SQS_DLQ_URL is not set" in function.log_text()


# The secret -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """moto, for its Secrets Manager and its SQS."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def in_moto(aws: str, environment: dict[str, str]) -> Iterator[tuple[dict[str, str], Queues, Any]]:
    """The function's environment in moto, its queues, and a client of Secrets Manager."""
    from devstack import sqs

    client, name = sqs.client_for(aws), f"test-{uuid.uuid4().hex}"
    pair = sqs.create_queues(client, name, visibility_timeout=60, max_receive_count=10)
    queues = Queues(client, aws, pair.url, pair.dead_letter_url)
    secrets = boto3.client(
        "secretsmanager",
        endpoint_url=aws,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    changes = {
        "AWS_ENDPOINT_URL": aws,
        "AWS_SQS_QUEUE_URL": pair.url,
        "AWS_SQS_DLQ_URL": pair.dead_letter_url,
        "MONGO_URI": "",
    }
    yield changes, queues, secrets
    secrets.close()
    client.close()


@pytest.mark.parametrize("form", ["{}", '{{"MONGO_URI": "{}"}}'])
def test_the_uri_of_mongodb_is_read_from_the_secret(
    start: Start, in_moto: Any, mongo_uri: str, mongo_client: MongoClient, form: str
) -> None:
    changes, queues, secrets = in_moto
    secret = secrets.create_secret(Name=uuid.uuid4().hex, SecretString=form.format(mongo_uri))
    function = start(**changes, MONGO_SECRET_ARN=secret["ARN"])
    queues.client.send_message(QueueUrl=queues.url, MessageBody=registration("u1"))
    assert function.invoke(event_of(queues)).returned == []
    assert users(mongo_client, mongo_uri) == ["u1"]
    assert mongo_uri not in function.log_text()


def test_failed_runs_are_recorded_in_the_control_database_of_the_secret(
    start: Start, in_moto: Any, mongo_uri: str, mongo_client: MongoClient
) -> None:
    changes, queues, secrets = in_moto
    secret = secrets.create_secret(Name=uuid.uuid4().hex, SecretString=mongo_uri)
    function = start(**changes, MONGO_SECRET_ARN=secret["ARN"])
    id_ = queues.client.send_message(QueueUrl=queues.url, MessageBody=registration("u1"))[
        "MessageId"
    ]
    refuse_one_write(mongo_uri)
    assert function.invoke(event_of(queues)).returned == [id_]
    assert failed_runs(mongo_client, mongo_uri, id_) == [1]


def test_a_new_password_is_read_from_the_secret_and_no_failure_counts(
    start: Start, in_moto: Any, secured: Deployment
) -> None:
    changes, queues, secrets = in_moto
    database, admin = f"test_{uuid.uuid4().hex}", secured.client().admin
    user = {"pwd": "old", "roles": [{"role": "readWrite", "db": database}]}
    admin.command("createUser", "function", **user)
    uri = secured.uri(database, user=User("function", "old"))
    name = uuid.uuid4().hex
    secret = secrets.create_secret(Name=name, SecretString=uri)
    # A failure would be final.
    function = start(**changes, MONGO_SECRET_ARN=secret["ARN"], SQS_MAX_ATTEMPTS="1")
    queues.client.send_message(QueueUrl=queues.url, MessageBody=registration("u1"))
    assert function.invoke(event_of(queues)).returned == []
    admin.command("updateUser", "function", pwd="new")
    secrets.put_secret_value(SecretId=name, SecretString=uri.replace("old", "new"))
    # Open connections keep their login.
    secured.stop(0)
    secured.start(0)
    secured.wait_for_primary()
    queues.client.send_message(QueueUrl=queues.url, MessageBody=registration("u2"))
    while not queues.is_empty():
        wait_until(lambda: visible_at_once(queues) == 1, 20, "the message")
        function.invoke(event_of(queues))
    assert {user["user_id"] for user in secured.client()[database].users.find()} == {"u1", "u2"}
    assert queues.dead_letters() == []
    admin.command("dropUser", "function")


def test_a_secret_that_cannot_be_read_is_an_outage(start: Start, in_moto: Any) -> None:
    changes, queues, _ = in_moto
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:none-AbCdEf"
    function = start(**changes, MONGO_SECRET_ARN=arn)
    queues.client.send_message(QueueUrl=queues.url, MessageBody=registration("u1"))
    answer = function.invoke(event_of(queues))
    assert answer.kind == "error"
    assert "ResourceNotFoundException" in answer.content["errorMessage"]
    assert queues.counts()[:2] == (0, 1)


def test_a_password_in_a_plain_variable_is_refused(
    start: Start, send: Callable[[str], str], queues: Queues
) -> None:
    function = start(MONGO_URI="mongodb://user:s3cret@127.0.0.1:1/test?replicaSet=rs0")
    send(registration("u1"))
    answer = function.invoke(event_of(queues))
    assert answer.kind == "error"
    assert "MONGO_SECRET_ARN" in answer.content["errorMessage"]
    assert "s3cret" not in function.log_text()


def test_a_sandbox_is_killed_and_what_was_done_stays_done(
    start: Start,
    send: Callable[[str], str],
    queues: Queues,
    mongo_client: MongoClient,
    mongo_uri: str,
) -> None:
    function = start()
    send(registration("u1"))
    assert function.invoke(event_of(queues)).returned == []
    os.kill(function.pid, signal.SIGKILL)
    another = start()
    send(registration("u1"))
    assert another.invoke(event_of(queues)).returned == []
    assert users(mongo_client, mongo_uri) == ["u1"]
    assert queues.dead_letters() == []
