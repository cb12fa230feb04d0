"""Answers of one byte a second: no call to SQS takes longer than its deadline."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from sqs_broker.sqs.driver import CONNECT_TIMEOUT
from sqs_broker.sqs.receiver import ANSWER_MARGIN
from tests.faults import proxy
from tests.faults.proxy import DRIPPING, Fault, FaultProxy
from tests.probe.project import ProbeProject
from tests.services import Queues, wait_until

#: Seconds of the long poll, and of a receive call that is given up.
POLL = 1
DEADLINE = POLL + ANSWER_MARGIN + CONNECT_TIMEOUT

#: Seconds of a lease.
VISIBILITY = 24

#: Seconds for what a worker does with a message that it can take at once.
PATIENCE = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.parametrize("queues", [{"visibility_timeout": VISIBILITY}], indirect=True),
]


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
        transport={
            "endpoint_url": faults.url,
            "visibility_timeout": VISIBILITY,
            "wait_time_seconds": POLL,
            "receive_pause_max": 1,
        },
    )
    yield made
    made.close()


def start_times(project: ProbeProject, id_: str) -> int:
    return len(project.events(id_, "start"))


def test_messages_flow_again_within_the_deadline_of_a_receive(
    project: ProbeProject, faults: FaultProxy
) -> None:
    worker = project.start()
    project.wait_for_end(project.send("work"))
    faults.fail("ReceiveMessage", DRIPPING, last=1)
    wait_until(lambda: faults.failed["ReceiveMessage"], PATIENCE, "an answer that drips")

    project.send("work")
    wait_until(lambda: project.queues.counts()[1], PATIENCE, "a message in the answer that drips")
    began = monotonic()
    later = [project.send("work") for _ in range(3)]
    for id_ in later:
        wait_until(lambda i=id_: start_times(project, i), DEADLINE + PATIENCE, "a later message")
    assert monotonic() - began < DEADLINE + 3
    assert "A call to SQS (ReceiveMessage) had no whole answer" in project.worker_log()
    assert project.stop(worker) == 0


def test_a_late_message_is_released_and_runs_once(
    project: ProbeProject, faults: FaultProxy
) -> None:
    project.start()
    project.wait_for_end(project.send("work"))
    faults.fail("ReceiveMessage", Fault("late", lasts=DEADLINE + 3))
    wait_until(lambda: faults.failed["ReceiveMessage"], PATIENCE, "a slow answer")
    sent = project.send("work")
    wait_until(lambda: project.queues.counts()[1], PATIENCE, "a message in flight")
    faults.heal("ReceiveMessage")

    project.wait_for_end(sent, VISIBILITY - 2)
    assert "they are released" in project.worker_log()
    assert start_times(project, sent) == 1


@pytest.mark.parametrize("action", ["DeleteMessageBatch", "ChangeMessageVisibilityBatch"])
def test_a_report_that_drips_is_given_up_and_tried_again(
    project: ProbeProject, faults: FaultProxy, action: str
) -> None:
    project.start()
    faults.fail(action, DRIPPING, last=1)
    # Long enough for two heartbeats.
    sent = project.send("work", VISIBILITY - 2 if action.startswith("Change") else 0)
    wait_until(lambda: faults.calls[action] == 2, VISIBILITY + PATIENCE, "the second try")
    project.wait_for_end(sent)
    assert start_times(project, sent) == 1
    assert project.queues.dead_letters() == []
