"""The zip files of the Lambda function: unpacked into an empty directory, they are all it needs."""

import json
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from pymongo import MongoClient

from infra import function_zip
from infra.function_zip import ARCHITECTURES, PYTHON, Target, build
from sqs_broker.rules.dead_letter import read_note
from tests.acceptance.function import Sandbox, event_of, sandbox
from tests.services import Queues

# Downloads the wheels of the packages, once.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: The modules of AWS's runtime client, which Lambda has beside the function.
CLIENT = ("awslambdaric", "runtime_client", "snapshot_restore_py", "simplejson")

HERE = {"x86_64": "x86_64", "aarch64": "arm64"}[platform.machine()]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The function for this machine and this Python, in a directory of its own."""
    directory = tmp_path_factory.mktemp("function")
    target = Target(HERE, ".".join(map(str, sys.version_info[:2])))
    built = build(target, directory)
    with zipfile.ZipFile(built.path) as archive:
        archive.extractall(directory / "task")
    return directory / "task"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the runtime client alone."""
    directory = tmp_path_factory.mktemp("client")
    for name in CLIENT:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin)
        source = source.parent if source.name == "__init__.py" else source
        (directory / source.name).symlink_to(source)
    return directory


@pytest.fixture
def function(
    unpacked: Path, client: Path, environment: dict[str, str], tmp_path: Path
) -> Iterator[Sandbox]:
    """The unpacked function, in a Python that has no other packages."""
    only = environment | {"PYTHONPATH": f"{unpacked}:{client}", "PYTHONDONTWRITEBYTECODE": "1"}
    # `-S`: without the packages of this environment.
    with sandbox(tmp_path, only, root=unpacked, python=(sys.executable, "-S")) as made:
        made.wait_until_ready()
        yield made


def send(queues: Queues, body: str) -> str:
    return queues.client.send_message(QueueUrl=queues.url, MessageBody=body)["MessageId"]


def registration(user: str) -> str:
    data = {"stockId": "s1", "userId": user, "userInfo": {"nickname": "Kim"}}
    return json.dumps({"id": f"id-{user}", "action": "registerUser", "data": data})


def test_the_unpacked_zip_handles_events_without_any_other_package(
    function: Sandbox, queues: Queues, mongo_client: MongoClient, mongo_uri: str
) -> None:
    for body in (registration("u1"), registration("u2"), "nonsense"):
        send(queues, body)
    send(queues, json.dumps({"id": "n1", "action": "increment", "data": {"input": 1}}))
    assert function.invoke(event_of(queues)).returned == []
    assert function.invoke({"nonsense": 1}).kind == "error"
    database = mongo_client[mongo_uri.rsplit("/", 1)[1].split("?")[0]]
    assert {user["user_id"] for user in database.users.find()} == {"u1", "u2"}
    assert database.increments.count_documents({}) == 1
    assert queues.is_empty()
    (dead,) = queues.dead_letters()
    assert (read_note(dead["MessageAttributes"]) or {})["reason"].startswith("the body is neither")


#: The example of a standard queue's event:
#: https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html
DOCUMENTED = {
    "Records": [
        {
            "messageId": id_,
            "receiptHandle": handle,
            "body": "Test message.",
            "attributes": {
                "ApproximateReceiveCount": "1",
                "SentTimestamp": sent,
                "SenderId": "AIDAIENQZJOLO23YVJ4VO",
                "ApproximateFirstReceiveTimestamp": received,
            },
            "messageAttributes": {
                "myAttribute": {
                    "stringValue": "myValue",
                    "stringListValues": [],
                    "binaryListValues": [],
                    "dataType": "String",
                }
            },
            "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:us-east-2:123456789012:my-queue",
            "awsRegion": "us-east-2",
        }
        for id_, handle, sent, received in (
            (
                "059f36b4-87a3-44ab-83d2-661975830a7d",
                "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a...",
                "1545082649183",
                "1545082649185",
            ),
            (
                "2e1424d4-f796-459a-8184-9c92662be6da",
                "AQEBzWwaftRI0KuVm4tP+/7q1rGgNqicHq...",
                "1545082650636",
                "1545082650649",
            ),
        )
    ]
}


def test_the_documented_event_is_understood(function: Sandbox, queues: Queues) -> None:
    # Of a queue that is not configured, no message may be deleted.
    ids = [record["messageId"] for record in DOCUMENTED["Records"]]
    assert function.invoke(DOCUMENTED).returned == ids
    ours = [
        record | {"eventSourceARN": f"arn:aws:sqs:us-east-1:000000000000:{queues.name}"}
        for record in DOCUMENTED["Records"]
    ]
    # The messages cannot be deleted by these receipt handles, so Lambda does it.
    assert function.invoke({"Records": ours}).returned == []
    dead = queues.dead_letters()
    assert [message["Body"] for message in dead] == ["Test message.", "Test message."]
    assert {message["MessageAttributes"]["myAttribute"]["StringValue"] for message in dead} == {
        "myValue"
    }


def test_ten_records_of_every_kind_end_as_in_a_worker(
    function: Sandbox, queues: Queues, mongo_client: MongoClient, mongo_uri: str
) -> None:
    notification = {
        "Type": "Notification",
        "TopicArn": "arn:aws:sns:us-east-1:1:t",
        "Message": registration("u9"),
    }
    bodies = [registration(f"u{number}") for number in range(3)]
    bodies += [registration("u0").replace("Kim", "Lee"), "nonsense", json.dumps(notification)]
    bodies += [registration("u5").replace("nickname", "name")]
    bodies += [json.dumps({"id": "n1", "action": "increment", "data": {"input": 1}})]
    bodies += [json.dumps({"action": "increment", "data": {"input": 1}})]
    for body in bodies:
        send(queues, body)
    unknown = send(queues, registration("u6").replace("registerUser", "nobody"))
    given = event_of(queues)
    assert len(given["Records"]) == 10
    for record in given["Records"]:
        # Groups of a standard queue have no order. The local server takes no dead letters of them.
        if record["body"] in (bodies[1], bodies[2]) or record["messageId"] == unknown:
            record["attributes"] |= {"MessageGroupId": "g", "SequenceNumber": "1884949646046769"}
    assert function.invoke(given).returned == [unknown]
    database = mongo_client[mongo_uri.rsplit("/", 1)[1].split("?")[0]]
    assert {user["user_id"] for user in database.users.find()} == {"u0", "u1", "u2", "u9"}
    assert database.increments.count_documents({}) == 1
    reasons = [
        read_note(message["MessageAttributes"])["reason"] for message in queues.dead_letters()
    ]
    assert sorted(reasons) == [
        "registerUser: user_info.nickname: Field required",
        "the body is neither JSON nor base64 of JSON",
        "the message has no id from its producer, so it cannot run once",
        "the user is registered already, with another payload",
    ]


def test_no_module_is_compiled_in_the_sandbox(unpacked: Path) -> None:
    sources = {path.relative_to(unpacked) for path in unpacked.rglob("*.py")}
    compiled = {
        path.parent.parent.relative_to(unpacked) / f"{path.name.split('.')[0]}.py"
        for path in unpacked.rglob("*.pyc")
    }
    assert sources == compiled


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, function_zip.Built]:
    """The zip files that `make lambda` makes."""
    try:
        function_zip.find_python(PYTHON)
    except SystemExit as exc:
        pytest.skip(str(exc))
    directory = tmp_path_factory.mktemp("dist")
    return {name: build(Target(name), directory) for name in ARCHITECTURES}


#: Prints the CPU time of the imports of a cold start, in seconds.
COLD_START = """
import resource
import app.lambda_handler, app.tasks
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""


def cpu_of_imports(task: Path) -> float:
    """The least of three, because nothing makes it smaller than it is."""
    command = [sys.executable, "-S", "-c", COLD_START]
    environment = {"PYTHONPATH": str(task), "PYTHONDONTWRITEBYTECODE": "1"}
    return min(
        float(subprocess.check_output(command, cwd=task, env=environment, timeout=60))
        for _ in range(3)
    )


@pytest.mark.alone
def test_the_bytecode_halves_the_cpu_time_of_a_cold_start(unpacked: Path, tmp_path: Path) -> None:
    sources = tmp_path / "task"
    shutil.copytree(unpacked, sources, ignore=shutil.ignore_patterns("__pycache__"))
    assert cpu_of_imports(unpacked) < cpu_of_imports(sources) / 2


def test_the_same_sources_make_the_same_bytes(
    real: dict[str, function_zip.Built], tmp_path: Path
) -> None:
    for name, built in real.items():
        assert build(Target(name), tmp_path).path.read_bytes() == built.path.read_bytes()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_zip_is_within_the_limits_and_for_its_processor(
    real: dict[str, function_zip.Built], name: str
) -> None:
    built = real[name]
    assert built.zipped < 18 * 1024 * 1024
    assert built.unzipped < 50 * 1024 * 1024
    with zipfile.ZipFile(built.path) as archive:
        names = archive.namelist()
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    extensions = [entry for entry in names if entry.endswith(".so")]
    assert extensions
    tags = (f"-313-{ARCHITECTURES[name]}-", ".abi3.")
    assert [entry for entry in extensions if not any(tag in entry for tag in tags)] == []
    assert [
        entry for entry in names if entry.endswith(".pyc") and ".cpython-313." not in entry
    ] == []
    assert names == sorted(names)
