"""Each health check of docs/health.md and of the templates, run beside a worker with its timeout.

tests/acceptance/test_stalls.py runs them beside a worker whose event loop hangs.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.health_checks import all_of_them, installed
from tests.probe.project import PATIENCE, ProbeProject, await_another_stop
from tests.services import Queues, wait_until

pytestmark = pytest.mark.slow

CHECKS = list(all_of_them())

#: Seconds of a task: more than all checks take. It does not run to its end.
LONG = 24


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The health file of the worker."""
    return tmp_path / "health.json"


@pytest.fixture
def project(tmp_path: Path, file: Path, queues: Queues) -> Iterator[ProbeProject]:
    made = ProbeProject(tmp_path / "project", queues, transport={"health_file": str(file)})
    yield made
    made.close()


def test_health_checks_pass_for_a_worker_that_works_or_finishes_its_tasks_and_for_no_other(
    project: ProbeProject, file: Path, tmp_path: Path
) -> None:
    environment = installed(tmp_path)

    def statuses() -> dict[str, int | None]:
        return {check.where: check.status(file, environment) for check in CHECKS}

    healthy, unhealthy = ({check.where: status for check in CHECKS} for status in (0, 1))
    assert statuses() == unhealthy
    worker = project.start()
    wait_until(file.exists, PATIENCE, "the first report")
    assert statuses() == healthy

    project.send("work", LONG)
    wait_until(lambda: project.events(event="start"), PATIENCE, "a task that runs")
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping:" in project.worker_log(), PATIENCE, "a worker that stops")
    assert statuses() == healthy
    assert project.events(event="end") == []

    # The second one ends the task.
    await_another_stop()
    worker.send_signal(signal.SIGTERM)
    worker.wait(PATIENCE)
    assert statuses() == unhealthy
