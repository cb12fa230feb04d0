"""Spans of OpenTelemetry for each message: docs/tracing.md. Needs `opentelemetry-api`; whoever runs
a process gives it a provider.
"""

from sqs_broker.observers.spans.opentelemetry import OpenTelemetry

__all__ = ["OpenTelemetry", "tracing"]

#: The one of this process, which uses its global provider. Use: `"tracing": True` in
#: broker_transport_options.
tracing = OpenTelemetry()
