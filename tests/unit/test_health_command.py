"""`celery -A app sqs health` of this application."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from app.celery import app
from app.settings import get_settings
from sqs_broker.machine.health_file import Report
from sqs_broker.tools.commands import sqs
from sqs_broker.worker.health import Vitals, write


def run(health_file: Path | None) -> Result:
    conf = SimpleNamespace(
        broker_transport="sqs_broker:Transport",
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
            "health_file": None if health_file is None else str(health_file),
        },
    )
    # The commands are those that the app has given to `install`.
    obj = SimpleNamespace(app=SimpleNamespace(conf=conf, sqs_commands=app.sqs_commands))
    return CliRunner().invoke(sqs, ["health"], obj=obj)


def test_without_the_variable_the_command_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKER_HEALTH_FILE", raising=False)
    get_settings.cache_clear()
    ran = run(None)
    assert ran.exit_code == 1
    assert "WORKER_HEALTH_FILE is not set" in ran.stderr


def test_with_it_the_command_is_that_of_the_broker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "health.json"
    monkeypatch.setenv("WORKER_HEALTH_FILE", str(path))
    get_settings.cache_clear()
    assert run(path).exit_code == 1
    write(path, Report(True, "polling"), Vitals())
    ran = run(path)
    assert (ran.exit_code, ran.stdout) == (0, "healthy: polling\n")
