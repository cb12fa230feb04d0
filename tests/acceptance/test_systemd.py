"""The unit of docs/health.md under a systemd, which starts and stops a worker by it."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance import systemd
from tests.acceptance.systemd import Systemd
from tests.health_checks import example
from tests.probe.project import PATIENCE, ProbeProject
from tests.services import Queues, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(systemd.lacking() is not None, reason=f"needs {systemd.lacking()}"),
]

NAME = "shop.service"

#: What a unit of this machine has in place of the page's: its paths, and root.
HERE = """
[Service]
ExecStart=
ExecStart={python} -m celery -A probe worker -l INFO -c 2
WorkingDirectory={project}
User=
StandardOutput=append:{project}/worker-0.log
StandardError=inherit
"""

#: Seconds of a task that runs while its worker is stopped.
LONG = 3


@pytest.fixture
def project(tmp_path: Path, queues: Queues) -> Iterator[ProbeProject]:
    # Whatever counted as an attempt would be the last one.
    options = {"health_file": "/run/shop/worker-health.json", "max_attempts": 1}
    made = ProbeProject(tmp_path / "project", queues, transport=options)
    yield made
    made.close()


@pytest.fixture
def machine(tmp_path: Path, project: ProbeProject) -> Iterator[Systemd]:
    """A systemd with the unit of the page."""
    own = HERE.format(python=sys.executable, project=project.directory)
    with systemd.running(tmp_path / "machine", NAME, example("ini"), own) as made:
        yield made


def test_the_unit_of_the_page_starts_a_killed_worker_again_and_lets_a_stopped_one_finish(
    machine: Systemd, project: ProbeProject, tmp_path: Path
) -> None:
    file = tmp_path / "machine" / "run" / "shop" / "worker-health.json"

    def wait_until_ready(starts: int) -> None:
        log = project.directory / "worker-0.log"
        wait_until(
            lambda: log.exists() and log.read_text().count(" ready.") == starts,
            PATIENCE,
            f"start {starts} of the worker",
        )

    wait_until_ready(1)
    wait_until(lambda: file.exists() and json.loads(file.read_text())["healthy"], PATIENCE, "it")
    machine.kill_main_process()
    wait_until_ready(2)
    assert machine.properties()["NRestarts"] == "1"

    sent = [project.send("work", LONG) for _ in range(2)]
    wait_until(lambda: len(project.events(event="start")) == 2, PATIENCE, "tasks that run")
    machine.stop()

    said = machine.properties()
    assert (said["ActiveState"], said["Result"]) == ("inactive", "success")
    assert Counter(line["id"] for line in project.events(event="end")) == Counter(sent)
    assert project.queues.counts() == (0, 0, 0)
    assert project.queues.dead_letters() == []
    assert "exited with" not in project.worker_log()
    assert not file.exists()
