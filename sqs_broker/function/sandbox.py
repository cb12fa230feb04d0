"""What a sandbox of the function keeps from one invocation to the next."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqs_broker.function.service import Outage, Service
from sqs_broker.observers.observer import Observer
from sqs_broker.options import Options
from sqs_broker.rules.attempts import AttemptStore
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.settlement import Reporter


@dataclass(frozen=True)
class Sandbox:
    """What is opened once, while Lambda starts the sandbox."""

    app: Any
    """The Celery app."""
    options: Options
    driver: Driver
    reporter: Reporter
    attempts: AttemptStore | None
    """The store of failed runs; None if there is none."""
    observers: Observer
    service: Service
    outage: Outage
    calls: Counter[str]
    """The calls to SQS of the present invocation, by the name of the queue."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    wall_clock: Callable[[], float]
    """Seconds since 1970."""
    write: Callable[[str], Any]
    """Writes a metric line."""
    end: Callable[[], Any]
    """Ends this process."""
