"""Spans go to a collector by OTLP over HTTP, and nothing waits for a collector."""

import json
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from sqs_broker.rules.trace_context import TRACEPARENT
from tests.acceptance.worker import Place, StartWorker, Worker
from tests.probe import spans
from tests.probe.collector import Answer, collecting, is_silent, is_slow

pytestmark = pytest.mark.slow

SECONDS = 60

#: Messages of a test: enough for jobs that several messages share, in both processes of the pool.
COUNT = 30

#: Seconds in which a worker ends that has nothing to do, on a busy machine. Without a limit, the
#: processor of spans waits for the exporter's open call: this long below, and up to 30 s.
STOP = 15
EXPORT = 25


def environment_of(where: Place, endpoint: str) -> dict[str, str]:
    return dict(where.environment) | {
        "TRACING": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_TIMEOUT": str(EXPORT),
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


def send(where: Place) -> list[str]:
    """Send registrations, each in a trace of its own. Returns the traces."""
    traces = [f"{number + 1:032x}" for number in range(COUNT)]
    for number, trace in enumerate(traces):
        data = {"stockId": "s", "userId": f"Kim-1f9c-{number}", "userInfo": {"nickname": "K"}}
        body: dict[str, Any] = {"id": f"m{number}", "action": "registerUser", "data": data}
        body[TRACEPARENT] = f"00-{trace}-00000000000000aa-01"
        where.queues.client.send_message(QueueUrl=where.queues.url, MessageBody=json.dumps(body))
    return traces


def wait_for_all(where: Place, worker: Worker) -> None:
    worker.wait_for(
        lambda: len(worker.log_lines("message.done")) == COUNT, SECONDS, "the end of each message"
    )
    worker.wait_for(where.queues.is_empty, SECONDS, "an empty queue")


def test_each_span_arrives(where: Place, start_worker: StartWorker) -> None:
    with collecting() as collector:
        worker = start_worker(environment_of(where, collector.endpoint))
        traces = send(where)
        wait_for_all(where, worker)
        # Each process sends its last spans when it ends.
        assert worker.stop() == 0
    queue = where.queues.name
    deliver, run = f"deliver {queue}", f"deliver {queue} > process registerUser"
    found = [span for span in collector.spans if span["parent"] is not None]
    assert found == collector.spans
    own = [deliver, run, f"{deliver} > settle {queue}"]
    writes = 0
    for trace in traces:
        tree = spans.tree([span for span in found if span["trace"] == trace])
        # What messages did together is in the trace of one of them.
        writes += sum(line.endswith(" users") for line in tree)
        assert [line for line in tree if not line.startswith(f"{run} > ")] == own
    assert {span["trace"] for span in found} == set(traces)
    assert {span["status"] for span in found} == {"STATUS_CODE_UNSET"}
    assert {span["service"] for span in found} == {"registrations"}
    assert 0 < writes <= COUNT
    assert "Kim-1f9c" not in str(found)


@pytest.mark.parametrize("answer", [is_silent, is_slow])
def test_a_collector_holds_up_nothing(
    where: Place, start_worker: StartWorker, answer: Answer
) -> None:
    with collecting(answer) as collector:
        holds_up_nothing(where, start_worker, collector.endpoint, lambda: collector.requests > 0)


def test_a_collector_that_is_away_holds_up_nothing(where: Place, start_worker: StartWorker) -> None:
    with socket.socket() as taken:
        # Nobody listens, and nobody else can.
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        holds_up_nothing(where, start_worker, endpoint, lambda: True)


def holds_up_nothing(
    where: Place, start_worker: StartWorker, endpoint: str, is_asked: Callable[[], bool]
) -> None:
    worker = start_worker(environment_of(where, endpoint))
    send(where)
    wait_for_all(where, worker)
    # No message has failed before.
    assert not worker.log_lines("message.retry")
    # The first spans are on their way.
    worker.wait_for(is_asked, SECONDS, "a request to the collector")
    began = monotonic()
    assert worker.stop() == 0
    assert monotonic() - began < STOP
    assert not worker.log_lines("tracing.failed")
