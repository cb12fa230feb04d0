"""Runs one job under a tracing library, as it is installed from the index, and prints what it saw.

    python traced.py opentelemetry|sentry|elastic HOW

HOW is alone, shared, permanent, sent, sent-permanent, beside or beside-permanent.

A line for each span or event, as JSON. Of three messages that share a job the second one fails. A
permanent failure is that of a task whose class is the project's. `sent`: the message is sent first,
inside a request. `beside`: so it is, and the broker's own option `tracing` is on.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import celery.app.trace
from celery import Celery, Task

from sqs_broker import install
from sqs_broker.testing import FakeSqs
from sqs_broker.worker.batch import Job, run

Seen = Iterator[dict[str, Any]]


def opentelemetry() -> tuple[Callable[[], None], Callable[[], Seen]]:
    from opentelemetry import trace
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()

    def write() -> None:
        with trace.get_tracer("test").start_as_current_span("write"):
            pass

    def seen() -> Seen:
        spans = exporter.get_finished_spans()
        messages = {s.context.span_id: s.attributes.get("messaging.message.id") for s in spans}
        for span in spans:
            yield {
                "name": span.name,
                "message": messages[span.context.span_id],
                "parent": span.parent and messages[span.parent.span_id],
                "state": span.attributes.get("celery.state"),
                "status": span.status.status_code.name,
            }

    return write, seen


def sentry() -> tuple[Callable[[], None], Callable[[], Seen]]:
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    kept: list[dict[str, Any]] = []

    class Keeping(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            kept.extend(item.payload.json for item in envelope.items)

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:1/1",
        transport=Keeping,
        traces_sample_rate=1.0,
        integrations=[CeleryIntegration()],
    )

    def write() -> None:
        with sentry_sdk.start_span(op="db", name="write"):
            pass

    def seen() -> Seen:
        sentry_sdk.flush()
        for one in kept:
            yield {
                "kind": one.get("type", "event"),
                "spans": [span["description"] for span in one.get("spans", ())],
                "errors": [exc["type"] for exc in one.get("exception", {}).get("values", ())],
                "status": one["contexts"]["trace"].get("status"),
            }

    return write, seen


def elastic() -> tuple[Callable[[], None], Callable[[], Seen]]:
    import elasticapm
    from elasticapm.contrib.celery import register_exception_tracking, register_instrumentation

    kept: list[tuple[str, dict[str, Any]]] = []

    class Client(elasticapm.Client):
        def queue(self, event_type: str, data: Any, flush: bool = False) -> None:
            kept.append((event_type, data))

    client = Client(
        service_name="traced",
        server_url="http://127.0.0.1:1",
        cloud_provider="none",
        central_config="false",
        metrics_interval="0s",
    )
    register_exception_tracking(client)
    register_instrumentation(client)
    requests.append((lambda: client.begin_transaction("request"), client.end_transaction))

    def write() -> None:
        with elasticapm.capture_span("write"):
            pass

    def seen() -> Seen:
        for kind, one in kept:
            yield {
                "kind": kind,
                "name": one.get("name"),
                "id": one["id"],
                "trace": one["trace_id"],
                "parent": one.get("parent_id"),
                "outcome": one.get("outcome"),
                "error": one.get("exception", {}).get("type"),
            }
        client.close()

    return write, seen


#: How a library begins a request, and ends it.
requests: list[tuple[Callable[[], Any], Callable[[str], Any]]] = []


def send(task: Any) -> Any:
    for begin, _ in requests:
        begin()
    sent = task.delay(0)
    for _, end in requests:
        end("request")
    return sent


def main(library: str, how: str) -> None:
    is_beside = how.startswith("beside")
    fake = FakeSqs()
    fake.create_queue("jobs")
    write, seen = {"opentelemetry": opentelemetry, "sentry": sentry, "elastic": elastic}[library]()
    app = Celery("traced")
    install(app)
    app.conf.update(
        task_ignore_result=True,
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": fake.options().queue("jobs").url}},
            "tracing": is_beside,
            "driver": fake.driver,
        },
        task_default_queue="jobs",
    )

    def many(calls: Any) -> list[Any]:
        write()
        return [KeyError() if call.args == [1] else None for call in calls]

    @app.task(name="job", many=many)
    def job(number: int) -> None:
        write()

    @app.task(name="permanent", base=type("Base", (Task,), {}), dead_letter_on=(KeyError,))
    def permanent(number: int) -> None:
        raise KeyError

    app.finalize()
    app.set_current()
    name = "permanent" if how.endswith("permanent") else "job"
    tracer = celery.app.trace.build_tracer(name, app.tasks[name], app=app)

    def trace(name: str, id_: str, request: Any, body: Any, *_: Any) -> Any:
        traced = tracer(id_, body[0], body[1], request)
        return int(traced.info is not None), traced.retval, traced.runtime

    def request(number: int) -> dict[str, Any]:
        where = {"delivery_info": {"routing_key": "jobs"}, "hostname": "worker", "retries": 5}
        return where | {"task": name, "id": str(number)}

    if is_beside or how.startswith("sent"):
        sent = send(app.tasks[name])
        (message,) = fake.messages(fake.options().queue("jobs").url)
        headers = json.loads(message.body)["headers"]
        trace(name, sent.id, request(0) | headers, ([0], {}, {}))
    elif how != "shared":
        trace(name, "0", request(0), ([0], {}, {}))
    else:
        run(trace, "job", [Job(str(n), request(n), [n], {}, {}) for n in range(3)])
    for line in seen():
        print(json.dumps(line))  # noqa: T201


main(*sys.argv[1:])
