"""The metric lines of a worker, which CloudWatch reads from the log of a container."""

from typing import Any

from celery import bootsteps

from app.errors import AWAY
from app.settings import get_settings
from sqs_broker.observers.metric_lines import MetricLines

observer = MetricLines(
    get_settings().worker_metrics_seconds, queues=get_settings().queues, away=[AWAY]
)


class MetricsFlush(bootsteps.StartStopStep):
    """Is stopped after the consumer, which is always started last and stopped first."""

    def stop(self, worker: Any) -> None:
        """Write the last line."""
        observer.flush()
