"""`sqs queues`: a line for each queue and its dead letters; an age if it is known."""

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sqs_broker.sqs.queue import Queue
from sqs_broker.testing import Clock, FakeSqs
from sqs_broker.tools.broker import is_aws
from sqs_broker.tools.commands import sqs
from sqs_broker.tools.commands.queues import ages_from, count, duration, remembered

Run = Callable[..., Result]

#: A server that is not Amazon's, so CloudWatch is not called.
ELSEWHERE = "http://127.0.0.1:1"


@pytest.fixture
def fake() -> FakeSqs:
    """Two queues with dead letters in one. Of the first, 12 wait, 3 are in flight, 1 is not due."""
    made = FakeSqs(Clock())
    jobs = made.create_queue("jobs", dead_letters="dead")
    made.create_queue("mail", dead_letters="dead")
    for _ in range(15):
        made.put(jobs, "{}")
    made.put(jobs, "{}", delay=900)
    for _ in range(2):
        made.put(jobs.replace("jobs", "dead"), "{}")
    Queue(jobs, made).receive(3, 0)
    return made


@pytest.fixture
def run(fake: FakeSqs) -> Run:
    """Runs a command of the group on an app with these queues."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(sqs, arguments, obj=SimpleNamespace(app=an_app(fake)))

    return run


def an_app(fake: FakeSqs, transport: str = "sqs_broker:Transport") -> Any:
    options = fake.transport_options(endpoint_url=ELSEWHERE)
    conf = SimpleNamespace(broker_transport=transport, broker_transport_options=options)
    return SimpleNamespace(conf=conf)


def test_each_queue_is_there_once_and_dead_letters_after_their_queue(fake: FakeSqs) -> None:
    rows = list(count(fake, fake.options()))
    assert [(row.queue, row.dead_letters_of) for row in rows] == [
        ("jobs", None),
        ("dead", "jobs"),
        ("mail", None),
    ]
    assert (rows[0].visible, rows[0].in_flight, rows[0].delayed) == (12, 3, 1)


def test_the_table_says_that_the_age_is_not_known(run: Run) -> None:
    ran = run("queues")
    assert ran.exit_code == 0
    assert [line.split() for line in ran.stdout.splitlines()] == [
        ["QUEUE", "VISIBLE", "IN", "FLIGHT", "DELAYED", "OLDEST"],
        ["jobs", "12", "3", "1", "-"],
        ["dead", "2", "0", "0", "-"],
        ["mail", "0", "0", "0", "-"],
    ]
    assert ran.stderr == ""


def test_json_is_one_object_a_queue(run: Run) -> None:
    ran = [json.loads(line) for line in run("queues", "--json").stdout.splitlines()]
    assert [line["queue"] for line in ran] == ["jobs", "dead", "mail"]
    assert ran[0]["visible"] == 12
    assert ran[0]["oldest"] is None


def test_a_queue_that_may_not_be_read_is_reported_and_the_others_are_shown(
    run: Run, fake: FakeSqs
) -> None:
    jobs = fake.options().queue("jobs").url
    fake.deny("GetQueueAttributes", jobs)
    ran = run("queues")
    assert ran.exit_code == 1
    assert "sqs:GetQueueAttributes" in ran.stderr
    assert jobs in ran.stderr
    assert ["mail", "0", "0", "0", "-"] in [line.split() for line in ran.stdout.splitlines()]


def test_watch_repeats_until_it_is_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = iter([None, KeyboardInterrupt])
    sleep_really, mine = time.sleep, threading.current_thread()

    def sleep(seconds: float) -> None:
        if threading.current_thread() is not mine:
            sleep_really(seconds)  # A MongoDB client of another test, for example.
        elif pause := next(pauses):
            raise pause

    monkeypatch.setattr(time, "sleep", sleep)
    ran = run("queues", "--watch", "--json")
    assert ran.exit_code == 0
    assert len(ran.stdout.splitlines()) == 6


def test_an_app_with_another_broker_is_refused(fake: FakeSqs) -> None:
    other = SimpleNamespace(app=an_app(fake, "redis"))
    ran = CliRunner().invoke(sqs, ["queues"], obj=other)
    assert ran.exit_code == 1
    assert "does not use the SQS broker" in ran.stderr


@pytest.mark.parametrize(
    ("endpoint", "its"),
    [
        (None, True),
        ("https://vpce-1.sqs.us-east-1.vpce.amazonaws.com", True),
        ("http://127.0.0.1:9324", False),
        ("https://amazonaws.com.example.org", False),
    ],
)
def test_only_amazons_own_queues_are_in_cloudwatch(endpoint: str | None, its: bool) -> None:
    assert is_aws(endpoint) is its


def test_the_newest_value_is_the_age_and_a_queue_without_one_has_none() -> None:
    class CloudWatch:
        def get_metric_data(self, **call: Any) -> dict[str, Any]:
            asked = [q["MetricStat"]["Metric"]["Dimensions"] for q in call["MetricDataQueries"]]
            assert asked == [[{"Name": "QueueName", "Value": n}] for n in ("the-jobs", "dead")]
            results = [{"Id": "q0", "Values": [75.0, 15.0]}, {"Id": "q1", "Values": []}]
            return {"MetricDataResults": results}

    urls = {"jobs": "https://sqs.test/1/the-jobs", "dead": "https://sqs.test/1/dead"}
    assert ages_from(CloudWatch(), urls, datetime.now(UTC)) == {"jobs": 75}


def test_cloudwatch_is_asked_once_a_minute(clock: Clock) -> None:
    asked: list[float] = []

    def ask() -> dict[str, int]:
        asked.append(clock())
        return {"jobs": len(asked)}

    ages = remembered(ask, clock)
    assert ages() == ages() == {"jobs": 1}
    clock.advance(60)
    assert ages() == {"jobs": 2}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None),
        (0, "0s"),
        (59, "59s"),
        (423, "7m 3s"),
        (19_200, "5h 20m"),
        (273_600, "3d 4h"),
    ],
)
def test_an_age_is_readable(seconds: int | None, text: str | None) -> None:
    assert duration(seconds) == text
