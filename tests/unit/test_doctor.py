"""`sqs doctor` of any project: the broker's checks, then those that the project gave to install."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from app.settings import Settings
from sqs_broker import ConfigurationError, install
from sqs_broker.limits import LONGEST_RETENTION
from sqs_broker.testing import Clock, FakeSqs
from sqs_broker.testing.fake_sqs import EPOCH
from sqs_broker.tools.checks import Finding, Subject
from sqs_broker.tools.commands import sqs

ROOT = Path(__file__).parents[2]

#: A server that is not Amazon's, so that STS is not called.
ELSEWHERE = "http://127.0.0.1:1"

Doctor = Callable[..., Result]


def disk(celery_app: Celery) -> Iterator[Finding]:
    """A check of the project."""
    yield Subject("disk", "space").fault(f"{celery_app.main} has none", "Buy a larger one.")


def age(celery_app: Celery) -> list[Finding]:
    """Another one, that finds no fault."""
    return [Subject("disk", "age").ok("a year")]


def pause(celery_app: Celery) -> list[Finding]:
    """One that finds what somebody wants so."""
    return [Subject("jobs", "paused").warning("deploy", "Resume it.")]


@pytest.fixture
def fake() -> FakeSqs:
    """A queue as the options want it, of a server with the time of this machine."""
    time = Clock()
    made = FakeSqs(time)
    time.advance((datetime.now(UTC) - EPOCH).total_seconds())
    made.create_queue("dead", MessageRetentionPeriod=str(LONGEST_RETENTION))
    made.create_queue("jobs", visibility_timeout=60, dead_letters="dead")
    return made


@pytest.fixture
def doctor(fake: FakeSqs) -> Doctor:
    """Runs the command in a project that has these checks; options may be changed."""

    def run(*arguments: str, checks: Any = (), **changes: Any) -> Result:
        celery_app = Celery("mine", set_as_current=False)
        install(celery_app, checks=checks)
        options = fake.transport_options(endpoint_url=ELSEWHERE, **changes)
        celery_app.conf.broker_transport_options = options
        obj = SimpleNamespace(app=celery_app)
        return CliRunner().invoke(sqs, ["doctor", *arguments], obj=obj)

    return run


def found(ran: Result, level: str) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    return [(line["subject"], line["check"]) for line in lines if line["level"] == level]


def test_a_project_without_checks_of_its_own_has_the_command(doctor: Doctor) -> None:
    ran = doctor()
    assert ran.exit_code == 0, ran.output
    assert "0 faults" in ran.stderr
    assert "ok     jobs: redrive policy" in ran.stdout


def test_a_projects_checks_run_after_the_brokers_and_their_faults_count(doctor: Doctor) -> None:
    names = [f"{__name__}:{check.__name__}" for check in (disk, age)]
    ran = doctor("--json", checks=names)
    assert ran.exit_code == 1
    assert found(ran, "fault") == [("disk", "space")]
    *others, first, second = map(json.loads, ran.stdout.splitlines())
    assert first["text"] == "mine has none"
    assert (second["subject"], second["check"]) == ("disk", "age")
    assert others


def test_a_warning_is_shown_with_what_ends_it_and_is_no_fault(doctor: Doctor) -> None:
    ran = doctor(checks=[f"{__name__}:{pause.__name__}"])
    assert ran.exit_code == 0
    assert "warn   jobs: paused: deploy\n       → Resume it." in ran.stdout
    assert "0 faults, 1 warning," in ran.stderr


def test_options_that_cannot_be_read_are_the_only_finding(doctor: Doctor) -> None:
    ran = doctor("--json", region="", checks=[f"{__name__}:{disk.__name__}"])
    assert ran.exit_code == 1
    assert found(ran, "fault") == [("settings", "complete")]
    assert len(ran.stdout.splitlines()) == 1
    assert "`region`" in ran.stdout


def test_a_task_that_cannot_be_configured_is_a_fault(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ConfigurationError("task mine: max_attempts must be at least 1")

    monkeypatch.setattr("celery.loaders.base.BaseLoader.import_default_modules", fail)
    assert found(doctor("--json"), "fault") == [("settings", "tasks")]
    assert "→ Change this setting, then run this command again." in doctor().stdout


def test_a_queue_without_a_dead_letter_url_is_a_fault(doctor: Doctor, fake: FakeSqs) -> None:
    queues = {"jobs": {"url": fake.options().queue("jobs").url}}
    ran = doctor("--json", predefined_queues=queues)
    assert found(ran, "fault") == [("jobs", "dead-letter queue")]
    assert "None" not in ran.stdout


def test_without_any_dead_letter_queue_the_fix_asks_for_one(doctor: Doctor, fake: FakeSqs) -> None:
    url = fake.create_queue("alone", visibility_timeout=60)
    ran = doctor("--json", predefined_queues={"alone": {"url": url}})
    assert found(ran, "fault") == [("alone", "redrive policy"), ("alone", "dead-letter queue")]
    assert "a dead-letter queue as its target" in ran.stdout


def test_a_loop_of_dead_letters_in_the_options_is_one_fault(doctor: Doctor, fake: FakeSqs) -> None:
    url = fake.options().queue("jobs").url
    ran = doctor("--json", predefined_queues={"jobs": {"url": url, "dead_letter_url": url}})
    assert [each for each in found(ran, "fault") if "letters" in each[1]] == [
        ("settings", "dead letters")
    ]
    assert "dead_letter_url: dead letters go round in a loop" in ran.stdout


def test_the_brokers_texts_name_its_options_and_not_the_applications_variables() -> None:
    variables = [name.upper() for name in Settings.model_fields]
    wrong = re.compile(rf"\b({'|'.join(variables)})\b")
    texts = {path: path.read_text() for path in (ROOT / "sqs_broker").rglob("*.py")}
    assert {path: names for path, text in texts.items() if (names := wrong.findall(text))} == {}


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://user:x@users.cluster-c1.eu-west-1.docdb.amazonaws.com:27017/?tls=true",
        "mongodb://user:x@a.c1.us-east-1.docdb.amazonaws.com,b.c1.us-east-1.docdb.amazonaws.com/u",
        "mongodb+srv://user:x@users-1.eu-west-1.docdb-elastic.amazonaws.com",
        "mongodb://user:x@Users.c1.cn-north-1.docdb.amazonaws.com.cn:27017",
    ],
)
def test_documentdb_is_refused_by_its_name_before_any_call(doctor: Doctor, uri: str) -> None:
    done = doctor("--json", control={"database_uri": uri})
    findings = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    (finding,) = [each for each in findings if each["level"] == "fault"]
    assert done.exit_code == 1
    assert finding["text"].startswith("Amazon DocumentDB has no capped collections")
    assert "Atlas" in finding["fix"]
