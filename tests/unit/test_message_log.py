"""The log lines about one delivery: its outcome, its ids and its time, and never its body."""

import logging
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

import pytest

from sqs_broker.observers.log import MessageLog
from sqs_broker.rules.attempts import Record
from sqs_broker.rules.facts import Facts, facts_of
from sqs_broker.rules.outcomes import (
    DeadLetter,
    Done,
    Outcome,
    Postponed,
    Released,
    Retry,
    Succeeded,
    UnknownTask,
)
from tests.unit.conftest import HEADERS, SENT, MakeDelivery

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def the_line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = caplog.records
    return vars(record) | {"text": record.getMessage()}


@pytest.mark.parametrize(
    ("outcome", "level", "facts"),
    [
        (Done(), logging.INFO, {"event": "message.done"}),
        (Released(), logging.INFO, {"event": "message.released"}),
        (Postponed(900), logging.INFO, {"event": "message.postponed"}),
        (
            Retry(7, "KeyError"),
            logging.WARNING,
            {"event": "message.retry", "delay": 7, "error": "KeyError"},
        ),
        (
            Postponed(7, "KeyError", is_again=True),
            logging.WARNING,
            {"event": "message.retry", "delay": 7, "error": "KeyError"},
        ),
        (
            DeadLetter("no such task", "KeyError"),
            logging.ERROR,
            {"event": "message.dead-letter", "reason": "no such task", "error": "KeyError"},
        ),
    ],
)
def test_the_end_of_a_delivery_is_told_with_what_its_outcome_says(
    make_delivery: MakeDelivery,
    caplog: pytest.LogCaptureFixture,
    outcome: Outcome,
    level: int,
    facts: dict[str, Any],
) -> None:
    MessageLog().ended(facts_of(make_delivery(), HEADERS), Succeeded(), outcome)
    line = the_line(caplog)
    assert line["levelno"] == level
    assert {name: line[name] for name in facts} == facts


def test_a_dead_letter_is_an_error_only_if_no_task_has_reported_one(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    ran = facts_of(make_delivery(), HEADERS, started_at=monotonic())
    MessageLog().ended(ran, Succeeded(), DeadLetter("gone", "KeyError"))
    assert the_line(caplog)["levelno"] == logging.WARNING


def test_a_sentence_and_what_fills_it_are_apart(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    # Tools that collect errors take lines of one sentence for one fault.
    facts = facts_of(make_delivery(), HEADERS)
    for outcome in (DeadLetter("one", "KeyError"), DeadLetter("two", "KeyError")):
        MessageLog().ended(facts, Succeeded(), outcome)
    assert {record.msg for record in caplog.records} == {"Message dead-lettered: %s."}
    assert [record.args for record in caplog.records] == [("one",), ("two",)]


def test_the_end_of_a_delivery_is_told_with_its_ids_and_without_its_body(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = make_delivery(message_id="sqs-7", count=3, body=MARKER, receipt_handle=MARKER)
    MessageLog().ended(facts_of(delivery, HEADERS), Succeeded(), Done())
    line = the_line(caplog)
    assert (line["task"], line["message_id"]) == ("registerUser", "id-1")
    assert (line["sqs_message_id"], line["queue"], line["deliveries"]) == ("sqs-7", "jobs", 3)
    assert MARKER not in str(line)


def test_a_line_has_the_number_of_the_attempt_beside_that_of_the_deliveries(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = make_delivery(count=5, record=Record(failed=frozenset({2})))
    MessageLog().ended(facts_of(delivery, HEADERS), Succeeded(), Done())
    line = the_line(caplog)
    assert (line["deliveries"], line["attempt"]) == (5, 2)


def test_an_unknown_task_is_told_once_by_its_name_while_its_messages_have_grace(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    log, facts = MessageLog(), facts_of(make_delivery(body=MARKER), HEADERS)
    for name in ("later", "later", "other"):
        log.ended(facts, UnknownTask(name), Released(5))
    log.ended(facts, UnknownTask("third"), DeadLetter("unknown task 'third'", "KeyError"))
    lines = [r for r in caplog.records if vars(r)["event"] == "task.unknown"]
    assert [line.levelno for line in lines] == [logging.WARNING] * 2
    assert "'later'" in lines[0].getMessage()
    assert "'other'" in lines[1].getMessage()
    assert MARKER not in caplog.text


def times(
    caplog: pytest.LogCaptureFixture, message: Facts, now: float, at: datetime
) -> dict[str, float]:
    """The times in the line of a delivery that ends at `now`, which is `at` by the time of day."""
    log = MessageLog(clock=lambda: now, time_of_day=at.timestamp)
    log.ended(message, Succeeded(), Done())
    line = the_line(caplog)
    return {name: line[name] for name in line if name.endswith("seconds")}


def test_the_time_in_the_queue_in_the_worker_and_in_the_task_are_told_apart(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    # The long poll, of 12 s, is in none of them.
    delivery = make_delivery(received_at=100.0, waited=12.0, enqueued_at=SENT)
    message = facts_of(delivery, HEADERS, started_at=103.25)
    assert times(caplog, message, 107.75, SENT + timedelta(seconds=67.75)) == {
        "queue_seconds": 60.0,
        "wait_seconds": 3.25,
        "run_seconds": 4.5,
    }


def test_a_message_whose_task_did_not_start_has_waited_and_not_run(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    message = facts_of(make_delivery(received_at=100.0, enqueued_at=SENT), HEADERS)
    assert times(caplog, message, 107.5, SENT + timedelta(seconds=8)) == {
        "queue_seconds": 0.5,
        "wait_seconds": 7.5,
    }


def test_no_time_is_below_zero_if_the_clock_of_sqs_is_ahead(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    message = facts_of(make_delivery(received_at=100.0, enqueued_at=SENT), HEADERS)
    assert times(caplog, message, 101.0, SENT)["queue_seconds"] == 0


def test_a_message_that_was_never_decoded_is_told_by_the_id_of_sqs(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    MessageLog().ended(facts_of(make_delivery(message_id="sqs-7"), None), Succeeded(), Done())
    assert the_line(caplog)["message_id"] == "sqs-7"


def test_a_lost_lease_is_told_with_why(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = make_delivery(message_id="sqs-7", count=3, body=MARKER)
    MessageLog().lost(facts_of(delivery, None), "its time ran out")
    line = the_line(caplog)
    assert (line["event"], line["reason"]) == ("lease.lost", "its time ran out")
    assert (line["sqs_message_id"], line["queue"], line["deliveries"]) == ("sqs-7", "jobs", 3)
    assert MARKER not in str(line)


def test_a_message_that_has_come_is_a_line_with_its_ids_and_without_its_body(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    MessageLog().received(facts_of(make_delivery(body=MARKER), HEADERS))
    line = the_line(caplog)
    assert (line["event"], line["task"]) == ("message.received", "registerUser")
    assert (line["message_id"], line["source"]) == ("id-1", "json")
    assert (line["queue"], line["deliveries"]) == ("jobs", 1)
    assert MARKER not in str(line)


@pytest.mark.parametrize(("asked", "is_clamped"), [(99_999, True), (43_000, False)])
def test_a_retry_that_comes_sooner_than_it_was_asked_for_is_said_with_the_same_delay_twice(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture, asked: int, is_clamped: bool
) -> None:
    MessageLog().ended(facts_of(make_delivery(), HEADERS), Succeeded(), Retry(asked, "KeyError"))
    lines = {vars(record)["event"]: vars(record)["delay"] for record in caplog.records}
    assert ("retry.clamped" in lines) is is_clamped
    assert len(set(lines.values())) == 1
    assert lines["message.retry"] <= min(asked, 43_200)


# The trace and the request


def test_each_line_of_a_message_has_its_trace_and_its_request(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    context = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "request_id": "r-1"}
    message = facts_of(make_delivery(), HEADERS | context)
    log = MessageLog()
    log.received(message)
    log.ended(message, UnknownTask("no.such"), Released())
    log.settled(message, Done(), "AccessDenied")
    log.lost(message, "it is over")
    assert len(caplog.records) == 5
    for record in caplog.records:
        assert (vars(record)["trace_id"], vars(record)["request_id"]) == ("a" * 32, "r-1")
