"""Workers are told to stop: what runs finishes or is handed back, and nothing stays hidden."""

import os
import signal
import subprocess
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from tests.acceptance.worker import PROGRAM_SECONDS, StartWorker, living
from tests.faults import proxy
from tests.probe.project import PATIENCE, MakeProject, ProbeProject, await_another_stop
from tests.services import Queues, wait_until

POOLS = ("prefork", "threads", "solo")

#: Seconds. A stop that waited for a poll as long as this, or for its task, would be seen.
LONG_POLL = 20
LONG_TASK = 120

RECEIVE = "ReceiveMessage"


def tell(worker: "Popen[bytes]", number: signal.Signals) -> None:
    """Send a signal as it comes: of a process manager, or of a terminal to all in front of it."""
    if number is signal.SIGINT:
        os.killpg(worker.pid, number)
    else:
        worker.send_signal(number)


def tell_to_stop(project: ProbeProject, worker: "Popen[bytes]", number: signal.Signals) -> None:
    """Send the first signal, and wait until the worker has heard it."""
    tell(worker, number)
    wait_until(lambda: "Stopping:" in project.worker_log(), PATIENCE, "a worker that stops")


def start_running(project: ProbeProject, pool: str, *task: Any) -> list[str]:
    """Let as many tasks run as the pool takes; their ids."""
    running = [project.send(*task) for _ in range(1 if pool == "solo" else 2)]
    wait_until(
        lambda: len(project.events(event="start")) == len(running), PATIENCE, "tasks that run"
    )
    return running


def run_short_ones(project: ProbeProject) -> None:
    """Let the worker take its tasks for short ones, so that it holds messages ahead."""
    for id_ in [project.send("work") for _ in range(10)]:
        project.wait_for_end(id_)
    project.forget_events()


def start_waiting(project: ProbeProject, running: list[str]) -> list[str]:
    """Let some messages wait in the worker for a place in the pool; their ids."""
    waiting = [project.send("work") for _ in range(6)]
    in_flight = len(running) + len(waiting)
    wait_until(lambda: project.queues.counts()[1] == in_flight, PATIENCE, "messages that wait")
    return waiting


def assert_gone(worker: "Popen[bytes]") -> None:
    """No process of the worker is left: neither its own nor one of its pool."""
    left = [pid for pid, _, group in living() if group == worker.pid]
    assert left == []


def await_released(project: ProbeProject, count: int) -> None:
    """So many messages can be received again, once no long poll of the worker can return them."""
    patience = project.transport["wait_time_seconds"] + 5
    wait_until(lambda: project.queues.counts() == (count, 0, 0), patience, "released messages")


def assert_orderly(project: ProbeProject) -> None:
    """No stop had to leave its process as the last resort."""
    assert "did not stop in time" not in project.worker_log()


@pytest.mark.parametrize("pool", POOLS)
def test_what_runs_finishes_and_what_waits_is_released_at_once(
    make_project: MakeProject, pool: str
) -> None:
    project = make_project()
    worker = project.start("--pool", pool)
    run_short_ones(project)
    running = start_running(project, pool, "work", 5)
    waiting = start_waiting(project, running)

    tell_to_stop(project, worker, signal.SIGTERM)

    wait_until(lambda: project.queues.counts()[0] == len(waiting), PATIENCE, "released messages")
    assert project.events(event="end") == []
    assert worker.wait(PATIENCE) == 0
    assert {line["id"] for line in project.events(event="end")} == set(running)
    assert len(project.events(event="start")) == len(running)
    assert project.queues.counts() == (len(waiting), 0, 0)
    assert_gone(worker)


@pytest.mark.parametrize(
    ("pool", "number"),
    [
        ("prefork", signal.SIGINT),
        ("threads", signal.SIGTERM),
        pytest.param("solo", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("prefork", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("threads", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("solo", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_second_signal_hands_back_what_runs_and_awaits_no_poll(
    make_project: MakeProject, pool: str, number: signal.Signals
) -> None:
    project = make_project(transport={"wait_time_seconds": LONG_POLL})
    worker = project.start("--pool", pool)
    running = start_running(project, pool, "work", LONG_TASK)

    tell_to_stop(project, worker, number)
    await_another_stop()
    tell(worker, number)

    assert worker.wait(LONG_POLL - 5) == 0
    assert_orderly(project)
    await_released(project, len(running))
    assert project.events(event="end") == []
    assert_gone(worker)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_at_its_deadline_a_stop_hands_back_what_still_runs(
    make_project: MakeProject, pool: str
) -> None:
    project = make_project(transport={"wait_time_seconds": LONG_POLL, "shutdown_timeout": 2})
    worker = project.start("--pool", pool)
    running = start_running(project, pool, "work", LONG_TASK)

    tell(worker, signal.SIGTERM)

    assert worker.wait(LONG_POLL - 5) == 0
    await_released(project, len(running))
    assert_gone(worker)


@pytest.mark.slow
def test_a_task_that_does_not_end_when_told_to_is_killed(make_project: MakeProject) -> None:
    project = make_project(transport={"shutdown_timeout": 1})
    worker = project.start()
    running = start_running(project, "prefork", "cling", LONG_TASK)

    tell(worker, signal.SIGTERM)

    assert worker.wait(PATIENCE) == 0
    assert len(project.events(event="told to end")) == len(running)
    assert_orderly(project)
    await_released(project, len(running))
    assert_gone(worker)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_sigquit_is_a_stop_at_once(make_project: MakeProject, pool: str) -> None:
    project = make_project()
    worker = project.start("--pool", pool)
    running = start_running(project, pool, "work", LONG_TASK)

    tell(worker, signal.SIGQUIT)

    assert worker.wait(PATIENCE) == 0
    await_released(project, len(running))
    assert_gone(worker)


@pytest.mark.slow
def test_an_open_poll_is_awaited_beside_what_runs_and_what_it_brings_is_released(
    make_project: MakeProject, queues: Queues
) -> None:
    with proxy.running(queues.endpoint_url) as (faults, url):
        project = make_project(transport={"endpoint_url": url})
        # One process is free: for long tasks that others wait for no poll is open.
        worker = project.start("-c", "3")
        running = start_running(project, "prefork", "work", 8)
        faults.hold(RECEIVE)
        wait_until(lambda: faults.is_holding(RECEIVE), PATIENCE, "an open poll")
        polls = faults.calls[RECEIVE]

        tell_to_stop(project, worker, signal.SIGTERM)
        late = project.send("work")
        faults.let_go(RECEIVE)

        said = "Message released"
        wait_until(lambda: said in project.worker_log(), PATIENCE, "a message that is released")
        assert project.events(event="end") == []
        assert worker.wait(PATIENCE) == 0
        assert {line["id"] for line in project.events(event="end")} == set(running)
        assert project.events(late) == []
        assert faults.calls[RECEIVE] == polls
    assert project.queues.counts() == (1, 0, 0)


@pytest.mark.slow
def test_a_task_that_waits_for_its_rate_limit_is_released(make_project: MakeProject) -> None:
    project = make_project(celery={"task_annotations": {"probe.work": {"rate_limit": "1/m"}}})
    worker = project.start()
    ids = [project.send("work") for _ in range(3)]
    wait_until(lambda: project.events(event="end"), PATIENCE, "the first end")
    wait_until(lambda: project.queues.counts()[1] == 2, PATIENCE, "messages that wait")

    assert project.stop(worker) == 0

    assert len(project.events(event="start")) == 1
    await_released(project, len(ids) - 1)


@pytest.mark.slow
def test_a_remote_shutdown_is_a_stop_as_any_other(
    start_worker: StartWorker, environment: dict[str, str], tmp_path: Path
) -> None:
    worker = start_worker(environment)

    subprocess.run(
        ["celery", "-A", "app", "control", "shutdown"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=PROGRAM_SECONDS,
    )

    assert worker.wait() == 0
    (begun,) = worker.log_lines("shutdown.begun")
    assert begun["count"] == 0
    assert worker.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_stop_is_bounded_while_sqs_is_away(
    make_project: MakeProject, queues: Queues, pool: str
) -> None:
    with proxy.running(queues.endpoint_url) as (faults, url):
        project = make_project(transport={"endpoint_url": url, "shutdown_timeout": 3})
        worker = project.start("--pool", pool)
        start_running(project, pool, "work", LONG_TASK)
        faults.go_down()

        tell(worker, signal.SIGTERM)

        assert worker.wait(2 * PATIENCE) == 0
        assert_gone(worker)
