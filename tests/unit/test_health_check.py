"""`sqs-health` says what `sqs health` says, and costs next to nothing; the examples of
docs/health.md and the templates run it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from botocore.session import Session
from botocore.validate import ParamValidator
from jsonschema import Draft202012Validator

from sqs_broker.machine.health_file import Report
from sqs_broker.worker.health import Vitals, write
from tests.health_checks import HealthCheck, all_of_them, example, installed

ROOT = Path(__file__).parents[2]

#: Seconds of CPU time that one check may need.
CPU = 0.1

#: What a check must not load.
HEAVY = (
    "asyncio",
    "billiard",
    "boto3",
    "botocore",
    "celery",
    "click",
    "kombu",
    "logging",
    "pymongo",
)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The health file of a worker."""
    path = tmp_path / "health.json"
    write(path, Report(True, "polling"), Vitals())
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which the broker is installed, and nothing else is set."""
    return installed(tmp_path)


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Runs a command in that environment."""

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        # Found by the PATH of the environment, and not by that of the test.
        program = shutil.which(command[0], path=environment["PATH"]) or command[0]
        return subprocess.run(
            [program, *command[1:]],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


@pytest.mark.parametrize(
    ("report", "status", "line"),
    [
        (Report(True, "polling"), 0, "healthy: polling"),
        (Report(False, "it \x1b[31mhangs"), 1, "not healthy: it ?[31mhangs"),
        (None, 1, "not healthy: no worker writes {path}"),
    ],
)
def test_it_says_in_one_line_and_by_its_exit_status_whether_a_worker_is_healthy(
    run: Run, path: Path, report: Report | None, status: int, line: str
) -> None:
    if report is None:
        path.unlink()
    else:
        write(path, report, Vitals())
    told = run("sqs-health", str(path))
    assert (told.returncode, told.stdout) == (status, line.format(path=path) + "\n")
    assert told.stderr == ""


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("--file",)])
def test_without_a_file_it_says_how_to_name_one(run: Run, arguments: tuple[str, ...]) -> None:
    told = run("sqs-health", *arguments)
    assert (told.returncode, told.stdout) == (2, "")
    assert "Usage: sqs-health FILE" in told.stderr


def test_it_needs_less_than_a_tenth_of_a_second_of_cpu_time(
    environment: dict[str, str], path: Path
) -> None:
    script = shutil.which("sqs-health", path=environment["PATH"]) or ""

    def cost() -> float:
        pid = os.posix_spawn(
            script,
            [script, str(path)],
            environment,
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
        )
        _, status, usage = os.wait4(pid, 0)
        assert status == 0
        return usage.ru_utime + usage.ru_stime

    # What else the machine does makes single runs dearer.
    assert min(cost() for _ in range(5)) < CPU


def test_it_loads_next_to_nothing() -> None:
    program = "import sys, sqs_broker.tools.health; print(*sys.modules)"
    loaded = subprocess.run(
        # Isolated, so that no other distribution of the environment adds to it.
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [name for name in HEAVY if name in loaded] == []
    assert {name for name in loaded if name.startswith("sqs_broker")} == {
        "sqs_broker",
        "sqs_broker.machine",
        "sqs_broker.machine.health_file",
        "sqs_broker.tools",
        "sqs_broker.tools.health",
    }


# The examples and the templates

CHECKS = list(all_of_them())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.where)
def test_each_health_check_runs_the_command_on_the_file_that_its_worker_writes(
    check: HealthCheck,
) -> None:
    # tests/acceptance/test_health_checks.py runs them beside a worker.
    assert check.command == ("sqs-health", check.file)


def test_kubernetes_accepts_the_pod_of_the_page() -> None:
    schema = json.loads((ROOT / "tests" / "kubernetes" / "schema-1.34.json").read_text())
    pod = yaml.safe_load(example("yaml"))
    validator = Draft202012Validator(
        {"$ref": "#/$defs/io.k8s.api.core.v1.PodSpec", "$defs": schema["$defs"]}
    )
    assert [error.message for error in validator.iter_errors(pod)] == []
    pod["containers"][0]["livenessProbe"]["exec"]["comand"] = []
    assert list(validator.iter_errors(pod))


def test_ecs_accepts_the_container_of_the_page() -> None:
    shape = Session().get_service_model("ecs").shape_for("ContainerDefinition")
    container = json.loads(example("json"))
    assert ParamValidator().validate(container, shape).generate_report() == ""
    check = container["healthCheck"]
    # https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_HealthCheck.html
    for name, least, most in (
        ("interval", 5, 300), ("timeout", 2, 60), ("retries", 1, 10), ("startPeriod", 0, 300),
    ):  # fmt: skip
        assert least <= check[name] <= most
    container["healthCheck"]["retry"] = 3
    assert "retry" in ParamValidator().validate(container, shape).generate_report()


def test_the_unit_of_the_page_is_one_of_systemd(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is missing")
    unit = tmp_path / "worker.service"
    unit.write_text(example("ini").replace("/srv/shop/.venv/bin/celery", sys.executable))
    verified = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=30
    )
    told = [line for line in verified.stderr.splitlines() if "worker.service" in line]
    assert told == []


@pytest.mark.parametrize("setting", ["KillMode=mixed", "TimeoutStopSec=120", "Restart=on-failure"])
def test_the_unit_of_the_page_lets_tasks_finish_and_starts_the_worker_again(setting: str) -> None:
    assert setting in example("ini").splitlines()
