"""A signal goes to every process of a worker, as of systemd, Heroku, supervisord or a terminal.
What runs finishes, and what the worker itself ends still ends."""

import os
import signal
import time
from collections.abc import Callable
from subprocess import Popen

import pytest

from tests.acceptance.worker import living
from tests.probe.project import PATIENCE, SOON, MakeProject, ProbeProject, await_another_stop
from tests.services import wait_until

pytestmark = pytest.mark.slow

Worker = Popen[bytes]


def to_group(worker: Worker, number: signal.Signals) -> None:
    """As supervisord, honcho and a terminal do."""
    os.killpg(worker.pid, number)


def to_each(worker: Worker, number: signal.Signals) -> None:
    """As systemd and Heroku do: one after the other, here those of the pool first."""
    for pid in sorted((pid for pid, _, group in living() if group == worker.pid), reverse=True):
        os.kill(pid, number)


def assert_nothing_counted(project: ProbeProject, *ids: str) -> None:
    """Each of these ran once, in its first delivery, and no process died."""
    assert sorted(line["id"] for line in project.events(event="start")) == sorted(ids)
    assert sorted(line["id"] for line in project.events(event="end")) == sorted(ids)
    assert {line["retries"] for line in project.events(event="start")} <= {0}
    assert project.queues.counts() == (0, 0, 0)
    assert project.queues.dead_letters() == []
    assert "exited with" not in project.worker_log()
    assert "ERROR" not in project.worker_log()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.parametrize(
    ("tell", "number"),
    [
        (to_group, signal.SIGTERM),
        (to_each, signal.SIGTERM),
        (to_group, signal.SIGINT),
    ],
)
def test_what_runs_finishes(
    make_project: MakeProject,
    pool: str,
    tell: Callable[[Worker, signal.Signals], None],
    number: signal.Signals,
) -> None:
    project = make_project()
    # One process of the pool, or thread, is idle.
    worker = project.start("--pool", pool, "-c", "3")
    running = [project.send("work", 3) for _ in range(1 if pool == "solo" else 2)]
    wait_until(
        lambda: len(project.events(event="start")) == len(running), PATIENCE, "tasks that run"
    )

    tell(worker, number)

    assert worker.wait(PATIENCE) == 0
    assert_nothing_counted(project, *running)


@pytest.mark.parametrize("tell", [to_group, to_each])
def test_at_a_sighup_to_all_what_runs_finishes(
    make_project: MakeProject, tell: Callable[[Worker, signal.Signals], None]
) -> None:
    project = make_project(transport={"max_attempts": 1})
    worker = project.start("-c", "3")
    running = [project.send("work", 3) for _ in range(2)]
    wait_until(lambda: len(project.events(event="start")) == 2, PATIENCE, "tasks that run")

    tell(worker, signal.SIGHUP)

    # Its status is that of the next one, and Celery cannot restart what `python -m` has started.
    worker.wait(PATIENCE)
    assert_nothing_counted(project, *running)
    assert "Restarting celery worker" in project.worker_log()


def test_a_job_that_many_messages_share_finishes(make_project: MakeProject) -> None:
    project = make_project()
    project.send("together", "fine")
    ids = [project.send("together", "slow") for _ in range(10)]
    worker = project.start("-c", "1")
    wait_until(lambda: project.events(ids[-1], "together"), PATIENCE, "a job that runs")

    to_group(worker, signal.SIGTERM)

    assert worker.wait(PATIENCE) == 0
    # None ran a second time, alone.
    assert {line["size"] for line in project.events(event="together")} == {10}
    assert len(project.events(event="start")) == 1
    assert project.queues.counts() == (0, 0, 0)


def test_a_second_signal_to_the_group_ends_what_runs_after_its_finally(
    make_project: MakeProject,
) -> None:
    project = make_project()
    worker = project.start()
    running = [project.send("tidy", 60) for _ in range(2)]
    wait_until(lambda: len(project.events(event="start")) == 2, PATIENCE, "tasks that run")

    to_group(worker, signal.SIGTERM)
    wait_until(lambda: "Stopping:" in project.worker_log(), PATIENCE, "a worker that stops")
    await_another_stop()
    to_group(worker, signal.SIGTERM)

    assert worker.wait(PATIENCE) == 0
    assert sorted(line["id"] for line in project.events(event="tidied")) == sorted(running)
    assert project.events(event="end") == []
    wait_until(lambda: project.queues.counts() == (2, 0, 0), SOON, "what was released")


def test_a_forced_stop_runs_the_finally_of_a_job_that_many_messages_share(
    make_project: MakeProject,
) -> None:
    project = make_project(transport={"shutdown_timeout": 1})
    project.send("together", "fine")
    ids = [project.send("together", "hang") for _ in range(10)]
    worker = project.start("-c", "1")
    wait_until(lambda: project.events(ids[-1], "together"), PATIENCE, "a job that runs")

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(PATIENCE) == 0
    assert len(project.events(event="tidied")) == 1
    wait_until(lambda: project.queues.counts() == (10, 0, 0), SOON, "what was released")


def test_a_task_past_its_hard_limit_is_ended_after_its_finally(make_project: MakeProject) -> None:
    project = make_project(celery={"task_soft_time_limit": None, "task_time_limit": 1})
    project.start("-c", "1")
    id_ = project.send("tidy", 60)
    project.wait_for_empty_queue()

    assert project.notes()[id_]["error"] == "TimeLimitExceeded"
    assert len(project.events(id_, "tidied")) == len(project.events(id_, "start"))
    assert project.events(id_, "end") == []


def test_the_processes_that_a_task_starts_still_end_by_sigterm(make_project: MakeProject) -> None:
    project = make_project()
    project.start("-c", "1")
    id_ = project.send("end_others")
    project.wait_for_end(id_)

    (end,) = project.events(id_, "end")
    assert end["program"] == -signal.SIGTERM
    assert end["process"] == 7


def test_a_process_that_has_run_its_tasks_ends_and_the_next_one_is_as_safe(
    make_project: MakeProject,
) -> None:
    project = make_project()
    worker = project.start("-c", "1", "--max-tasks-per-child", "1")
    first = project.send("work")
    project.wait_for_end(first)
    second = project.send("work", 3)
    wait_until(lambda: project.events(second, "start"), PATIENCE, "the second task")

    to_each(worker, signal.SIGTERM)

    assert worker.wait(PATIENCE) == 0
    assert_nothing_counted(project, first, second)


def test_a_run_that_a_sigterm_from_outside_has_ended_is_no_failure(
    make_project: MakeProject,
) -> None:
    project = make_project(transport={"max_attempts": 1})
    project.start("-c", "1")
    id_ = project.send("be_terminated", 1)
    project.wait_for_end(id_)

    assert project.queues.dead_letters() == []
    assert len(project.events(id_, "start")) == 2


def test_what_runs_finishes_in_a_pool_of_spawned_processes(make_project: MakeProject) -> None:
    project = make_project(celery={"worker_pool_start_method": "spawn"})
    # One process, which runs: another one may still be starting when the signal comes.
    worker = project.start("-c", "1")
    id_ = project.send("work", 3)
    wait_until(lambda: project.events(id_, "start"), PATIENCE, "a task that runs")

    to_group(worker, signal.SIGTERM)

    assert worker.wait(PATIENCE) == 0
    assert_nothing_counted(project, id_)


@pytest.mark.parametrize("tell", [to_group, to_each])
def test_sigquit_to_the_group_is_a_stop_at_once_and_no_failure(
    make_project: MakeProject, tell: Callable[[Worker, signal.Signals], None]
) -> None:
    project = make_project(transport={"max_attempts": 1})
    worker = project.start()
    running = [project.send("tidy", 60) for _ in range(2)]
    wait_until(lambda: len(project.events(event="start")) == 2, PATIENCE, "tasks that run")

    tell(worker, signal.SIGQUIT)

    assert worker.wait(PATIENCE) == 0
    assert sorted(line["id"] for line in project.events(event="tidied")) == sorted(running)
    assert project.queues.dead_letters() == []
    wait_until(lambda: project.queues.counts() == (2, 0, 0), SOON, "what was released")


def test_a_process_that_is_told_to_end_twice_at_once_still_runs_its_finally(
    make_project: MakeProject,
) -> None:
    project = make_project()
    project.start("-c", "1")
    id_ = project.send("tidy", 60, 0.5)
    (start,) = wait_until(lambda: project.events(id_, "start"), PATIENCE, "a task that runs")

    os.kill(start["pid"], signal.SIGQUIT)
    wait_until(lambda: project.events(id_, "tidying"), PATIENCE, "its finally")
    os.kill(start["pid"], signal.SIGQUIT)

    tidied = wait_until(lambda: project.events(id_, "tidied"), PATIENCE, "the end of its finally")
    assert tidied[0]["pid"] == start["pid"]


def test_a_process_that_is_told_to_end_again_and_again_still_runs_its_finally(
    make_project: MakeProject,
) -> None:
    project = make_project()
    project.start("-c", "1")
    id_ = project.send("tidy", 60, 0.5)
    (start,) = wait_until(lambda: project.events(id_, "start"), PATIENCE, "a task that runs")

    # As many as go: the process must not have the default handler for a moment.
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        os.kill(start["pid"], signal.SIGQUIT)

    tidied = wait_until(lambda: project.events(id_, "tidied"), PATIENCE, "the end of its finally")
    assert tidied[0]["pid"] == start["pid"]


def test_a_process_that_sigquit_ends_while_the_worker_stops_is_no_failure(
    make_project: MakeProject,
) -> None:
    project = make_project(transport={"max_attempts": 1})
    worker = project.start("-c", "1")
    id_ = project.send("tidy", 60)
    wait_until(lambda: project.events(id_, "start"), PATIENCE, "a task that runs")
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping:" in project.worker_log(), PATIENCE, "a worker that stops")

    os.kill(project.events(id_, "start")[0]["pid"], signal.SIGQUIT)

    assert worker.wait(PATIENCE) == 0
    assert len(project.events(id_, "tidied")) == 1
    assert project.queues.dead_letters() == []
    wait_until(lambda: project.queues.counts() == (1, 0, 0), SOON, "what was released")
