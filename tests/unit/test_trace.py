"""`sqs trace`: what a log says of one message, and what the command cannot know."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from app.messages import decode_json
from sqs_broker.testing import Clock, FakeSqs
from sqs_broker.tools.commands import sqs
from sqs_broker.tools.trace import Fact, in_log, in_order, insights_query

AT = "2026-11-27T08:10:01.250+00:00"
RETRY = {
    "time": AT,
    "event": "message.retry",
    "message_id": "id-1",
    "sqs_message_id": "sqs-1",
    "attempt": 1,
    "error": "OperationFailure(96)",
    "body": "marker",
}


def lines(*contents: Any) -> list[str]:
    return [each if isinstance(each, str) else json.dumps(each) for each in contents]


def test_the_log_has_each_failed_attempt_with_its_time_and_error() -> None:
    second = RETRY | {"time": "2026-11-27T08:10:05+00:00", "attempt": 2, "error": "OSError"}
    found = in_log(lines(RETRY, second), "id-1")
    assert [fact.text for fact in found.facts] == [
        "message.retry attempt=1 error=OperationFailure(96)",
        "message.retry attempt=2 error=OSError",
    ]
    assert found.facts[0].at == datetime(2026, 11, 27, 8, 10, 1, 250_000, tzinfo=UTC)
    assert found.sqs_ids == {"sqs-1"}


@pytest.mark.parametrize(
    "other", ["id-1 but no JSON", '["id-1"]', RETRY | {"message_id": "id-10"}, {"reason": "id-1"}]
)
def test_other_lines_are_left_out(other: Any) -> None:
    assert in_log(lines(other), "id-1").facts == ()


def test_a_message_is_found_by_the_id_of_sqs_too() -> None:
    assert len(in_log(lines(RETRY), "sqs-1").facts) == 1


def test_facts_are_in_the_order_of_time_and_those_without_one_last() -> None:
    late, early = datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    facts = [Fact("a", "none"), Fact("a", "late", late), Fact("a", "early", early)]
    assert [fact.text for fact in in_order(facts)] == ["early", "late", "none"]


def test_an_id_cannot_change_the_query() -> None:
    assert r'message_id = "x\" or 1=1"' in insights_query('x" or 1=1')


# The command


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    made = FakeSqs(clock)
    made.create_queue("jobs", dead_letters="dead")
    return made


def known(celery_app: Any, id_: str) -> list[Fact]:
    """What a project knows."""
    return [Fact("project", f"order of {id_}")]


def failing(celery_app: Any, id_: str) -> list[Fact]:
    raise click.ClickException("away")


def trace(fake: FakeSqs, *arguments: str, traces: tuple[Any, ...] = (), stdin: str = "") -> Result:
    options = fake.transport_options(decode_json=decode_json)
    conf = SimpleNamespace(
        broker_transport="sqs_broker:Transport", broker_transport_options=options
    )
    app = SimpleNamespace(conf=conf, sqs_traces=traces)
    return CliRunner().invoke(sqs, ["trace", *arguments], obj=SimpleNamespace(app=app), input=stdin)


def bury(fake: FakeSqs, id_: str) -> None:
    note = {"reason": "too late", "error": "Conflict", "source_queue": "jobs", "deliveries": 2}
    attribute = {"DataType": "String", "StringValue": json.dumps(note)}
    body = json.dumps({"id": id_, "action": "registerUser", "data": {"x": "marker"}})
    dead = fake.options().queue("jobs").dead_letter_url or ""
    fake.put(dead, body, attributes={"dead-letter": attribute})


def test_it_never_receives_from_a_main_queue_and_says_so(fake: FakeSqs) -> None:
    jobs = fake.options().queue("jobs").url
    fake.put(jobs, json.dumps({"id": "id-1", "action": "registerUser", "data": {}}))
    ran = trace(fake, "id-1")
    assert ran.exit_code == 1
    assert "never receives from a main queue" in ran.stderr
    assert "Nothing is known of id-1" in ran.stderr
    assert jobs not in {call["QueueUrl"] for call in fake.asked("ReceiveMessage")}


def test_all_sources_are_shown_without_the_content_of_the_message(
    fake: FakeSqs, tmp_path: Path
) -> None:
    bury(fake, "id-1")
    bury(fake, "id-2")
    log = tmp_path / "worker.log"
    log.write_text("\n".join(lines(RETRY, "no JSON")))
    ran = trace(fake, "id-1", "--log", str(log), traces=(known,))
    assert ran.exit_code == 0, ran.output
    assert "message.retry attempt=1" in ran.stdout
    assert "from jobs after 2 deliveries: Conflict: too late" in ran.stdout
    assert "order of id-1" in ran.stdout
    assert len(ran.stdout.splitlines()) == 3
    assert "marker" not in ran.output
    assert "Insights" not in ran.stderr


def test_without_a_log_it_prints_the_query(fake: FakeSqs) -> None:
    bury(fake, "id-1")
    ran = trace(fake, "id-1", "--json")
    assert 'filter message_id = "id-1"' in ran.stderr
    assert [json.loads(line)["source"] for line in ran.stdout.splitlines()] == ["dead letter"]


def test_the_log_may_come_from_stdin_and_the_dead_letters_may_be_left(fake: FakeSqs) -> None:
    ran = trace(fake, "id-1", "--log", "-", "--no-dead-letters", stdin="\n".join(lines(RETRY)))
    assert ran.exit_code == 0, ran.output
    assert "message.retry" in ran.stdout
    assert "ReceiveMessage" not in fake.counts


def test_a_source_that_does_not_answer_is_named_and_the_others_are_shown(fake: FakeSqs) -> None:
    bury(fake, "id-1")
    ran = trace(fake, "id-1", traces=(failing,))
    assert ran.exit_code == 1
    assert "Not asked: the project: away" in ran.stderr
    assert "dead letter" in ran.stdout
