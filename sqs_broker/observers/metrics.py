"""The metric line of a queue: for an invocation of a function, or a period of a worker. It is in
CloudWatch's embedded metric format.

CloudWatch makes metrics of a log line that is such a JSON object, so there is no call for them.
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import (
    DeadLetter,
    Done,
    Failed,
    Happened,
    Outcome,
    Postponed,
    Refused,
    Released,
    RetryAsked,
    UnknownTask,
)

NAMESPACE = "SqsBroker"

#: The only dimension: the name of the queue.
DIMENSION = "Queue"

#: Most values of one metric in a line.
MOST_VALUES = 100

#: The number of the failed run of a message from which one counts as `LateFailures`.
LATE = 3

#: Metrics that a line has only if they were counted: CloudWatch bills a series in each hour in
#: which it has data.
SELDOM = frozenset({"Paused"})

#: The metrics, with their units.
UNITS: Mapping[str, str] = {
    "Ended": "Count",
    "Failed": "Count",
    "DeadLettered": "Count",
    "LateFailures": "Count",
    "Released": "Count",
    "SettleFailures": "Count",
    "LostLeases": "Count",
    "UnreadableRecords": "Count",
    "ServiceAway": "Count",
    "Paused": "Count",
    "Calls": "Count",
    "Age": "Seconds",
    "SentToDone": "Milliseconds",
}


class Metrics:
    """The figures of one line. docs/lambda.md says what each counts."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._counts: Counter[str] = Counter(dict.fromkeys(UNITS, 0))
        self._oldest: float | None = None
        self._times: list[float] = []

    def received(self, message: Facts, now: float) -> None:
        """Note how old a message is. `now`: seconds since 1970."""
        age = now - message.delivery.enqueued_at.timestamp()
        self._oldest = max(age, self._oldest or 0.0, 0.0)

    def ended(self, message: Facts, happened: Happened, outcome: Outcome, now: float) -> None:
        """Count a delivery that ended."""
        is_retry = isinstance(outcome, Postponed) and outcome.error is not None
        if isinstance(outcome, Released | Postponed) and not is_retry:
            self._counts["Released"] += 1
            return
        self._counts["Ended"] += 1
        self._counts["DeadLettered"] += isinstance(outcome, DeadLetter)
        if isinstance(happened, Failed | RetryAsked | Refused | UnknownTask):
            self._counts["Failed"] += 1
            is_end = isinstance(outcome, Done)
            self._counts["LateFailures"] += message.delivery.attempt >= LATE and not is_end
        if isinstance(outcome, Done) and len(self._times) < MOST_VALUES:
            sent_at = message.delivery.enqueued_at.timestamp()
            self._times.append(max(now - sent_at, 0.0) * 1000)

    def count(self, name: str, number: int = 1) -> None:
        """Count something that is no outcome."""
        self._counts[name] += number

    def has(self, name: str) -> bool:
        """Whether something was counted under this name."""
        return self._counts[name] > 0

    def line(self, now: float) -> str:
        """The line, without a line end. `now`: seconds since 1970."""
        values: dict[str, Any] = {
            name: self._counts[name] for name in UNITS if name not in SELDOM or self._counts[name]
        }
        values["Age"] = None if self._oldest is None else round(self._oldest, 3)
        values["SentToDone"] = [round(time) for time in self._times] or None
        values = {name: value for name, value in values.items() if value is not None}
        metrics = [{"Name": name, "Unit": UNITS[name]} for name in values]
        directive = {"Namespace": NAMESPACE, "Dimensions": [[DIMENSION]], "Metrics": metrics}
        return json.dumps(
            {
                "_aws": {"Timestamp": int(now * 1000), "CloudWatchMetrics": [directive]},
                DIMENSION: self._queue,
                **values,
            }
        )
