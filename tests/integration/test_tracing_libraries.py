"""OpenTelemetry's and Sentry's own Celery integrations, as they come from the index.

Each message has one span in a trace of its own, with the work inside, whether it runs alone or
shares a job.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def seen_by(library: str, how: str) -> list[dict[str, Any]]:
    """What the library saw of a job, in a process of its own: both patch Celery for good."""
    program = ROOT / "tests" / "probe" / "traced.py"
    ran = subprocess.run(
        [sys.executable, program, library, how],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_opentelemetry_sees_the_work_inside_the_span_of_its_message() -> None:
    write, task = seen_by("opentelemetry", "alone")
    assert (write["name"], write["parent"]) == ("write", "0")
    assert (task["message"], task["parent"], task["state"]) == ("0", None, "SUCCESS")


def test_opentelemetry_sees_a_span_for_each_message_of_a_shared_job() -> None:
    write, *tasks = seen_by("opentelemetry", "shared")
    assert (write["name"], write["parent"]) == ("write", "0")
    assert [(task["message"], task["state"]) for task in tasks] == [
        ("0", "SUCCESS"),
        ("1", "FAILURE"),
        ("2", "SUCCESS"),
    ]
    assert [task["parent"] for task in tasks] == [None] * 3


def test_sentry_sees_the_work_inside_the_transaction_of_its_message() -> None:
    (transaction,) = seen_by("sentry", "alone")
    assert (transaction["kind"], transaction["status"]) == ("transaction", "ok")
    assert "write" in transaction["spans"]


def test_sentry_sees_a_transaction_for_each_message_of_a_shared_job_and_one_error() -> None:
    seen = seen_by("sentry", "shared")
    transactions = [one for one in seen if one["kind"] == "transaction"]
    assert [one["status"] for one in transactions] == ["ok", "internal_error", "ok"]
    assert ["write" in one["spans"] for one in transactions] == [True, False, False]
    assert [one["errors"] for one in seen if one["kind"] == "event"] == [["KeyError"]]


def test_opentelemetry_sees_a_permanent_failure_as_an_error() -> None:
    (task,) = seen_by("opentelemetry", "permanent")
    assert (task["state"], task["status"]) == ("FAILURE", "ERROR")


def test_sentry_sees_a_permanent_failure_as_one_error() -> None:
    seen = seen_by("sentry", "permanent")
    assert [one["errors"] for one in seen if one["kind"] == "event"] == [["KeyError"]]
    assert [one["status"] for one in seen if one["kind"] == "transaction"] == ["internal_error"]


@pytest.mark.slow
def test_beside_opentelemetrys_own_instrumentation_no_span_is_doubled() -> None:
    seen = seen_by("opentelemetry", "beside")
    assert [span["name"] for span in seen] == ["apply_async/job", "write", "run/job"]
    send, write, task = seen
    assert len({span["message"] for span in (send, task)}) == 1
    assert write["parent"] == task["parent"] == send["message"]


@pytest.mark.slow
def test_beside_the_spans_of_the_broker_sentry_sees_one_transaction_and_its_work() -> None:
    seen = seen_by("sentry", "beside")
    (transaction,) = [one for one in seen if one["kind"] == "transaction"]
    assert (transaction["status"], "write" in transaction["spans"]) == ("ok", True)


@pytest.mark.slow
def test_beside_the_spans_of_the_broker_sentry_sees_a_permanent_failure_as_one_error() -> None:
    seen = seen_by("sentry", "beside-permanent")
    assert [one["errors"] for one in seen if one["kind"] == "event"] == [["KeyError"]]


@pytest.mark.slow
def test_beside_the_spans_of_the_broker_a_permanent_failure_is_one_span_with_an_error() -> None:
    send, task = seen_by("opentelemetry", "beside-permanent")
    assert (send["name"], send["status"]) == ("apply_async/permanent", "UNSET")
    assert (task["name"], task["status"]) == ("run/permanent", "ERROR")
