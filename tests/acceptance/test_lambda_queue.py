"""The zip of the Lambda function behind a real queue: a local AWS receives, invokes and deletes."""

import json
import platform
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from pymongo import MongoClient

from devstack import sqs
from infra.function_zip import Target, build
from sqs_broker.rules.dead_letter import read_note
from tests import ministack
from tests.acceptance.function import HANDLER
from tests.ministack import Ministack
from tests.services import Queues, wait_until

# Installs ministack and downloads the wheels of the packages, once.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = {"x86_64": "x86_64", "aarch64": "arm64"}[platform.machine()]

#: Seconds for what the trigger does with a few messages, with a cold start.
SECONDS = 60


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ministack]:
    with ministack.running(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The zip for this Python, which ministack runs it in."""
    target = Target(HERE, ".".join(map(str, sys.version_info[:2])))
    return build(target, tmp_path_factory.mktemp("zip")).path.read_bytes()


@pytest.fixture
def queues(aws: Ministack) -> Iterator[Queues]:
    """A queue and its dead-letter queue, with `maxReceiveCount` 10."""
    client, name = aws.client("sqs"), f"test-{uuid.uuid4().hex[:8]}"
    pair = sqs.create_queues(client, name, visibility_timeout=210, max_receive_count=10)
    yield Queues(client, aws.endpoint_url, pair.url, pair.dead_letter_url)
    client.close()


@pytest.fixture
def secret(aws: Ministack, mongo_uri: str) -> str:
    """The ARN of a secret with the URI of MongoDB."""
    with closing(aws.client("secretsmanager")) as client:
        created = client.create_secret(Name=uuid.uuid4().hex, SecretString=mongo_uri)
    return str(created["ARN"])


@pytest.fixture
def function(aws: Ministack, code: bytes, queues: Queues, secret: str) -> Iterator[str]:
    """The function and its trigger. Gives its name."""
    variables = {
        "AWS_ENDPOINT_URL": aws.endpoint_url,
        "AWS_SQS_QUEUE_URL": queues.url,
        "AWS_SQS_DLQ_URL": queues.dead_letter_url,
        "MONGO_SECRET_ARN": secret,
        "SQS_BACKOFF_BASE": "0.1",
    }
    arn = queues.client.get_queue_attributes(QueueUrl=queues.url, AttributeNames=["QueueArn"])
    with closing(aws.client("lambda")) as client:
        client.create_function(
            FunctionName=queues.name,
            Runtime="python3.13",
            Role="arn:aws:iam::000000000000:role/function",
            Handler=HANDLER,
            Code={"ZipFile": code},
            Timeout=30,
            MemorySize=512,
            Environment={"Variables": variables},
        )
        mapping = client.create_event_source_mapping(
            FunctionName=queues.name,
            EventSourceArn=arn["Attributes"]["QueueArn"],
            BatchSize=10,
            MaximumBatchingWindowInSeconds=1,
            FunctionResponseTypes=["ReportBatchItemFailures"],
        )
        yield queues.name
        client.delete_event_source_mapping(UUID=mapping["UUID"])
        sys.stdout.write(f"--- the log of the function\n{log_of(aws, queues.name)}")


def log_of(aws: Ministack, function: str) -> str:
    group = f"/aws/lambda/{function}"
    lines = []
    with closing(aws.client("logs")) as client, suppress(client.exceptions.ClientError):
        for stream in client.describe_log_streams(logGroupName=group)["logStreams"]:
            events = client.get_log_events(
                logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True
            )["events"]
            lines += [event["message"] for event in events]
    return "\n".join(lines)


def registration(user: str, **changes: Any) -> str:
    data = {"stockId": "s1", "userId": user, "userInfo": {"nickname": "Kim-1f9c"}} | changes
    return json.dumps({"id": f"id-{user}", "action": "registerUser", "data": data})


def test_what_succeeds_is_stored_and_what_cannot_is_dead_lettered_with_its_reason(
    function: str, aws: Ministack, queues: Queues, mongo_client: MongoClient, mongo_uri: str
) -> None:
    bodies = [registration(f"u{number}") for number in range(12)]
    bodies += ["nonsense", registration("u99").replace("nickname", "name")]
    for body in bodies:
        queues.client.send_message(QueueUrl=queues.url, MessageBody=body)
    wait_until(queues.is_empty, SECONDS, "an empty queue")
    database = mongo_client[mongo_uri.rsplit("/", 1)[1].split("?")[0]]
    assert database.users.count_documents({}) == 12
    notes = [read_note(m["MessageAttributes"]) or {} for m in queues.dead_letters()]
    assert sorted((note["reason"], note["deliveries"]) for note in notes) == [
        ("registerUser: user_info.nickname: Field required", 1),
        ("the body is neither JSON nor base64 of JSON", 1),
    ]
    log = log_of(aws, function)
    assert '"_aws"' in log
    assert "Kim-1f9c" not in log


def test_a_message_that_fails_comes_again_alone_and_is_dead_lettered_after_its_attempts(
    function: str, queues: Queues, mongo_client: MongoClient, mongo_uri: str
) -> None:
    database = mongo_client[mongo_uri.rsplit("/", 1)[1].split("?")[0]]
    # MongoDB refuses this user, and no other.
    database.create_collection(
        "users", validator={"user_id": {"$ne": "refused"}}, validationAction="error"
    )
    bodies = [registration("refused"), *(registration(f"u{number}") for number in range(5))]
    queues.client.send_message_batch(
        QueueUrl=queues.url,
        Entries=[{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies)],
    )
    wait_until(queues.is_empty, SECONDS, "an empty queue")
    assert database.users.count_documents({}) == 5
    (dead,) = queues.dead_letters()
    note = read_note(dead["MessageAttributes"]) or {}
    # Each failure was one delivery, and its backoff was much shorter than the visibility timeout.
    assert note["deliveries"] == 3
    assert note["error"] == "OperationFailure(121)"
    assert dead["Body"] == bodies[0]
