"""The metric lines of a worker: one for each queue and period, with what happened in it."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from sqs_broker.observers.metric_lines import MetricLines
from sqs_broker.observers.metrics import UNITS
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import DeadLetter, Done, Failed, Released, Retry, Succeeded
from tests.services import wait_until
from tests.unit.conftest import MakeDelivery

SENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NOW = SENT.timestamp() + 90

#: Seconds that no test takes.
LONG = 600.0


class Written:
    """What was written."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._made: list[MetricLines] = []

    def observer(self, period: float = LONG, **options: Any) -> MetricLines:
        made = MetricLines(
            period,
            write=lambda line: self.lines.append(json.loads(line)),
            wall_clock=lambda: NOW,
            **options,
        )
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.flush()
        wait_until(lambda: not running(), 10, "the end of the threads")


@pytest.fixture
def written() -> Iterator[Written]:
    made = Written()
    yield made
    made.close()


@pytest.fixture
def message(make_delivery: MakeDelivery) -> Callable[..., Facts]:
    def make(**changes: Any) -> Facts:
        delivery = make_delivery(**{"enqueued_at": SENT} | changes)
        return Facts(delivery, "task", "id-1", None)

    return make


def failed() -> Failed:
    return Failed("ValueError", "text")


def running() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "metric-lines"]


def test_a_line_has_the_sums_of_its_period(written: Written, message: Callable[..., Facts]) -> None:
    observer = written.observer()
    for number in range(5):
        each = message()
        observer.received(each)
        if number:
            observer.ended(each, Succeeded(), Done())
        else:
            observer.ended(each, failed(), Retry(5, "ValueError"))
    observer.settled(message(), Done(), "AccessDenied")
    observer.settled(message(), Done(), None)
    assert written.lines == []
    observer.flush()
    (line,) = written.lines
    assert line["_aws"]["Timestamp"] == NOW * 1000
    names = ("Queue", "Ended", "Failed", "Age", "SettleFailures", "SentToDone", "ServiceAway")
    assert {name: line[name] for name in names} == {
        "Queue": "jobs",
        "Ended": 5,
        "Failed": 1,
        "Age": 90.0,
        "SettleFailures": 1,
        "SentToDone": [90_000] * 4,
        "ServiceAway": 0,
    }


def test_a_lost_lease_is_counted_and_nothing_else_is(
    written: Written, message: Callable[..., Facts]
) -> None:
    observer = written.observer()
    observer.lost(message(), "its time ran out")
    observer.flush()
    (line,) = written.lines
    counts = {name: line.get(name, 0) for name, unit in UNITS.items() if unit == "Count"}
    assert {name: count for name, count in counts.items() if count} == {"LostLeases": 1}
    assert not {"Age", "SentToDone"} & set(line)


def test_the_calls_since_the_last_line_are_counted_and_an_idle_worker_has_no_line(
    written: Written, message: Callable[..., Facts]
) -> None:
    observer = written.observer(period=0.02, queues=["jobs"])
    for _ in range(3):
        observer.called("ReceiveMessage", "jobs", 20.0, None)
    observer.called("SendMessage", "jobs-dlq", 0.1, None)
    assert running() == []
    for count in (4, 1):
        observer.called("DeleteMessageBatch", "jobs", 0.1, "InternalError")
        observer.ended(message(), Succeeded(), Done())
        wait_until(lambda: not running(), 30, "the end of the thread")
        assert written.lines[-1]["Calls"] == count


def test_each_queue_has_a_line_and_the_next_period_begins_at_zero(
    written: Written, message: Callable[..., Facts]
) -> None:
    observer = written.observer(period=0.02)
    observer.ended(message(), Succeeded(), Done())
    observer.ended(message(queue="mail"), failed(), DeadLetter("no", "ValueError"))
    wait_until(lambda: len(written.lines) == 2, 30, "the lines")
    assert sorted((line["Queue"], line["DeadLettered"]) for line in written.lines) == [
        ("jobs", 0),
        ("mail", 1),
    ]
    observer.ended(message(), failed(), Retry(5, "ValueError"))
    wait_until(lambda: len(written.lines) == 3, 30, "the line")
    assert (written.lines[2]["Ended"], written.lines[2]["Failed"]) == (1, 1)


def test_what_is_released_is_no_ended_run(written: Written, message: Callable[..., Facts]) -> None:
    observer = written.observer()
    observer.ended(message(), Succeeded(), Released())
    observer.flush()
    assert (written.lines[0]["Ended"], written.lines[0]["Released"]) == (0, 1)


def test_a_third_failure_is_a_late_one(written: Written, message: Callable[..., Facts]) -> None:
    observer = written.observer()
    for count in (1, 2, 3):
        observer.ended(message(count=count), failed(), Retry(5, "ValueError"))
    observer.flush()
    assert written.lines[0]["LateFailures"] == 1


def test_an_outage_is_in_each_line_of_each_queue_until_it_is_over(written: Written) -> None:
    observer = written.observer(period=0.02, queues=["jobs", "mail"], away=["away"])
    observer.paused(frozenset({"away", "stop"}))
    wait_until(lambda: len(written.lines) >= 6, 30, "three lines of each queue")
    assert {line["ServiceAway"] for line in written.lines} == {1}
    assert {line["Queue"] for line in written.lines} == {"jobs", "mail"}
    observer.paused(frozenset())
    wait_until(lambda: not running(), 30, "the end of the thread")
    count = len(written.lines)
    observer.paused(frozenset({"another reason"}))
    assert running() == []
    assert len(written.lines) == count


def test_a_paused_queue_has_a_line_each_period_until_it_is_resumed(written: Written) -> None:
    observer = written.observer(period=0.02, queues=["jobs", "jobs2"], away=["away"])
    observer.paused(frozenset({"jobs: deploy (kim, until it is resumed)"}))
    wait_until(lambda: len(written.lines) >= 3, 30, "three lines")
    assert {line["Queue"] for line in written.lines} == {"jobs"}
    assert {(line["Paused"], line["ServiceAway"]) for line in written.lines} == {(1, 0)}
    observer.paused(frozenset())
    wait_until(lambda: not running(), 30, "the end of the thread")


def test_a_line_of_a_queue_that_is_not_paused_has_no_series_for_pauses(
    written: Written, message: Callable[..., Facts]
) -> None:
    observer = written.observer(queues=["jobs"])
    observer.received(message())
    observer.flush()
    assert "Paused" not in written.lines[0]


def test_an_outage_that_is_shorter_than_a_period_is_in_its_line(written: Written) -> None:
    observer = written.observer(queues=["jobs"], away=["away"])
    observer.paused(frozenset({"away"}))
    observer.paused(frozenset())
    observer.flush()
    assert [line["ServiceAway"] for line in written.lines] == [1]


def test_a_worker_without_messages_has_no_thread_and_writes_nothing(
    written: Written, message: Callable[..., Facts]
) -> None:
    observer = written.observer(period=0.02)
    assert running() == []
    observer.ended(message(), Succeeded(), Done())
    wait_until(lambda: not running(), 30, "the end of the thread")
    assert len(written.lines) == 1
    observer.ended(message(), Succeeded(), Done())
    wait_until(lambda: len(written.lines) == 2, 30, "the line")


def test_a_line_has_at_most_100_values_of_a_metric_and_15_metrics(
    written: Written, message: Callable[..., Facts]
) -> None:
    observer = written.observer()
    for _ in range(150):
        observer.ended(message(), Succeeded(), Done())
    observer.flush()
    (line,) = written.lines
    assert line["Ended"] == 150
    assert len(line["SentToDone"]) == 100
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert len(directive["Metrics"]) <= 15
    assert directive["Dimensions"] == [["Queue"]]
