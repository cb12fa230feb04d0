"""The zip of the Lambda function on the queue and behind the trigger of the templates: a local AWS
deploys them, receives, invokes and deletes."""

import json
import platform
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from pymongo import MongoClient

from infra.function_zip import Target, build
from sqs_broker.rules.dead_letter import read_note
from tests import ministack
from tests.ministack import Ministack
from tests.services import Queues, wait_until

# Installs ministack and downloads the wheels of the packages, once.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = {"x86_64": "x86_64", "aarch64": "arm64"}[platform.machine()]

#: Seconds for what the trigger does with a few messages, with cold starts on a busy machine, one of
#: which may end the function: its messages are then hidden for 210 s.
SECONDS = 300


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
def stage() -> str:
    """A name for the stacks of a test."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def queues(aws: Ministack, stage: str) -> Iterator[Queues]:
    """The queues of infra/queue.yaml, for a function."""
    made = aws.stack(f"{stage}-queue", "queue.yaml", QueueName=stage, Consumer="function")
    with closing(aws.client("sqs")) as client:
        for url in (made["QueueUrl"], made["DeadLetterQueueUrl"]):
            # A look into an empty queue would take as long as a long poll.
            client.set_queue_attributes(
                QueueUrl=url, Attributes={"ReceiveMessageWaitTimeSeconds": "0"}
            )
        yield Queues(client, aws.endpoint_url, made["QueueUrl"], made["DeadLetterQueueUrl"])


@pytest.fixture(scope="module")
def bucket(aws: Ministack, code: bytes) -> str:
    """A bucket with the zip."""
    name = f"code-{uuid.uuid4().hex[:8]}"
    with closing(aws.client("s3")) as client:
        client.create_bucket(Bucket=name)
        client.put_object(Bucket=name, Key="function.zip", Body=code)
    return name


@pytest.fixture
def secret(aws: Ministack, mongo_uri: str) -> str:
    """The ARN of a secret with the URI of MongoDB."""
    with closing(aws.client("secretsmanager")) as client:
        created = client.create_secret(Name=uuid.uuid4().hex, SecretString=mongo_uri)
    return str(created["ARN"])


@pytest.fixture
def function(aws: Ministack, stage: str, bucket: str, queues: Queues, secret: str) -> Iterator[str]:
    """The function and its trigger, of infra/function.yaml. Gives its name."""
    made = aws.stack(
        f"{stage}-function",
        "function.yaml",
        QueueStack=f"{stage}-queue",
        CodeBucket=bucket,
        CodeKey="function.zip",
        MongoSecretArn=secret,
        BatchingWindow="1",
    )
    name = made["FunctionName"]
    with closing(aws.client("lambda")) as client:
        given = client.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
        # What stands in for AWS, and backoffs that the test can wait for.
        more = {"AWS_ENDPOINT_URL": aws.endpoint_url, "SQS_BACKOFF_BASE": "0.1"}
        client.update_function_configuration(
            FunctionName=name, Environment={"Variables": given | more}
        )
        (mapping,) = client.list_event_source_mappings(FunctionName=name)["EventSourceMappings"]
        # ministack keeps a template's parameter as text, and then compares it with a number.
        concurrency = int(mapping["ScalingConfig"]["MaximumConcurrency"])
        client.update_event_source_mapping(
            UUID=mapping["UUID"], ScalingConfig={"MaximumConcurrency": concurrency}
        )
        yield name
        client.delete_event_source_mapping(UUID=mapping["UUID"])
        sys.stdout.write(f"--- the log of the function\n{log_of(aws, name)}")


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


def send(queues: Queues, bodies: list[str]) -> None:
    """In one call: each message that arrives alone costs ministack a cold start."""
    queues.client.send_message_batch(
        QueueUrl=queues.url,
        Entries=[{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies)],
    )


def registration(user: str, **changes: Any) -> str:
    data = {"stockId": "s1", "userId": user, "userInfo": {"nickname": "Kim-1f9c"}} | changes
    return json.dumps({"id": f"id-{user}", "action": "registerUser", "data": data})


def test_what_succeeds_is_stored_and_what_cannot_is_dead_lettered_with_its_reason(
    function: str, aws: Ministack, queues: Queues, mongo_client: MongoClient, mongo_uri: str
) -> None:
    bodies = [registration(f"u{number}") for number in range(12)]
    bodies += ["nonsense", registration("u99").replace("nickname", "name")]
    send(queues, bodies[:7])
    send(queues, bodies[7:])
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
    send(queues, bodies)
    wait_until(queues.is_empty, SECONDS, "an empty queue")
    assert database.users.count_documents({}) == 5
    (dead,) = queues.dead_letters()
    note = read_note(dead["MessageAttributes"]) or {}
    # Each failure was one delivery, and its backoff was much shorter than the visibility timeout.
    assert note["deliveries"] == 3
    assert note["error"] == "OperationFailure(121)"
    assert dead["Body"] == bodies[0]
