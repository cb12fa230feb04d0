"""The option `tracing` with OpenTelemetry."""

from opentelemetry import trace
from opentelemetry.trace import TracerProvider

from sqs_broker.observers.spans.deliveries import DeliverySpans
from sqs_broker.observers.spans.runs import RunSpans
from sqs_broker.observers.spans.sends import SendSpans
from sqs_broker.observers.spans.spans import SCOPE


class OpenTelemetry:
    """Makes the spans of docs/tracing.md (`sqs_broker.observers.tracing.Tracing`)."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """Without a provider, it is the global one, which may be set later."""
        tracer = trace.get_tracer(SCOPE, tracer_provider=provider)
        self.tracer = tracer
        self.observer = DeliverySpans(tracer)
        runs, sends = RunSpans(tracer), SendSpans(tracer)
        self.delivered = self.observer.delivered
        self.bracket, self.work = runs.bracket, runs.work
        self.sending, self.send = sends.sending, sends.span
