"""Where the log of a worker goes: to its file, to a reader that hangs, or nowhere."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sqs_broker.machine import health_file
from tests.acceptance.worker import (
    FOR_TESTS,
    READY_SECONDS,
    SETTLE_SECONDS,
    STOP_SECONDS,
    StartWorker,
    living,
    run_program,
)
from tests.growing import whole_lines
from tests.probe.project import await_another_stop
from tests.services import Queues, wait_until

pytestmark = pytest.mark.slow

#: A task of its own that prints.
MODULE = """
import sys, time
from app.celery import app
from sqs_broker.worker.task import Task

@app.task(name="doze", base=Task)
def doze(n):
    time.sleep(n)

@app.task(name="talk", base=Task)
def talk(n):
    print("printed", n, chr(0xd800))
    print("to stderr", n, file=sys.stderr)
    print("without an end", n, end="")
"""

SEND = """
import json, sys
from talking import talk
for n in range(json.loads(sys.argv[1])): talk.delay(n=n)
print("null")
"""

SEND_LONG = """
import json, sys
from talking import doze
doze.delay(n=json.loads(sys.argv[1]))
print("null")
"""


@pytest.fixture
def talking(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a worker with this task."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "talking.py").write_text(MODULE)
    path = os.pathsep.join([str(site), environment["PYTHONPATH"]])
    return FOR_TESTS | environment | {"PYTHONPATH": path}


@pytest.fixture
def send(talking: dict[str, str], tmp_path: Path) -> Callable[[int], Any]:
    """Send so many messages for the task."""
    return lambda count: run_program(SEND, talking, tmp_path, count)


def lines_of(*files: Path) -> list[dict[str, Any]]:
    """All lines of these files; each must be JSON."""
    return [json.loads(line) for file in files for line in whole_lines(file)]


def wait_for_event(event: str, *files: Path) -> dict[str, Any]:
    def find() -> dict[str, Any] | None:
        return next((line for line in lines_of(*files) if line["event"] == event), None)

    found: dict[str, Any] = wait_until(find, SETTLE_SECONDS, f"the event {event} in {files}")
    return found


def wait_until_ready(*files: Path) -> None:
    for file in files:

        def is_ready(file: Path = file) -> bool:
            return any(line["message"].endswith(" ready.") for line in lines_of(file))

        wait_until(is_ready, READY_SECONDS, f"a worker that is ready in {file}")


def test_a_worker_logs_to_its_file_and_to_a_new_one_after_it_was_moved_away(
    talking: dict[str, str],
    queues: Queues,
    send: Callable[[int], Any],
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    log = tmp_path / "one@test.log"
    worker = start_worker(
        talking, "-I", "talking", "-n", "one@test", "-f", str(tmp_path / "%p.log"), ready=False
    )
    wait_until_ready(log)

    send(1)
    wait_for_event("message.done", log)
    moved = log.rename(tmp_path / "moved.log")
    send(1)
    wait_for_event("message.done", log)

    printed = [line["message"] for line in lines_of(moved) if line["event"] == "print"]
    assert printed == ["printed 0 \ud800", "to stderr 0", "without an end 0"]
    assert {line["level"] for line in lines_of(moved) if line["event"] == "print"} == {"info"}
    assert any(line["event"] == "print" for line in lines_of(log))
    assert queues.dead_letters() == []
    assert "printed" not in worker.log_text()
    assert '"event"' not in worker.log_text()
    assert worker.stop() == 0


def test_each_process_of_the_pool_may_have_a_file_of_its_own(
    talking: dict[str, str], send: Callable[[int], Any], start_worker: StartWorker, tmp_path: Path
) -> None:
    main, first = tmp_path / "one.log", tmp_path / "one-1.log"
    start_worker(
        talking | {"WORKER_CONCURRENCY": "1"},
        *("-I", "talking", "-n", "one@test", "-f", str(tmp_path / "%n%I.log")),
        ready=False,
    )
    wait_until_ready(main)

    send(1)

    assert wait_for_event("print", first)["message"].startswith("printed 0")
    assert wait_for_event("message.done", main)
    assert {line["event"] for line in lines_of(main)}.isdisjoint({"print"})


def end(pid: int) -> None:
    """End a worker that this test has started, and wait for it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: pid not in {found for found, *_ in living()}, STOP_SECONDS, "its end")


def test_a_detached_worker_logs_to_its_file(
    talking: dict[str, str], send: Callable[[int], Any], tmp_path: Path
) -> None:
    log, pidfile = tmp_path / "detached.log", tmp_path / "pid"
    command = ["celery", "-A", "app", "worker", "-I", "talking", "-n", "one@test", "--detach"]
    command += ["-f", str(log), "--pidfile", str(pidfile)]
    subprocess.run(command, env=talking, cwd=tmp_path, check=True, timeout=READY_SECONDS)
    pid = int(
        wait_until(
            lambda: pidfile.exists() and pidfile.read_text(), READY_SECONDS, "the file with its pid"
        )
    )
    try:
        wait_until_ready(log)
        send(1)
        wait_for_event("message.done", log)
        wait_for_event("print", log)
    finally:
        end(pid)


def test_the_workers_of_celery_multi_log_to_their_files(
    talking: dict[str, str], send: Callable[[int], Any], tmp_path: Path
) -> None:
    logs = [tmp_path / "celery1.log", tmp_path / "celery2.log"]
    command = ["celery", "multi", "start", "2", "-A", "app", "-I", "talking", "-c", "1"]
    command += [f"--pidfile={tmp_path}/%n.pid", f"--logfile={tmp_path}/%n.log"]
    subprocess.run(command, env=talking, cwd=tmp_path, check=True, timeout=READY_SECONDS)
    try:
        wait_until_ready(*logs)
        send(4)
        wait_for_event("message.done", *logs)
    finally:
        for file in tmp_path.glob("*.pid"):
            end(int(file.read_text()))


def test_a_log_file_that_cannot_be_written_to_ends_the_worker_with_the_fix(
    talking: dict[str, str], start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(talking, "-f", str(tmp_path / "none" / "w.log"), ready=False)

    assert worker.wait() == 1
    assert "--logfile" in worker.log_text().splitlines()[-1]
    assert "Traceback" not in worker.log_text()


# A reader that hangs

#: Fewer than that fill the pipe by their lines.
MANY = 300

#: Seconds for a stop that waits for nothing.
QUICK = 10


class Piped:
    """A worker whose output goes into one pipe, which nobody reads."""

    def __init__(self, environment: dict[str, str], directory: Path, redirection: str) -> None:
        self._reading, writing = os.pipe()
        self.health = directory / "health"
        self._process = subprocess.Popen(
            ["sh", "-c", f"exec celery -A app worker -I talking -n one@test {redirection}"],
            env=environment | {"WORKER_HEALTH_FILE": str(self.health)},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
        )
        os.close(writing)

    def terminate(self) -> None:
        """Send SIGTERM to its main process."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit status."""
        return self._process.wait(seconds)

    def close(self) -> None:
        """Kill it and its pool."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._reading)


@pytest.fixture
def start_piped(talking: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Piped]]:
    """Starts such a worker."""
    started: list[Piped] = []

    def start(redirection: str = "", shutdown_timeout: int = 5) -> Piped:
        limited = talking | {"WORKER_SHUTDOWN_TIMEOUT": str(shutdown_timeout)}
        started.append(Piped(limited, tmp_path, redirection))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_worker_whose_log_nobody_reads_works_and_stops(
    start_piped: Callable[..., Piped], queues: Queues, send: Callable[[int], Any], signals: int
) -> None:
    worker = start_piped()
    send(MANY)

    wait_until(queues.is_empty, 2 * SETTLE_SECONDS, "an empty queue")

    assert queues.dead_letters() == []
    for _ in range(signals):
        worker.terminate()
    assert worker.wait() == 0


def test_the_health_of_a_worker_whose_log_nobody_reads_is_known_and_a_forced_stop_is_quick(
    start_piped: Callable[..., Piped],
    talking: dict[str, str],
    tmp_path: Path,
    queues: Queues,
    send: Callable[[int], Any],
) -> None:
    worker = start_piped(shutdown_timeout=90)
    send(MANY)
    wait_until(queues.is_empty, 2 * SETTLE_SECONDS, "an empty queue")

    def says(text: str) -> bool:
        report = health_file.read(worker.health)
        return report.healthy and text in report.text

    wait_until(lambda: says("polling"), SETTLE_SECONDS, "a healthy worker")
    run_program(SEND_LONG, talking, tmp_path, 60)
    wait_until(lambda: says("busy with 1"), SETTLE_SECONDS, "a report of what runs")
    worker.terminate()
    await_another_stop()
    worker.terminate()

    assert worker.wait(QUICK) == 0
    # Visible again once the last poll of the worker is over.
    wait_until(lambda: queues.counts() == (1, 0, 0), 2 * SETTLE_SECONDS, "the message")


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", ">&- 2>&-"])
def test_a_worker_whose_output_is_closed_works_and_stops(
    start_piped: Callable[..., Piped],
    queues: Queues,
    send: Callable[[int], Any],
    redirection: str,
) -> None:
    worker = start_piped(redirection)
    send(5)

    wait_until(queues.is_empty, 2 * SETTLE_SECONDS, "an empty queue")

    assert queues.dead_letters() == []
    worker.terminate()
    assert worker.wait() == 0
