"""Health: what is seen of a worker becomes one line, and a file that nobody writes says nothing."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from sqs_broker.machine.health_file import STALE, Report, read
from sqs_broker.rules.policy import LONGEST_WAIT
from sqs_broker.tools.commands.health import command
from sqs_broker.worker.health import STALL, STUCK, Judge, Patience, Vitals, write

POLLING = Vitals(is_polling=True)
BUSY = Vitals(running=["job", "job"], held=22)


def judged(vitals: Vitals) -> Report:
    return Judge()(vitals, now=0)


@pytest.mark.parametrize(
    ("vitals", "text"),
    [
        (POLLING, "polling"),
        (BUSY, "busy with 2 tasks"),
        (Vitals(), "waiting"),
        (Vitals(pauses=["MongoDB is unavailable"]), "paused: MongoDB is unavailable"),
        # What fails of an outage runs for a while yet.
        (
            Vitals(pauses=["MongoDB is unavailable"], running=["job"]),
            "paused: MongoDB is unavailable",
        ),
        (Vitals(is_polling=True, silence=STALL), "polling"),
        # In the solo pool a task is on the loop.
        (Vitals(silence=600, is_solo=True, running=["job"]), "busy with 1 tasks"),
    ],
)
def test_a_worker_that_does_its_work_is_healthy(vitals: Vitals, text: str) -> None:
    assert judged(vitals) == Report(True, text)


@pytest.mark.parametrize(
    ("vitals", "text"),
    [
        (Vitals(silence=61, is_polling=True), "the event loop has not responded for 61 s"),
        (Vitals(silence=61, running=["job"]), "the event loop has not responded for 61 s"),
        (Vitals(silence=61, is_solo=True), "the event loop has not responded for 61 s"),
        (
            Vitals(silence=61, pauses=["MongoDB is unavailable"]),
            "the event loop has not responded for 61 s",
        ),
        (Vitals(overrun=["job"], is_polling=True), "past the hard time limit: job"),
        (Vitals(faults=["the receiver of jobs has ended"]), "the receiver of jobs has ended"),
        (
            Vitals(silence=61, faults=["the receiver of jobs has ended"]),
            "the event loop has not responded for 61 s; the receiver of jobs has ended",
        ),
    ],
)
def test_a_stall_is_not_healthy_and_is_named(vitals: Vitals, text: str) -> None:
    assert judged(vitals) == Report(False, text)


@pytest.mark.parametrize(
    ("vitals", "patience", "text"),
    [
        (
            Vitals(is_due=True),
            STALL,
            "the worker has room for messages but sends no receive call",
        ),
        (Vitals(held=22), STUCK * LONGEST_WAIT, "22 messages wait, but no task starts"),
    ],
)
def test_what_may_be_for_an_instant_is_a_fault_where_it_lasts(
    vitals: Vitals, patience: float, text: str
) -> None:
    judge = Judge()
    assert judge(vitals, 1_000).healthy
    assert judge(vitals, 1_000 + patience).healthy
    assert judge(vitals, 1_001 + patience) == Report(False, text)
    # Once it was otherwise, its time begins anew.
    assert judge(Vitals(is_polling=True), 1_002 + patience).healthy
    assert judge(vitals, 1_003 + patience).healthy


@pytest.mark.parametrize("longest_wait", [30, LONGEST_WAIT])
def test_a_pool_that_is_stuck_is_seen_before_what_waits_for_it_is_handed_back(
    longest_wait: float,
) -> None:
    judge = Judge(longest_wait)
    assert judge(Vitals(held=22), 0).healthy
    assert not judge(Vitals(held=22), 0.75 * longest_wait).healthy


def test_tasks_that_start_and_end_between_two_looks_are_work_that_is_done() -> None:
    judge = Judge()
    for turn in range(100):
        assert judge(Vitals(held=22, started=turn + 1), now=turn * 60).healthy


# Too long


def test_a_worker_may_be_unhealthy_for_its_seconds_and_no_longer() -> None:
    patience, ill, well = Patience(300), Report(False, "it hangs"), Report(True, "polling")
    assert not patience.is_over(ill, 1_000)
    assert not patience.is_over(ill, 1_299)
    assert not patience.is_over(well, 1_300)
    assert not patience.is_over(ill, 1_301)
    assert patience.is_over(ill, 1_601)


def test_a_worker_that_waits_for_a_known_outage_is_never_too_long_unhealthy() -> None:
    judge, patience = Judge(), Patience(300)
    paused = Vitals(pauses=["MongoDB is unavailable"])
    assert not any(patience.is_over(judge(paused, now), now) for now in range(0, 86_400, 5))


def test_with_0_seconds_it_may_be_unhealthy_for_ever() -> None:
    patience = Patience(0)
    assert not any(patience.is_over(Report(False, "it hangs"), now) for now in range(0, 9_000, 5))


# The file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "health.json"


@pytest.mark.parametrize("report", [Report(True, "polling"), Report(False, "it hangs")])
def test_what_is_written_is_read(path: Path, report: Report) -> None:
    write(path, report, BUSY)
    assert read(path) == report
    told = json.loads(path.read_text())
    assert (told["pid"], told["running"], told["held"]) == (os.getpid(), 2, 22)
    # Nothing is left of the way there.
    assert list(path.parent.iterdir()) == [path]


def change(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize(("age", "healthy"), [(STALE - 5, True), (STALE + 5, False), (-60, False)])
def test_a_file_that_is_no_longer_written_says_nothing(
    path: Path, age: float, healthy: bool
) -> None:
    write(path, Report(True, "polling"), POLLING)
    change(path, monotonic=monotonic() - age)
    report = read(path)
    assert report.healthy is healthy
    assert "polling" in report.text


def test_the_file_of_a_process_that_is_gone_says_so(path: Path) -> None:
    write(path, Report(True, "polling"), POLLING)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    change(path, pid=gone.pid)
    assert read(path) == Report(
        False, f"the worker (process {gone.pid}) is gone; last report: polling"
    )


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"monotonic": "x"}', "\x00"])
def test_no_file_or_another_one_is_not_healthy(path: Path, text: str | None) -> None:
    if text is not None:
        path.write_text(text)
    assert not read(path).healthy


def test_it_is_never_seen_half_written(path: Path) -> None:
    write(path, Report(True, "polling"), POLLING)
    stopping = threading.Event()

    def keep_writing() -> None:
        while not stopping.is_set():
            write(path, Report(True, "polling"), BUSY)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        assert all(read(path).healthy for _ in range(500))
    finally:
        stopping.set()
        writer.join()


# The command


def run(app: Celery) -> Any:
    return CliRunner().invoke(command, [], obj=SimpleNamespace(app=app))


@pytest.fixture
def celery_app(path: Path) -> Celery:
    app = Celery("tests", set_as_current=False)
    app.conf.broker_transport = "sqs_broker:Transport"
    app.conf.broker_transport_options = {
        "region": "us-east-1",
        "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
        "health_file": str(path),
    }
    return app


@pytest.mark.parametrize(
    ("report", "status", "line"),
    [
        (Report(True, "polling"), 0, "healthy: polling"),
        (Report(False, "it hangs"), 1, "not healthy: it hangs"),
        (None, 1, "not healthy: no worker writes {path}"),
    ],
)
def test_the_command_says_it_in_one_line_and_by_its_exit_status(
    celery_app: Celery, path: Path, report: Report | None, status: int, line: str
) -> None:
    if report is not None:
        write(path, report, POLLING)
    ran = run(celery_app)
    assert (ran.exit_code, ran.stdout) == (status, line.format(path=path) + "\n")


def test_the_command_without_the_setting_names_it(celery_app: Celery) -> None:
    celery_app.conf.broker_transport_options.pop("health_file")
    ran = run(celery_app)
    assert ran.exit_code == 1
    assert "health_file" in ran.stderr
