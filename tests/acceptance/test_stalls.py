"""Each way in which a worker can stand still is seen from outside; one that works is healthy."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sqs_broker.machine.health_file import STALE, Report, read
from sqs_broker.rules.lease import LIMIT_MARGIN
from sqs_broker.worker.health import EVERY, EXIT_STATUS, STALL
from sqs_broker.worker.shutdown import LAST_RESORT
from tests.acceptance.worker import living
from tests.health_checks import all_of_them, installed
from tests.probe.project import MakeProject, ProbeProject
from tests.services import Queues, wait_until

#: Seconds for what is there at the next look.
PATIENCE = 30

#: Seconds of a task's hard limit.
LIMIT = 2


@pytest.fixture
def project(tmp_path: Path, queues: Queues) -> Iterator[ProbeProject]:
    made = ProbeProject(
        tmp_path / "project",
        queues,
        # A lease that outlasts a loop that hangs, or the message that hangs it comes again.
        transport={"health_file": str(tmp_path / "health.json"), "visibility_timeout": 120},
        celery={"task_soft_time_limit": LIMIT - 1, "task_time_limit": LIMIT},
    )
    yield made
    made.close()


Look = Callable[[], Report]


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """What the file says now."""
    return lambda: read(tmp_path / "health.json")


def wait_for(look: Look, text: str, seconds: float = PATIENCE, *, healthy: bool = False) -> None:
    def is_said() -> bool:
        report = look()
        return report.healthy is healthy and text in report.text

    try:
        wait_until(is_said, seconds, text)
    except TimeoutError as exc:
        raise AssertionError(f"{exc}; it says: {look()}") from None


def test_a_worker_is_healthy_from_its_start_to_its_end(project: ProbeProject, look: Look) -> None:
    assert "no worker" in look().text
    worker = project.start()
    wait_for(look, "polling", healthy=True)
    assert project.stop(worker) == 0
    assert "no worker" in look().text


@pytest.mark.slow
def test_a_worker_that_was_killed_leaves_a_file_that_nobody_believes(
    project: ProbeProject, look: Look
) -> None:
    worker = project.start()
    wait_for(look, "polling", healthy=True)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait(PATIENCE)
    assert "is gone" in look().text
    assert not look().healthy


@pytest.mark.slow
def test_a_worker_that_is_frozen_says_nothing_any_more(project: ProbeProject, look: Look) -> None:
    worker = project.start()
    wait_for(look, "polling", healthy=True)
    os.kill(worker.pid, signal.SIGSTOP)
    wait_for(look, "has reported nothing since", STALE + PATIENCE)
    os.kill(worker.pid, signal.SIGCONT)
    wait_for(look, "polling", healthy=True)


@pytest.mark.slow
def test_a_task_that_hangs_past_its_hard_limit_is_seen_where_no_pool_ends_it(
    project: ProbeProject, look: Look
) -> None:
    project.start("-P", "threads")
    project.send("work", 60)
    wait_for(look, "busy with 1 tasks", healthy=True)
    wait_for(look, "past the hard time limit: probe.work")


@pytest.mark.slow
def test_a_receiver_that_has_ended_is_seen(project: ProbeProject, look: Look) -> None:
    project.start("-P", "threads")
    project.send("end_the_receiver")
    wait_for(look, "the receiver of")
    assert "has ended" in look().text


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("queues", [{"visibility_timeout": 120}], indirect=True)
def test_an_event_loop_that_hangs_is_seen_and_so_is_its_recovery(
    project: ProbeProject, look: Look, tmp_path: Path
) -> None:
    checks, environment = list(all_of_them()), installed(tmp_path)
    worker = project.start("-P", "threads")
    id_ = project.send("hang_the_loop", STALL + 20)
    wait_for(look, "the event loop has not responded", STALL + PATIENCE)
    assert {check.status(tmp_path / "health.json", environment) for check in checks} == {1}
    wait_for(look, "polling", STALL + PATIENCE, healthy=True)
    assert {check.status(tmp_path / "health.json", environment) for check in checks} == {0}
    log = project.worker_log()
    assert (log.count("The worker is not healthy"), log.count("The worker is healthy again")) == (
        1,
        1,
    )
    assert project.stop(worker) == 0
    # The task itself had ended at once.
    assert log.count(f"hang_the_loop[{id_}] received") == 1
    assert "TimeLimitExceeded" not in log


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_worker_that_stays_unhealthy_ends_with_a_status_of_its_own_and_what_hung_has_failed(
    make_project: MakeProject, pool: str
) -> None:
    project = make_project(
        # Without a health file, and with a lease that outlasts the test.
        transport={"unhealthy_exit": 3, "visibility_timeout": 120},
        celery={"task_soft_time_limit": LIMIT - 1, "task_time_limit": LIMIT},
    )
    worker = project.start("-P", pool)
    project.send("work", 100)
    assert worker.wait(LIMIT + LIMIT_MARGIN + 3 + PATIENCE) == EXIT_STATUS
    log = project.worker_log()
    assert log.count("The worker was not healthy for 3 s, and ends with exit status 75: past") == 1
    wait_until(lambda: project.queues.counts()[0] == 1, PATIENCE, "the message that ran")
    # In a pool of threads it may have come again meanwhile.
    runs = len(project.events(event="start"))
    assert log.count("Message is retried in 1 s (TimeLimitExceeded)") == runs >= 1


@pytest.mark.slow
def test_a_pool_whose_processes_stand_still_ends_with_its_worker(
    make_project: MakeProject,
) -> None:
    project = make_project(
        transport={"unhealthy_exit": 3, "visibility_timeout": 120, "longest_wait": 9}
    )
    worker = project.start()
    for pid in children_of(worker.pid):
        os.kill(pid, signal.SIGSTOP)
    project.send("work")
    assert worker.wait(9 + 3 + LAST_RESORT + PATIENCE) == EXIT_STATUS
    assert "1 messages wait, but no task starts" in project.worker_log()
    assert children_of(worker.pid) == []
    wait_until(lambda: project.queues.counts()[0] == 1, PATIENCE, "the message that waited")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("queues", [{"visibility_timeout": 120}], indirect=True)
def test_a_worker_whose_event_loop_hangs_ends_too(make_project: MakeProject) -> None:
    project = make_project(transport={"unhealthy_exit": 3, "visibility_timeout": 120})
    worker = project.start("-P", "threads")
    project.send("hang_the_loop", 200)
    assert worker.wait(STALL + 3 + PATIENCE) == EXIT_STATUS


def children_of(pid: int) -> list[int]:
    return [child for child, parent, _ in living() if parent == pid]


def test_the_command_of_the_app_reads_what_the_worker_wrote(
    project: ProbeProject, look: Look, environment: dict[str, str], tmp_path: Path
) -> None:
    project.start()
    wait_for(look, "polling", healthy=True)
    environment |= {"WORKER_HEALTH_FILE": str(tmp_path / "health.json")}
    told = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "app", "sqs", "health"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (told.returncode, told.stdout) == (0, "healthy: polling\n"), told.stderr


@pytest.mark.slow
def test_a_file_that_cannot_be_written_is_one_line_until_it_can(
    tmp_path: Path, queues: Queues
) -> None:
    file = tmp_path / "none" / "health.json"
    project = ProbeProject(tmp_path / "project", queues, transport={"health_file": str(file)})
    try:
        worker = project.start()
        wait_until(lambda: "Could not write the" in project.worker_log(), PATIENCE, "the line")
        # Meanwhile it tries again.
        project.wait_for_end(project.send("work", EVERY + 1))
        file.parent.mkdir()
        wait_for(lambda: read(file), "polling", healthy=True)
        assert project.stop(worker) == 0
    finally:
        project.close()
    log = project.worker_log()
    assert log.count("Could not write the health file (FileNotFoundError)") == 1
    assert log.count("The health file is written again.") == 1
    assert "Traceback" not in log
