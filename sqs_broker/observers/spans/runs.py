"""The spans of the pool: one for each run of a task, and one for the work that messages share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery.exceptions import Ignore, Retry
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Tracer

from sqs_broker.errors import label
from sqs_broker.observers.spans.spans import (
    active,
    attributes,
    context_in,
    fail,
    fail_with,
    harmless,
    is_of_celerys,
)
from sqs_broker.rules.trace_context import TRACEPARENT, TRACESTATE


class RunSpans:
    """Knows the spans of the runs of this process. Thread-safe."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        #: By the `traceparent` of the message, which is of one delivery only.
        self._running: dict[str, Span] = {}

    @contextmanager
    def bracket(self, task: Any, request: Any) -> Iterator[None]:
        """The span of a run. If OpenTelemetry's own instrumentation of Celery has made one, that is
        the one."""
        own: Span | None = None
        current = trace.get_current_span()
        given = _attributes(task, request)
        with harmless():
            if is_of_celerys(current):
                current.set_attributes(given)
            else:
                own = current = self._tracer.start_span(
                    f"process {task.name}", _parent(request), SpanKind.CONSUMER, given
                )
        key = str(getattr(request, TRACEPARENT, None) or request.id)
        self._running[key] = current
        try:
            with active(own):
                yield
        except BaseException as exc:
            with harmless():
                _end_with(current, exc, is_own=own is not None)
            raise
        finally:
            self._running.pop(key, None)
            with harmless():
                if own is not None:
                    own.end()

    @contextmanager
    def work(self, name: str, requests: Sequence[Any]) -> Iterator[None]:
        """The span of the work of a job. It is in the trace of the first message that is sampled,
        and it and the span of each message have a link to the other."""
        span: Span | None = None
        with harmless():
            span = self._begin_work(name, requests)
        try:
            with active(span):
                yield
        except BaseException as exc:
            with harmless():
                if span is not None:
                    fail(span, exc)
            raise
        finally:
            with harmless():
                if span is not None:
                    span.end()

    def _begin_work(self, name: str, requests: Sequence[Any]) -> Span | None:
        keys = [str(getattr(each, TRACEPARENT, None) or each.id) for each in requests]
        runs = [self._running[key] for key in keys if key in self._running]
        if not runs:
            return None
        first = next((run for run in runs if run.get_span_context().trace_flags.sampled), runs[0])
        span = self._tracer.start_span(
            f"process {name} together",
            trace.set_span_in_context(first),
            SpanKind.CONSUMER,
            attributes(
                _queue_of(requests[0]),
                "process",
                "process",
                messaging__batch__message_count=len(requests),
                sqs_broker__task=name,
            ),
            [Link(run.get_span_context()) for run in runs],
        )
        for run in runs:
            run.add_link(span.get_span_context())
        return span


def _parent(request: Any) -> Context | None:
    """The span that the message names; the current one if it names none: it was called without a
    queue."""
    names = (TRACEPARENT, TRACESTATE)
    carrier = {n: v for n in names if isinstance(v := getattr(request, n, None), str)}
    return context_in(carrier) if carrier else None


def _attributes(task: Any, request: Any) -> dict[str, Any]:
    return attributes(
        _queue_of(request),
        "process",
        "process",
        messaging__message__id=request.id,
        sqs_broker__task=task.name,
        sqs_broker__attempt=(request.retries or 0) + 1,
    )


def _queue_of(request: Any) -> str:
    return str((request.delivery_info or {}).get("routing_key"))


def _end_with(span: Span, exc: BaseException, *, is_own: bool) -> None:
    if isinstance(exc, Retry):
        span.set_attribute("sqs_broker.outcome", "retry")
        if exc.exc is None:
            return  # The task has asked for it, and nothing has failed.
        exc = exc.exc
    if isinstance(exc, Ignore):
        return
    if is_own:
        fail(span, exc)
    else:
        # It notes the exception itself, unless the task is retried.
        fail_with(span, label(exc))
