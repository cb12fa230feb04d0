"""Importing `app` reads no environment, opens nothing, and leaves a sender's own Celery alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Watches an import from the inside. A module's own source may be read; a socket, a child process
#: and a file of settings may not be touched, and neither may a variable of ours.
WATCH = """
import json, os, sys

seen = {"events": [], "variables": [], "opened": []}

def audit(event, args):
    if event.startswith(("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn")):
        seen["events"].append(event)
    if event == "open" and isinstance(args[0], str):
        seen["opened"].append(args[0])

class Watched(type(os.environ)):
    def __getitem__(self, key):
        seen["variables"].append(key)
        return super().__getitem__(key)

    def __iter__(self):
        # Whoever reads all of them reads ours.
        seen["variables"].append("*")
        return super().__iter__()

# It binds a socket at import, to see whether there is IPv6 (urllib3 2.8 util/connection.py).
import urllib3.util.connection
BEFORE
sys.addaudithook(audit)
os.environ.__class__ = Watched
import MODULE
os.environ.__class__ = Watched.__base__
AFTER
print(json.dumps(seen))
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory but for a `.env` that would make the settings impossible."""
    (tmp_path / ".env").write_text("TASK_TIME_LIMIT=impossible\n")
    return tmp_path


def imported(
    module: str, directory: Path, before: str = "", after: str = "", **environment: str
) -> dict[str, list[str]]:
    """What the import of a module did, in an interpreter of its own."""
    program = WATCH.replace("MODULE", module).replace("BEFORE", before).replace("AFTER", after)
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    seen: dict[str, list[str]] = json.loads(outcome.stdout)
    return seen


MODULES = ["app", "app.celery", "app.tasks", "sqs_broker", "app.models", "app.settings"]


@pytest.mark.parametrize("module", MODULES)
def test_an_import_works_in_an_empty_environment_and_opens_nothing(
    module: str, directory: Path
) -> None:
    seen = imported(module, directory)
    assert seen["events"] == []
    assert [name for name in seen["opened"] if name.endswith(".env")] == []
    assert [name for name in seen["opened"] if Path(name).parent == directory] == []


@pytest.mark.parametrize("module", ["app", "app.tasks"])
def test_an_import_reads_no_variable_of_ours(module: str, directory: Path) -> None:
    from app.settings import Settings

    ours = {name.upper() for name in Settings.model_fields} | {"*"}
    # Values that would make reading them fail.
    impossible = dict.fromkeys(ours - {"*"}, "impossible\x01")
    assert ours & set(imported(module, directory, **impossible)["variables"]) == set()


#: What a program does not need that only makes a message, registers a user, or names an error.
HEAVY = {"celery", "kombu", "billiard", "boto3", "botocore", "pycurl", "opentelemetry"}


@pytest.mark.parametrize("module", ["sqs_broker", "app.errors", "app.messages", "app.registration"])
def test_the_domain_and_the_broker_s_name_load_neither_celery_nor_a_way_to_sqs(
    module: str, directory: Path
) -> None:
    imported(module, directory, after=f"assert not (heavy := {HEAVY} & set(sys.modules)), heavy")


def test_the_rules_need_no_worker_and_no_way_to_sqs_or_mongodb(directory: Path) -> None:
    rules = sorted(file.stem for file in (ROOT / "sqs_broker/rules").glob("*.py"))
    heavy = {
        "celery.worker",
        "celery.bin",
        "boto3",
        "botocore",
        "pycurl",
        "pymongo",
        "sqs_broker.sqs",
    }
    imported(
        ", ".join(f"sqs_broker.rules.{name}" for name in rules if name != "__init__"),
        directory,
        after=f"assert not (found := {heavy} & set(sys.modules)), found",
    )


#: What a producer does not need.
OF_A_WORKER = {
    "flower", "tornado", "pymongo", "bson", "mongoengine", "http.server", "app.outage",
    "app.models", "sqs_broker.worker.consumer", "opentelemetry",
}  # fmt: skip

#: Gets as far as the call to SQS.
DELAY = """
from sqs_broker import SendError
try:
    app.tasks.register_user.delay("s1", "u1", {"nickname": "kim"})
except SendError as exc:
    assert exc.code == "NoCredentialsError", exc
else:
    raise AssertionError("it was sent")
"""

PRODUCER = {
    "AWS_REGION": "us-east-1",
    "AWS_SQS_QUEUE_URL": "http://127.0.0.1:1/1/jobs",
    "AWS_EC2_METADATA_DISABLED": "true",
    "MONGO_URI": "mongodb://127.0.0.1:1/db",
}


@pytest.mark.parametrize("what", ["import", "delay"])
def test_a_producer_loads_only_what_it_needs(directory: Path, what: str) -> None:
    after = f"assert not (heavy := {OF_A_WORKER} & set(sys.modules)), heavy"
    imported(
        "app.tasks",
        directory,
        after=f"{DELAY if what == 'delay' else ''}\n{after}",
        **PRODUCER,
    )


def test_the_first_call_of_a_producer_loads_no_further_library(directory: Path) -> None:
    installed = "{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)"
    imported(
        "app.tasks",
        directory,
        after=f"loaded = {installed}\n{DELAY}\nassert not (new := {installed} - loaded), new",
        **PRODUCER,
    )


def test_a_worker_without_traces_loads_no_tracing_library(directory: Path) -> None:
    imported(
        "app.tasks, app.outage, app.startup, sqs_broker.worker.consumer",
        directory,
        after=f"{DELAY}\nassert 'opentelemetry' not in sys.modules",
        **PRODUCER,
    )


def test_a_program_with_variables_and_a_dotenv_file_of_its_own_can_send(directory: Path) -> None:
    # The `.env` of this directory has a value that no worker would take.
    imported("app.tasks", directory, after=DELAY, **PRODUCER, LOG_LEVEL="trace")


def test_a_worker_without_a_control_plane_needs_no_pymongo(directory: Path) -> None:
    imported(
        "sqs_broker.worker.consumer, sqs_broker.worker.transport, sqs_broker.control.dispatcher",
        directory,
        before="sys.modules['pymongo'] = sys.modules['bson'] = None",
    )


def test_a_control_plane_without_pymongo_says_what_to_install(directory: Path) -> None:
    imported(
        "sqs_broker.control.planes as planes",
        directory,
        before="sys.modules['pymongo'] = sys.modules['bson'] = None",
        after="""
from sqs_broker.errors import ConfigurationError
from sqs_broker.options import ControlOptions
try:
    planes.plane_for(ControlOptions(uri="mongodb://127.0.0.1:1/"))
except ConfigurationError as exc:
    assert "pip install 'celery-sqs-broker[mongodb]'" in str(exc), exc
else:
    raise AssertionError("it was opened")
""",
    )


def test_the_import_leaves_celerys_current_app_alone(directory: Path) -> None:
    imported(
        "app.tasks",
        directory,
        before="from celery import Celery, current_app; theirs = Celery('theirs')",
        after="assert current_app.main == 'theirs'",
    )


def test_a_program_without_an_app_does_not_get_ours(directory: Path) -> None:
    imported("app.tasks", directory, after="import celery; assert celery.current_app.main != 'app'")


def test_the_tasks_do_not_turn_up_in_an_app_of_the_program(directory: Path) -> None:
    # Celery shares a task with every app in the process, unless told not to.
    imported(
        "app.tasks",
        directory,
        before="from celery import Celery; theirs = Celery('theirs')",
        after="assert not {'registerUser', 'increment'} & set(theirs.tasks), set(theirs.tasks)",
    )


def test_a_celeryconfig_of_the_program_is_left_alone(directory: Path) -> None:
    # Celery's default loader would import it by its name.
    (directory / "celeryconfig.py").write_text("raise SystemExit('not ours')\n")
    imported(
        "app.celery",
        directory,
        after="from app.celery import app; assert app.conf.task_acks_late",
        AWS_REGION="us-east-1",
        AWS_SQS_QUEUE_URL="http://127.0.0.1:1/000000000000/sdc-sqs",
        TASK_TIME_LIMIT="30",
    )


def test_the_broker_imports_nothing_of_the_application_around_it(directory: Path) -> None:
    for part in (
        "sqs",
        "control",
        "worker.transport",
        "worker.consumer",
        "tools.checks",
        "tools.doctor",
        "testing",
    ):
        imported(f"sqs_broker.{part}", directory, after="assert 'app' not in sys.modules")


@pytest.mark.parametrize(
    ("dotenv", "missing"),
    [
        ("", "AWS_REGION and AWS_SQS_QUEUE_URL are"),
        ("AWS_REGION=us-east-1", "AWS_SQS_QUEUE_URL is"),
    ],
)
def test_the_first_use_reads_dotenv_and_names_what_is_missing(
    tmp_path: Path, dotenv: str, missing: str
) -> None:
    (tmp_path / ".env").write_text(dotenv)
    program = "from app.tasks import increment; increment.delay(input=1)"
    outcome = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome.returncode != 0
    assert f"{missing} not set" in outcome.stderr.splitlines()[-1]


def test_the_entry_point_of_the_commands_imports_nothing_named_app(directory: Path) -> None:
    # Celery loads it in every project of the environment, one of which may have its own `app`.
    imported("sqs_broker.tools.commands", directory, after="assert 'app' not in sys.modules")
