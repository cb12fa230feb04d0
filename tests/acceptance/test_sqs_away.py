"""SQS goes away for a minute while tasks run, and comes back."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.faults import proxy
from tests.faults.proxy import FaultProxy
from tests.probe.project import ProbeProject
from tests.services import Queues, wait_until

#: Seconds that SQS is away.
AWAY = 60

#: Seconds. What ended while SQS was away can be told when it is back.
VISIBILITY = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def faults(queues: Queues) -> Iterator[FaultProxy]:
    with proxy.running(queues.endpoint_url) as (faults, _):
        yield faults


@pytest.fixture
def project(tmp_path: Path, queues: Queues, faults: FaultProxy) -> Iterator[ProbeProject]:
    """A worker's project that reaches SQS through the proxy."""
    made = ProbeProject(
        tmp_path / "project",
        queues,
        transport={"endpoint_url": faults.url, "visibility_timeout": VISIBILITY},
        celery={"worker_concurrency": 2},
    )
    yield made
    made.close()


@pytest.mark.parametrize("queues", [{"visibility_timeout": VISIBILITY}], indirect=True)
def test_a_minute_without_sqs_loses_nothing_and_what_ended_meanwhile_is_told_after_it(
    project: ProbeProject, faults: FaultProxy
) -> None:
    worker = project.start()
    running = [project.send("work", 5) for _ in range(2)]
    waiting = [project.send("work", 0.1) for _ in range(6)]
    wait_until(lambda: len(project.events(event="start")) >= 2, 30, "running tasks")

    faults.go_down()
    end = monotonic() + AWAY
    for id_ in running:
        wait_until(lambda i=id_: project.events(i, "end"), AWAY, "the end of what was running")
    # Only the worker's way to SQS is cut; the poll that was open has ended by now.
    later = [project.send("work", 0.1) for _ in range(3)]
    wait_until(lambda: monotonic() > end, AWAY + 5, "the minute")
    faults.come_up()

    ids = running + waiting + later
    for id_ in ids:
        wait_until(lambda i=id_: project.events(i, "end"), 60, "the end of each message")
    project.wait_for_empty_queue(60)
    # Nothing was delivered twice: each outcome was told under the lease of its only delivery.
    assert [len(project.events(id_, "start")) for id_ in ids] == [1] * len(ids)
    assert project.queues.dead_letters() == []
    assert worker.poll() is None
    assert project.stop(worker) == 0
