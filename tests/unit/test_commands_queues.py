"""`sqs queues`: a line for each queue and its dead letters; an age where there is one."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner, Result

from sqs_broker.options import Options, QueueAddress
from sqs_broker.tools.commands import sqs
from sqs_broker.tools.commands.queues import ages_from, duration, is_aws, look, remembered

JOBS, MAIL, DEAD = "https://sqs.test/1/jobs", "https://sqs.test/1/mail", "https://sqs.test/1/dead"
OPTIONS = Options(
    region="us-east-1",
    queues={"jobs": QueueAddress(JOBS, DEAD), "mail": QueueAddress(MAIL, DEAD)},
    endpoint_url="http://127.0.0.1:1",
)


class Sqs:
    """Stands where boto3's client stands. `counts` are by URL; what has none is not allowed."""

    def __init__(self, counts: dict[str, tuple[int, int, int]]) -> None:
        self.counts = counts

    def get_queue_attributes(self, **call: Any) -> dict[str, Any]:
        if call["QueueUrl"] not in self.counts:
            raise ClientError({"Error": {"Code": "AccessDenied"}}, "GetQueueAttributes")
        counts = self.counts[call["QueueUrl"]]
        return {"Attributes": dict(zip(call["AttributeNames"], map(str, counts), strict=True))}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command of the group on an app with these queues."""

    def run(counts: dict[str, tuple[int, int, int]], *arguments: str) -> Result:
        monkeypatch.setattr("sqs_broker.tools.commands.queues.client_of", lambda _: Sqs(counts))
        return CliRunner().invoke(sqs, arguments, obj=SimpleNamespace(app=an_app()))

    return run


def an_app(transport: str = "sqs_broker:Transport") -> Any:
    queues = {
        name: {"url": queue.url, "dead_letter_url": queue.dead_letter_url}
        for name, queue in OPTIONS.queues.items()
    }
    options = {
        "region": "us-east-1",
        "endpoint_url": OPTIONS.endpoint_url,
        "predefined_queues": queues,
    }
    conf = SimpleNamespace(broker_transport=transport, broker_transport_options=options)
    return SimpleNamespace(conf=conf)


COUNTS = {JOBS: (12, 3, 1), MAIL: (0, 0, 0), DEAD: (2, 0, 0)}


def test_each_queue_is_there_once_and_dead_letters_after_their_queue() -> None:
    rows = list(look(Sqs(COUNTS), OPTIONS))  # type: ignore[arg-type]  # a fake
    assert [(row.queue, row.dead_letters_of) for row in rows] == [
        ("jobs", None),
        ("dead", "jobs"),
        ("mail", None),
    ]
    assert (rows[0].visible, rows[0].in_flight, rows[0].delayed) == (12, 3, 1)


def test_the_table_says_that_the_age_is_not_known(run: Callable[..., Result]) -> None:
    told = run(COUNTS, "queues")
    assert told.exit_code == 0
    assert [line.split() for line in told.stdout.splitlines()] == [
        ["QUEUE", "VISIBLE", "IN", "FLIGHT", "DELAYED", "OLDEST"],
        ["jobs", "12", "3", "1", "-"],
        ["dead", "2", "0", "0", "-"],
        ["mail", "0", "0", "0", "-"],
    ]
    assert told.stderr == ""


def test_json_is_one_object_a_queue(run: Callable[..., Result]) -> None:
    told = [json.loads(line) for line in run(COUNTS, "queues", "--json").stdout.splitlines()]
    assert [line["queue"] for line in told] == ["jobs", "dead", "mail"]
    assert told[0]["visible"] == 12
    assert told[0]["oldest"] is None


def test_a_queue_that_may_not_be_read_is_said_and_the_others_are_shown(
    run: Callable[..., Result],
) -> None:
    told = run({MAIL: (1, 0, 0)}, "queues")
    assert told.exit_code == 1
    assert "sqs:GetQueueAttributes" in told.stderr
    assert JOBS in told.stderr
    assert ["mail", "1", "0", "0", "-"] in [line.split() for line in told.stdout.splitlines()]


def test_watch_looks_again_until_it_is_interrupted(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = iter([None, KeyboardInterrupt])

    def sleep(seconds: float) -> None:
        if pause := next(pauses):
            raise pause

    monkeypatch.setattr("sqs_broker.tools.commands.queues.time.sleep", sleep)
    told = run(COUNTS, "queues", "--watch", "--json")
    assert told.exit_code == 0
    assert len(told.stdout.splitlines()) == 6


def test_an_app_on_another_broker_is_told_so() -> None:
    other = SimpleNamespace(app=an_app("redis"))
    told = CliRunner().invoke(sqs, ["queues"], obj=other)
    assert told.exit_code == 1
    assert "not on the SQS broker" in told.stderr


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

    urls = {"jobs": "https://sqs.test/1/the-jobs", "dead": DEAD}
    assert ages_from(CloudWatch(), urls, datetime.now(UTC)) == {"jobs": 75}


def test_cloudwatch_is_asked_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("sqs_broker.tools.commands.queues.time.monotonic", lambda: now[0])
    asked: list[float] = []

    def ask() -> dict[str, int]:
        asked.append(now[0])
        return {"jobs": len(asked)}

    ages = remembered(ask)
    assert ages() == ages() == {"jobs": 1}
    now[0] += 60
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
def test_an_age_reads_as_people_say_it(seconds: int | None, text: str | None) -> None:
    assert duration(seconds) == text
