"""The spans of the HTTP API and of MongoDB's commands."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import StatusCode
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from app.spans import Traces
from sqs_broker.testing import FakeSqs
from tests.unit.api_service import Running, running
from tests.unit.traced import Spans

USER = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": "kim", "gender": "F"}}
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"
SEND = "SendMessageBatch"
SECOND = timedelta(seconds=1)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def traces(spans: Spans) -> Traces:
    return Traces(spans.provider)


def api(
    fake: FakeSqs, traces: Traces | None, test: Callable[[Running], Awaitable[None]], **how: Any
) -> None:
    async def run() -> None:
        async with running(fake, tracing=traces, **how) as made:
            await test(made)

    asyncio.run(run())


def carried(fake: FakeSqs) -> list[dict[str, str]]:
    """The attributes of each message that was sent."""
    return [
        {name: value["StringValue"] for name, value in sent["MessageAttributes"].items()}
        for sent in fake.entries(SEND)
    ]


# The HTTP API


def test_a_message_carries_the_span_of_its_send_in_the_span_of_its_request(
    fake: FakeSqs, spans: Spans, traces: Traces, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.api")

    async def test(made: Running) -> None:
        await made.client.post("/registrations", USER, **{"X-Request-Id": "r-1"})

    api(fake, traces, test)
    path = "POST /registrations > send jobs"
    assert spans.tree() == ["POST /registrations", path]
    send, request = spans.one("send jobs"), spans.one("POST /registrations")
    assert send.context
    trace_id, span_id = f"{send.context.trace_id:032x}", f"{send.context.span_id:016x}"
    (attributes,) = carried(fake)
    assert attributes["request_id"] == "r-1"
    assert attributes["traceparent"].startswith(f"00-{trace_id}-{span_id}-")
    assert (request.kind.name, send.kind.name) == ("SERVER", "PRODUCER")
    found = dict(request.attributes or {})
    assert found["http.route"] == "/registrations"
    assert found["http.response.status_code"] == 202
    assert found["sqs_broker.request_id"] == "r-1"
    (line,) = (vars(r) for r in caplog.records if getattr(r, "event", "") == "http.request")
    assert line["trace_id"] == trace_id


def test_the_trace_of_the_client_goes_on_with_its_state(
    fake: FakeSqs, spans: Spans, traces: Traces
) -> None:
    async def test(made: Running) -> None:
        given = {"traceparent": TRACEPARENT, "tracestate": "a=1"}
        answer = await made.client.post("/registrations", USER, **given)
        assert answer.headers["traceparent"] == TRACEPARENT

    api(fake, traces, test)
    parent = spans.one("POST /registrations").parent
    assert parent is not None
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}") == ("a" * 32, "b" * 16)
    (attributes,) = carried(fake)
    assert attributes["traceparent"].startswith(f"00-{'a' * 32}-")
    assert attributes["tracestate"] == "a=1"


def test_the_messages_of_a_batch_share_the_span_of_their_send(
    fake: FakeSqs, spans: Spans, traces: Traces
) -> None:
    lines = [USER | {"userId": f"u{n}"} for n in range(3)]
    body = "\n".join(map(json.dumps, lines)).encode()

    async def test(made: Running) -> None:
        await made.client.post("/registrations/batch", body, kind="application/x-ndjson")

    api(fake, traces, test)
    path = "POST /registrations/batch > send jobs"
    assert spans.tree() == ["POST /registrations/batch", path]
    send = spans.one("send jobs")
    assert send.context
    span_id = f"{send.context.span_id:016x}"
    assert [each["traceparent"].split("-")[2] for each in carried(fake)] == [span_id] * 3


def test_what_is_invalid_is_not_sent_and_no_error_of_the_server(
    fake: FakeSqs, spans: Spans, traces: Traces
) -> None:
    async def test(made: Running) -> None:
        await made.client.post("/registrations", {"stockId": "s1"})

    api(fake, traces, test)
    assert spans.names == ["POST /registrations"]
    assert spans.one("POST /registrations").status.status_code is StatusCode.UNSET


def test_a_message_that_sqs_does_not_take_is_an_error_of_both_spans(
    fake: FakeSqs, spans: Spans, traces: Traces
) -> None:
    fake.deny(SEND)

    async def test(made: Running) -> None:
        assert (await made.client.post("/registrations", USER)).status == 503

    api(fake, traces, test)
    assert {span.status.status_code for span in spans.all} == {StatusCode.ERROR}
    assert len(spans.all) == 2


def test_no_span_has_the_path_which_has_ids_of_users(
    fake: FakeSqs, spans: Spans, traces: Traces
) -> None:
    async def test(made: Running) -> None:
        await made.client.get("/users/s1/Kim-1f9c")

    api(fake, traces, test)
    assert spans.names == ["GET /users/{stockId}/{userId:path}"]
    assert "Kim-1f9c" not in spans.all[0].to_json()


# MongoDB


def started(command: dict[str, Any]) -> CommandStartedEvent:
    return CommandStartedEvent(command, "db", 7, ("127.0.0.1", 27017), 1)


def run(commands: CommandListener, command: dict[str, Any]) -> None:
    commands.started(started(command))
    name = next(iter(command))
    commands.succeeded(
        CommandSucceededEvent(SECOND, {"ok": 1}, name, 7, ("127.0.0.1", 27017), 1, None, "db")
    )


def test_a_command_inside_a_span_has_a_span_with_names_and_no_values(
    spans: Spans, traces: Traces
) -> None:
    with traces.tracer.start_as_current_span("process job"):
        run(traces.commands, {"update": "users", "updates": [{"q": {"user_id": "Kim-1f9c"}}]})
    assert spans.tree() == ["process job", "process job > update users"]
    span = spans.one("update users")
    assert dict(span.attributes or {}) == {
        "db.system.name": "mongodb",
        "db.namespace": "db",
        "db.operation.name": "update",
        "db.collection.name": "users",
        "server.address": "127.0.0.1",
        "server.port": 27017,
    }
    assert "Kim-1f9c" not in span.to_json()


@pytest.mark.parametrize(
    "command", [{"update": "users"}, {"hello": 1}, {"getMore": 3, "collection": "events"}]
)
def test_a_command_outside_of_every_span_has_none(
    spans: Spans, traces: Traces, command: dict[str, Any]
) -> None:
    run(traces.commands, command)
    assert spans.names == []


@pytest.mark.parametrize("command", [{"hello": 1}, {"endSessions": []}, {"saslStart": 1}])
def test_a_command_of_the_connection_has_no_span(
    spans: Spans, traces: Traces, command: dict[str, Any]
) -> None:
    with traces.tracer.start_as_current_span("process job"):
        run(traces.commands, command)
    assert spans.names == ["process job"]


def test_a_command_that_fails_has_the_code_of_its_error_and_not_the_text(
    spans: Spans, traces: Traces
) -> None:
    with traces.tracer.start_as_current_span("process job"):
        traces.commands.started(started({"insert": "users"}))
        failure = {"code": 11000, "errmsg": "Kim-1f9c"}
        at = ("127.0.0.1", 27017)
        traces.commands.failed(CommandFailedEvent(SECOND, failure, "insert", 7, at, 1))
    span = spans.one("insert users")
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "11000"
    assert "Kim-1f9c" not in span.to_json()


# The end of a process, or of an invocation

PROVIDER = """
import os, threading, time
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from app.tracing import OfEachProcess, flush

class Silent(SpanExporter):
    def export(self, spans):
        time.sleep(600)

provider = TracerProvider()
provider.add_span_processor(OfEachProcess(lambda: BatchSpanProcessor(Silent())))
trace.set_tracer_provider(provider)
trace.get_tracer("t").start_span("s").end()
"""

FLUSH_TWICE = """
flush()
flush()
print(sum(thread.name == "span-sender" for thread in threading.enumerate()), flush=True)
os._exit(0)
"""


def run_with_a_silent_collector(program: str) -> str:
    """What a process prints whose last spans are not taken. Fails if it does not end."""
    done = subprocess.run(
        [sys.executable, "-c", PROVIDER + program],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        # The processor of spans alone waits for 30 s.
        timeout=25,
        check=True,
    )
    return done.stdout.strip()


def test_a_collector_that_does_not_answer_holds_up_no_end_of_a_pool_process() -> None:
    # A second end, while the first one's spans wait, needs no second thread.
    assert run_with_a_silent_collector(FLUSH_TWICE) == "1"


def test_a_collector_that_does_not_answer_holds_up_no_end_of_an_interpreter() -> None:
    assert run_with_a_silent_collector("print('over', flush=True)") == "over"
