"""A worker on SQS in memory that runs its tasks, and the spans that it and its producer make."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery import Celery
from celery.app.trace import build_tracer
from celery.concurrency.base import BasePool
from celery.worker import state
from kombu.asynchronous import set_event_loop
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.messages import Increment
from app.typed_task import TypedTask
from sqs_broker import install
from sqs_broker.observers.observer import Observer
from sqs_broker.observers.spans import OpenTelemetry
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import Outcome
from sqs_broker.testing import Clock, FakeSqs
from sqs_broker.worker.batch import run
from tests.services import wait_until
from tests.unit.in_memory import DEADLINE, InMemoryWorker, Outcomes, new_sqs


class Pool(BasePool):
    """Runs a job at once, in this thread."""

    celery_app: Celery

    def apply_async(
        self, target: Any, args: Any, accept_callback: Any, callback: Any, **_: Any
    ) -> None:
        accept_callback(1, 0.0)
        if target is run:
            _, name, jobs = args
            callback(run(self._traced, name, jobs, self.celery_app.tasks[name]))
        else:
            callback(self._traced(*args))

    def _traced(self, name: str, id_: str, request: Any, body: Any, *_: Any) -> Any:
        task = self.celery_app.tasks[name]
        args, kwargs, embed = body
        request = request | {"args": args, "kwargs": kwargs} | (embed or {})
        traced = build_tracer(name, task, app=self.celery_app)(id_, args, kwargs, request)
        return int(traced.info is not None), traced.retval, traced.runtime


class Spans:
    """Spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = OpenTelemetry(self.provider)

    @property
    def all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    @property
    def names(self) -> list[str]:
        return sorted(span.name for span in self.all)

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans of this name, in the order of their starts."""
        found = [span for span in self.all if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def one(self, name: str) -> ReadableSpan:
        (found,) = self.named(name)
        return found

    def tree(self) -> list[str]:
        """A line for each span: the names from its root to itself."""
        by_id = {span.context.span_id: span for span in self.all if span.context}

        def path(span: ReadableSpan) -> str:
            above = by_id.get(span.parent.span_id) if span.parent else None
            return f"{path(above)} > {span.name}" if above else span.name

        return sorted(map(path, self.all))

    def forget(self) -> None:
        self._exporter.clear()


class Settlements(Observer):
    """The messages that SQS was told of, or was not, by SQS's MessageId."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        self.ids.add(message.delivery.message_id)


class Traced:
    """An app with a few tasks, its worker and its spans. `do` is what they do, with the input."""

    def __init__(self, spans: Spans) -> None:
        self.spans = spans
        self.clock = Clock()
        self.fake: FakeSqs = new_sqs(self.clock)
        self.outcomes = Outcomes()
        self.settlements = Settlements()
        self.do: Callable[[int], object] = lambda _: None
        self.app = app = Celery("traced", set_as_current=False)
        install(app)
        app.conf.update(
            broker_transport_options=self.fake.transport_options(
                decode_json="app.messages:decode_json",
                observers=[self.outcomes, self.settlements],
                tracing=spans.tracing,
            ),
            task_default_queue="jobs",
            task_acks_late=True,
            task_reject_on_worker_lost=True,
            task_acks_on_failure=False,
            task_acks_on_timeout=False,
            task_ignore_result=True,
            task_time_limit=30,
            worker_send_task_events=False,
        )

        @app.task(shared=False, name="job", model=Increment)
        def job(input: int) -> None:
            self.do(input)

        @app.task(shared=False, name="permanent", dead_letter_on=(KeyError,))
        def permanent(input: int) -> None:
            self.do(input)

        def many(calls: Sequence[Any]) -> list[Any]:
            self.do(len(calls))
            return [KeyError() if call.kwargs["input"] == 1 else None for call in calls]

        @app.task(shared=False, name="shared", many=many)
        def shared(input: int) -> None:
            self.do(input)

        def many_typed(pairs: Sequence[Any]) -> list[Any]:
            self.do(len(pairs))
            return [None] * len(pairs)

        @app.task(base=TypedTask, shared=False, name="typed", model=Increment, many=many_typed)
        def typed(message: Increment, provenance: Any) -> None:
            self.do(message.input)

    @property
    def url(self) -> str:
        return self.fake.options().queue("jobs").url

    @contextmanager
    def worker(self) -> Iterator[InMemoryWorker]:
        pool = type("AppsPool", (Pool,), {"celery_app": self.app})
        running = InMemoryWorker(self.app, self.fake, self.clock, self.outcomes, pool)
        try:
            yield running
        finally:
            running.close()
            set_event_loop(None)
            state.requests.clear()
            state.reserved_requests.clear()

    def run(self, worker: InMemoryWorker) -> None:
        """Run what is on the queue to the end of this delivery."""
        ids = {message.message_id for message in self.fake.messages(self.url)}
        worker.outcomes_of(list(ids))
        # A message that ends on a receiver's thread is settled after its outcome is known here.
        wait_until(lambda: self.settlements.ids >= ids, DEADLINE, "the settlements")
        self.settlements.ids -= ids
