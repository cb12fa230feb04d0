"""One registration over HTTP is one trace, through every process to MongoDB and back to SQS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.api_process import StartApi, apis
from tests.acceptance.worker import Place, StartWorker
from tests.probe import spans

pytestmark = pytest.mark.slow

SECONDS = 60

USER = {"stockId": "traced", "userId": "Kim-1f9c", "userInfo": {"nickname": "Kim-1f9c"}}


@pytest.fixture
def start_api(tmp_path: Path) -> Iterator[StartApi]:
    """Starts APIs that live until the end of the test, or shorter."""
    with apis(tmp_path) as start:
        yield start


def test_a_registration_over_http_is_one_trace_with_each_span(
    where: Place, start_api: StartApi, start_worker: StartWorker, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    path = {"PYTHONPATH": f"{site}:{where.environment['PYTHONPATH']}"}
    environment = where.environment | {"TRACING": "true"} | spans.install(site) | path
    api = start_api(environment)
    worker = start_worker(environment)
    answer = api.post("/registrations", USER, X_Request_Id="r-1")
    assert answer.status == 202
    worker.wait_for(lambda: worker.log_lines("message.done"), SECONDS, "the end of the message")
    worker.wait_for(where.queues.is_empty, SECONDS, "an empty queue")
    # Each process sends its last spans when it ends.
    assert worker.stop() == 0
    assert api.stop() == 0

    found = spans.read(site / "spans.jsonl")
    queue = where.queues.name
    deliver = f"POST /registrations > send {queue} > deliver {queue}"
    run = f"{deliver} > process registerUser"
    assert spans.tree(found) == sorted(
        [
            "POST /registrations",
            f"POST /registrations > send {queue}",
            deliver,
            run,
            f"{run} > findAndModify users",
            f"{deliver} > settle {queue}",
        ]
    )
    # Nothing else has a span: no poll, no heartbeat, no event, no start check.
    (trace,) = {span["trace"] for span in found}
    assert {span["status"] for span in found} == {"UNSET"}
    assert len({span["pid"] for span in found}) == 3
    assert {span["service"] for span in found} == {"registrations"}
    assert "Kim-1f9c" not in (site / "spans.jsonl").read_text()

    lines = [line for each in (api, worker) for line in each.log_lines() if "trace_id" in line]
    events = {line["event"] for line in lines}
    assert events >= {"http.request", "message.received", "message.done"}
    assert {(line["trace_id"], line["request_id"]) for line in lines} == {(trace, "r-1")}
