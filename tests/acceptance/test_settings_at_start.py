"""Settings that people get wrong: each program says so in one line, and exits with status 1."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.acceptance.test_start import AS_ANY_USER
from tests.acceptance.worker import ROOT

#: For a program that does not start to say so.
SECONDS = 60

#: Nobody listens there: each fault is said before the first request.
NOBODY = "http://127.0.0.1:9"

COMMANDS = [
    pytest.param(["worker"], id="worker"),
    pytest.param(["flower"], id="flower", marks=pytest.mark.slow),
    pytest.param(["sqs", "queues"], id="sqs queues", marks=pytest.mark.slow),
    pytest.param(["sqs", "dlq", "list"], id="sqs dlq list", marks=pytest.mark.slow),
]
FAULTS = [
    ("AWS_REGION", "us-east-1\r"),
    ("AWS_SQS_QUEUE_URL", f"{NOBODY}/1/jobs\r"),
    ("AWS_SECRET_ACCESS_KEY", "hunter2\r"),
    ("AWS_PROFILE", "hunter2"),
    ("AWS_CONFIG_FILE", "/etc/passwd"),
]


@pytest.fixture
def complete(tmp_path: Path) -> dict[str, str]:
    """An environment that lacks nothing."""
    return AS_ANY_USER | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": NOBODY,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_SQS_QUEUE_URL": f"{NOBODY}/1/jobs",
        "AWS_SQS_DLQ_URL": f"{NOBODY}/1/jobs-dlq",
        "MONGO_URI": "mongodb://127.0.0.1:9/app",
    }


def run(
    environment: Mapping[str, str], directory: Path, *command: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, timeout=SECONDS
    )


def line_of(environment: Mapping[str, str], directory: Path, command: list[str]) -> str:
    ran = run(environment, directory, "celery", "-A", "app", *command)
    assert ran.returncode == 1, ran.stderr
    [line] = (ran.stdout + ran.stderr).strip().splitlines()
    return line


@pytest.mark.parametrize(("variable", "value"), FAULTS, ids=[name for name, _ in FAULTS])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_setting_of_aws_is_one_line_that_names_the_variable(
    complete: dict[str, str], tmp_path: Path, command: list[str], variable: str, value: str
) -> None:
    line = line_of(complete | {variable: value}, tmp_path, command)

    assert variable in line
    assert "hunter2" not in line


@pytest.mark.parametrize(("variable", "value"), FAULTS, ids=[name for name, _ in FAULTS])
def test_a_producer_gets_it_as_a_configuration_error(
    complete: dict[str, str], tmp_path: Path, variable: str, value: str
) -> None:
    program = (
        "from sqs_broker.errors import ConfigurationError\n"
        "from app.tasks import increment\n"
        "try: increment.delay(input=1)\n"
        "except ConfigurationError as exc: print(exc.message)"
    )

    ran = run(complete | {variable: value}, tmp_path, sys.executable, "-c", program)

    assert (ran.returncode, ran.stderr) == (0, "")
    [line] = ran.stdout.splitlines()
    assert variable in line


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["worker"], "AWS_REGION, AWS_SQS_QUEUE_URL, AWS_SQS_DLQ_URL and MONGO_URI are not set."),
        (["flower"], "AWS_REGION, AWS_SQS_QUEUE_URL and MONGO_URI are not set."),
        (["sqs", "queues"], "AWS_REGION and AWS_SQS_QUEUE_URL are not set."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_all_missing_variables_are_named_at_once(
    complete: dict[str, str], tmp_path: Path, command: list[str], missing: str
) -> None:
    environment = {k: v for k, v in complete.items() if not k.startswith(("AWS_", "MONGO_"))}

    line = line_of(environment, tmp_path, command)

    assert missing in line


def test_the_doctor_names_all_missing_variables_of_a_worker(
    complete: dict[str, str], tmp_path: Path
) -> None:
    environment = {k: v for k, v in complete.items() if not k.startswith(("AWS_", "MONGO_"))}

    ran = run(environment, tmp_path, "celery", "-A", "app", "sqs", "doctor")

    assert ran.returncode == 1
    assert "AWS_REGION, AWS_SQS_QUEUE_URL, AWS_SQS_DLQ_URL and MONGO_URI" in ran.stdout


def test_a_command_without_credentials_says_so(complete: dict[str, str], tmp_path: Path) -> None:
    environment = {k: v for k, v in complete.items() if not k.endswith(("KEY_ID", "ACCESS_KEY"))}
    environment["AWS_EC2_METADATA_DISABLED"] = "true"

    line = line_of(environment, tmp_path, ["sqs", "dlq", "list"])

    assert "no credentials" in line
    assert "AWS_PROFILE" in line
