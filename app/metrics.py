"""The metric lines of a worker, which CloudWatch reads from the log of a container, and the classes
of results.
"""

from functools import cache
from typing import Any

from celery import bootsteps

from app.errors import AWAY
from app.settings import get_settings
from sqs_broker.observers.metric_lines import MetricLines

observer = MetricLines(
    get_settings().worker_metrics_seconds, queues=get_settings().queues, away=[AWAY]
)


def class_of(task: str, result: str) -> str | None:
    """The result of a registration, without the user; None for any other task."""
    if task == "registerUser":
        for name, begin in _begins():
            if result.startswith(begin):
                return name
    return None


@cache
def _begins() -> tuple[tuple[str, str], ...]:
    """The results of a registration, and how each begins in the log."""
    # A producer imports this module too, and needs no MongoDB driver.
    from app.registration import Result

    return tuple((str(each), f"{{'result': {str(each)!r}") for each in Result)


class MetricsFlush(bootsteps.StartStopStep):
    """Is stopped after the consumer, which is always started last and stopped first."""

    def stop(self, worker: Any) -> None:
        """Write the last line."""
        observer.flush()
