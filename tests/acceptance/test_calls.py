"""What a message costs, counted by API action."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import proxy
from tests.faults.proxy import FaultProxy
from tests.probe.project import ProbeProject
from tests.services import Queues

MESSAGES = 400


@pytest.fixture
def faults(queues: Queues) -> Iterator[tuple[FaultProxy, str]]:
    """A counting proxy before the test's server."""
    with proxy.running(queues.endpoint_url) as running:
        yield running


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_message_of_a_backlog_costs_at_most_a_fifth_of_a_call(
    tmp_path: Path, queues: Queues, faults: tuple[FaultProxy, str], pool: str
) -> None:
    counts, url = faults
    project = ProbeProject(tmp_path / "project", queues, transport={"endpoint_url": url})
    try:
        for _ in range(MESSAGES):
            project.send("work")
        counts.calls.clear()
        project.start("--pool", pool, "-c", "4")
        project.wait_for_empty_queue()
        calls = dict(counts.calls)
    finally:
        project.close()

    # The last poll finds nothing, and the batches at the two ends are not full.
    assert sum(calls.values()) <= 0.22 * MESSAGES + 4, calls
    # One call checks the queue at the start of the worker.
    assert calls.pop("GetQueueAttributes") == 1
    assert calls.keys() == {"ReceiveMessage", "DeleteMessageBatch"}
