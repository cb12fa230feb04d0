"""While messages come, a second receive call is open; an idle worker has one."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.faults import proxy
from tests.faults.proxy import FaultProxy
from tests.probe.project import ProbeProject
from tests.services import Queues, wait_until

pytestmark = pytest.mark.slow

RECEIVE = "ReceiveMessage"

#: Seconds of a long poll.
POLL = 2

#: Seconds in which a message would have arrived.
PATIENCE = 3

#: Tries: on a busy machine the second call can end before the message that it waits for is sent.
TRIES = 5


@pytest.fixture
def sqs(queues: Queues) -> Iterator[FaultProxy]:
    """A counting proxy before the test's server."""
    with proxy.running(queues.endpoint_url) as (running, _):
        yield running


@pytest.fixture
def project(tmp_path: Path, queues: Queues, sqs: FaultProxy) -> Iterator[ProbeProject]:
    """A project with a running worker."""
    transport = {"endpoint_url": sqs.url, "wait_time_seconds": POLL}
    made = ProbeProject(tmp_path / "project", queues, transport=transport)
    try:
        made.start()
        yield made
    finally:
        made.close()


def arrives(project: ProbeProject) -> bool:
    """Whether a message that is sent now arrives."""
    id_ = project.send("work")
    try:
        wait_until(lambda: project.events(id_, "end"), PATIENCE, "a message")
    except TimeoutError:
        return False
    return True


def arrive_between_two_calls(project: ProbeProject, sqs: FaultProxy) -> bool:
    """Whether two messages arrive one after the other, although no call reaches SQS after the first
    of them."""
    sqs.let_go(RECEIVE)
    # At first a worker does not know how long its tasks take, and has room for one call.
    assert all(arrives(project) for _ in range(3))
    sqs.hold(RECEIVE)
    return arrives(project) and arrives(project)


def test_a_message_that_is_sent_between_two_calls_does_not_wait_for_the_next_one(
    project: ProbeProject, sqs: FaultProxy
) -> None:
    assert any(arrive_between_two_calls(project, sqs) for _ in range(TRIES))

    # Idle again: one long poll after the other.
    sqs.let_go(RECEIVE)
    project.wait_for_empty_queue()
    seen = sqs.calls[RECEIVE]
    wait_until(lambda: sqs.calls[RECEIVE] > seen + 2, 10 * POLL, "calls after the second one")
    seen, began = sqs.calls[RECEIVE], monotonic()
    wait_until(lambda: sqs.calls[RECEIVE] == seen + 2, 10 * POLL, "two more calls")
    assert monotonic() - began > 1.5 * POLL
