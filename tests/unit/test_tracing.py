"""The spans of a message from its send to its settlement, and what has none."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from sqs_broker import batching
from sqs_broker.options import Options
from sqs_broker.sqs.publisher import publish_many
from sqs_broker.sqs.sender import SendError
from tests.services import wait_until
from tests.unit.in_memory import InMemoryWorker
from tests.unit.traced import DEADLINE, Spans, Traced

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"

TRACE, PARENT = "a" * 32, "b" * 16
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"

DELIVERY = ["deliver jobs", "process job", "settle jobs"]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def traced(spans: Spans) -> Traced:
    return Traced(spans)


@pytest.fixture
def worker(traced: Traced) -> Iterator[InMemoryWorker]:
    with traced.worker() as running:
        yield running


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> tuple[int, int]:
    assert span.context
    return span.context.trace_id, span.context.span_id


def links(span: ReadableSpan) -> set[tuple[int, int]]:
    return {(link.context.trace_id, link.context.span_id) for link in span.links}


def plain(task: str = "job", **fields: Any) -> str:
    return json.dumps({"id": "id-1", "action": task, "data": {"input": 1}} | fields)


# One trace


def test_a_message_has_one_trace_from_its_send_to_its_settlement(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    with spans.tracing.tracer.start_as_current_span("request"):
        traced.app.tasks["job"].delay(1)
    traced.run(worker)
    deliver = "request > send jobs > deliver jobs"
    assert spans.tree() == [
        "request",
        "request > send jobs",
        deliver,
        f"{deliver} > process job",
        f"{deliver} > settle jobs",
    ]
    assert len({span.context.trace_id for span in spans.all if span.context}) == 1


def test_the_work_of_a_task_is_inside_the_span_of_its_run(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    def write(_: int) -> None:
        with spans.tracing.tracer.start_as_current_span("write"):
            pass

    traced.do = write
    traced.app.tasks["job"].delay(1)
    traced.run(worker)
    assert "send jobs > deliver jobs > process job > write" in spans.tree()


def test_a_task_that_a_task_sends_is_in_the_same_trace(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    traced.do = lambda number: number and traced.app.tasks["job"].delay(0)
    traced.app.tasks["job"].delay(1)
    traced.run(worker)
    traced.run(worker)
    run = "send jobs > deliver jobs > process job"
    assert f"{run} > {run}" in spans.tree()


@pytest.mark.parametrize(
    "given",
    [
        {"body": plain(), "attributes": {"traceparent": TRACEPARENT}},
        {"body": plain(traceparent=TRACEPARENT)},
        {
            "body": plain(),
            "trace_header": f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={PARENT};Sampled=1",
        },
    ],
    ids=["an attribute", "a field of the body", "X-Ray"],
)
def test_the_trace_of_another_program_goes_on(
    traced: Traced, spans: Spans, worker: InMemoryWorker, given: dict[str, Any]
) -> None:
    texts = given.pop("attributes", {})
    own = {name: {"DataType": "String", "StringValue": text} for name, text in texts.items()}
    traced.fake.put(traced.url, **given, attributes=own)
    traced.run(worker)
    assert spans.names == DELIVERY
    assert {f"{span.context.trace_id:032x}" for span in spans.all if span.context} == {TRACE}
    parent = spans.one("deliver jobs").parent
    assert parent is not None
    assert f"{parent.span_id:016x}" == PARENT


def test_a_message_of_a_program_without_traces_has_a_trace_of_its_own(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    traced.fake.put(traced.url, plain())
    traced.run(worker)
    assert spans.tree() == [
        "deliver jobs",
        "deliver jobs > process job",
        "deliver jobs > settle jobs",
    ]


def test_a_trace_that_is_not_sampled_has_no_spans_here(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    traced.fake.put(traced.url, plain(traceparent=TRACEPARENT[:-2] + "00"))
    traced.run(worker)
    assert spans.names == []


def test_the_span_of_the_caller_is_not_that_of_the_worker(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    traced.fake.put(traced.url, plain())
    with spans.tracing.tracer.start_as_current_span("something else"):
        traced.run(worker)
    assert "deliver jobs" in spans.tree()


def test_each_line_of_the_log_has_the_trace_id(
    traced: Traced, spans: Spans, worker: InMemoryWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sqs_broker")
    traced.fake.put(traced.url, plain())
    traced.run(worker)
    lines = [vars(record) for record in caplog.records if hasattr(record, "message_id")]
    assert [line["event"] for line in lines] == ["message.received", "message.done"]
    trace_id, _ = id_of(spans.one("deliver jobs"))
    assert {line["trace_id"] for line in lines} == {f"{trace_id:032x}"}


# What the spans say


def test_the_spans_say_what_the_conventions_say(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    sent = traced.app.tasks["job"].delay(1)
    traced.run(worker)
    for name, type_, kind in (
        ("send jobs", "send", "PRODUCER"),
        ("deliver jobs", "receive", "CONSUMER"),
        ("process job", "process", "CONSUMER"),
        ("settle jobs", "settle", "CLIENT"),
    ):
        span = spans.one(name)
        assert span.kind.name == kind
        found = attributes(span)
        assert found["messaging.system"] == "aws_sqs"
        assert found["messaging.destination.name"] == "jobs"
        assert found["messaging.operation.type"] == type_
        assert found["messaging.message.id"] == sent.id


def test_the_delivery_begins_with_its_receive(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    traced.fake.put(traced.url, plain())
    traced.run(worker)
    deliver, process = spans.one("deliver jobs"), spans.one("process job")
    settle = spans.one("settle jobs")
    times = [deliver.start_time, process.start_time, process.end_time, settle.start_time]
    times += [settle.end_time, deliver.end_time]
    assert times == sorted(times, key=lambda time: time or 0)
    assert [event.name for event in deliver.events] == ["started"]


def test_no_span_has_personal_data(traced: Traced, spans: Spans, worker: InMemoryWorker) -> None:
    def fail(_: int) -> None:
        raise KeyError(MARKER)

    traced.do = fail
    traced.fake.put(traced.url, json.dumps({"action": "job", "data": {"input": MARKER}}))
    traced.fake.put(traced.url, json.dumps({"action": "job", "data": {"input": 1, "x": MARKER}}))
    traced.app.tasks["permanent"].delay(1)
    traced.run(worker)
    assert len(spans.named("deliver jobs")) == 3
    assert MARKER not in "".join(span.to_json() for span in spans.all)


# Failures


def test_a_dead_letter_is_an_error_with_the_class_and_the_reason(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    def fail(_: int) -> None:
        raise KeyError

    traced.do = fail
    traced.app.tasks["permanent"].delay(1)
    traced.run(worker)
    deliver, process = spans.one("deliver jobs"), spans.one("process permanent")
    assert deliver.status.status_code is process.status.status_code is StatusCode.ERROR
    assert attributes(deliver)["error.type"] == attributes(process)["error.type"] == "KeyError"
    assert attributes(deliver)["sqs_broker.outcome"] == "dead-letter"
    assert attributes(deliver)["sqs_broker.happened"] == "Refused"
    assert [event.name for event in process.events] == ["exception"]


def test_a_message_that_no_task_may_run_is_an_error_in_its_own_trace(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    own = {"traceparent": {"DataType": "String", "StringValue": TRACEPARENT}}
    traced.fake.put(traced.url, "nonsense", attributes=own)
    traced.run(worker)
    assert spans.names == ["deliver jobs", "settle jobs"]
    deliver = spans.one("deliver jobs")
    assert f"{id_of(deliver)[0]:032x}" == TRACE
    assert deliver.status.status_code is StatusCode.ERROR
    assert attributes(deliver)["error.type"] == "Undecodable"


def test_a_retry_is_a_second_delivery_in_the_same_trace(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    failures = [KeyError()]

    def fail_once(_: int) -> None:
        if failures:
            raise failures.pop()

    traced.do = fail_once
    traced.app.tasks["job"].delay(1)
    traced.run(worker)
    traced.clock.advance(700)
    traced.run(worker)
    first, second = spans.named("deliver jobs")
    assert first.parent is not None
    assert first.parent == second.parent
    assert first.status.status_code is StatusCode.UNSET
    assert attributes(first)["sqs_broker.outcome"] == "retry"
    assert attributes(second)["sqs_broker.outcome"] == "done"
    assert [attributes(each)["sqs_broker.deliveries"] for each in (first, second)] == [1, 2]
    run, _ = spans.named("process job")
    assert run.status.status_code is StatusCode.ERROR


def test_an_outcome_that_sqs_does_not_accept_is_an_error_of_its_settlement(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    traced.fake.deny("DeleteMessageBatch")
    traced.fake.put(traced.url, plain())
    traced.run(worker)
    settle, deliver = spans.one("settle jobs"), spans.one("deliver jobs")
    assert settle.status.status_code is deliver.status.status_code is StatusCode.ERROR
    assert "Denied" in attributes(settle)["error.type"]


def test_a_message_that_sqs_does_not_take_is_an_error_of_its_send(
    traced: Traced, spans: Spans
) -> None:
    traced.fake.deny("SendMessage")
    with pytest.raises(SendError):
        traced.app.tasks["job"].delay(1)
    send = spans.one("send jobs")
    assert send.status.status_code is StatusCode.ERROR
    assert attributes(send)["error.type"] == "SendError"


# Batches


def test_messages_of_one_job_share_a_span_with_links_to_each_and_from_each(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    def write(_: int) -> None:
        with spans.tracing.tracer.start_as_current_span("write"):
            pass

    traced.do = write
    publish_many(traced.app.tasks["shared"], [{"input": n} for n in range(3)])
    traced.run(worker)
    runs, work = spans.named("process shared"), spans.one("process shared together")
    assert len({id_of(run)[0] for run in runs}) == 3
    assert links(work) == {id_of(run) for run in runs}
    assert [links(run) for run in runs] == [{id_of(work)}] * 3
    assert work.parent is not None
    assert (work.parent.trace_id, work.parent.span_id) in {id_of(run) for run in runs}
    write_span = spans.one("write")
    assert write_span.parent is not None
    assert (write_span.parent.trace_id, write_span.parent.span_id) == id_of(work)
    codes = sorted(run.status.status_code.name for run in runs)
    assert codes == ["ERROR", "UNSET", "UNSET"]


def test_messages_with_a_model_share_a_span_and_one_that_is_refused_has_no_part(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    # The worker polls already: in one call, so that they arrive together.
    with batching():
        for input in (1, "x", 2):
            traced.app.send_task("typed", kwargs={"input": input})
    traced.run(worker)
    runs, work = spans.named("process typed"), spans.one("process typed together")
    errors = [run.attributes and run.attributes.get("error.type") for run in runs]
    assert sorted(map(str, errors)) == ["InvalidMessage", "None", "None"]
    done = {id_of(run) for run, error in zip(runs, errors, strict=True) if error is None}
    assert links(work) == done


def test_the_work_of_a_job_is_in_the_trace_of_a_message_that_is_sampled(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    unsampled = TRACEPARENT[:-2] + "00"
    for number, context in ((0, unsampled), (2, TRACEPARENT), (2, unsampled)):
        traced.app.tasks["shared"].apply_async(
            kwargs={"input": number}, headers={"traceparent": context}
        )
    traced.run(worker)
    assert f"{id_of(spans.one('process shared together'))[0]:032x}" == TRACE


def test_a_message_that_waits_for_others_to_be_sent_has_a_span_of_its_creation(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    with batching():
        traced.app.tasks["job"].delay(1)
        traced.app.tasks["job"].delay(2)
    publish_many(traced.app.tasks["job"], [{"input": 3}])
    assert spans.names == ["create jobs"] * 3
    traced.run(worker)
    assert spans.tree().count("create jobs > deliver jobs > process job") == 3


# What has no spans


def test_the_worker_alone_has_no_spans(
    traced: Traced, spans: Spans, worker: InMemoryWorker
) -> None:
    traced.fake.put(traced.url, plain())
    traced.run(worker)
    spans.forget()
    polls = len(traced.fake.asked("ReceiveMessage"))
    traced.fake.end_polls()
    traced.fake.put(traced.url, plain())
    traced.run(worker)
    wait_until(lambda: len(traced.fake.asked("ReceiveMessage")) > polls, DEADLINE, "a poll")
    assert spans.names == DELIVERY


def test_without_the_option_a_message_gets_nothing(traced: Traced) -> None:
    traced.app.conf.broker_transport_options = traced.fake.transport_options()
    traced.app.tasks["job"].delay(1)
    (message,) = traced.fake.messages(traced.url)
    assert "traceparent" not in message.body
    options = Options.read(traced.app.conf.broker_transport_options)
    assert (options.tracing, options.observers, options.brackets) == (None, (), ())


# Beside others


def test_a_message_that_has_a_trace_gets_no_second_span_of_its_send(
    traced: Traced, spans: Spans
) -> None:
    traced.app.tasks["job"].apply_async((1,), headers={"traceparent": TRACEPARENT})
    assert spans.names == []
    (message,) = traced.fake.messages(traced.url)
    assert json.loads(message.body)["headers"]["traceparent"] == TRACEPARENT


def test_a_failing_tracing_library_harms_no_message(
    traced: Traced, spans: Spans, worker: InMemoryWorker, caplog: pytest.LogCaptureFixture
) -> None:
    from opentelemetry.sdk.trace import SpanProcessor

    class Failing(SpanProcessor):
        def on_start(self, *_: Any, **__: Any) -> None:
            raise ValueError(MARKER)

        def on_end(self, *_: Any) -> None:
            raise ValueError(MARKER)

    spans.provider.add_span_processor(Failing())
    ran: list[int] = []
    traced.do = ran.append
    traced.app.tasks["job"].delay(1)
    publish_many(traced.app.tasks["shared"], [{"input": n} for n in (2, 3)])
    traced.run(worker)
    assert sorted(ran) == [1, 2]
    assert traced.fake.messages(traced.url) == []
    assert "tracing.failed" in {vars(record).get("event") for record in caplog.records}
    assert MARKER not in caplog.text
