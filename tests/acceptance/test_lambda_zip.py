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
    assert built.zipped < 16 * 1024 * 1024
    assert built.unzipped < 45 * 1024 * 1024
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
