"""The metric lines of a worker, which CloudWatch reads from the log of a container, and the classes
of results.
"""

import re
from functools import cache
from typing import Any

from celery import bootsteps

from app.errors import AWAY
from app.settings import get_settings
from sqs_broker.observers.metric_lines import MetricLines

observer = MetricLines(
    get_settings().worker_metrics_seconds, queues=get_settings().queues, away=[AWAY]
)

#: How the result of a registration begins in the log.
_BEGINS = re.compile(r"\{'result': '([a-z ]+)'")


def class_of(task: str, result: str) -> str | None:
    """The result of a registration, without the user; None for any other task."""
    found = _BEGINS.match(result) if task == "registerUser" else None
    return found[1] if found and found[1] in _results() else None


@cache
def _results() -> frozenset[str]:
    # A producer imports this module too, and needs no MongoDB driver.
    from app.registration import Result

    return frozenset(Result)


class MetricsFlush(bootsteps.StartStopStep):
    """Is stopped after the consumer, which is always started last and stopped first."""

    def stop(self, worker: Any) -> None:
        """Write the last line."""
        observer.flush()
