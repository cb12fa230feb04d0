"""`sqs dlq`: dead letters are shown, and sent back to their queue unchanged."""

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from sqs_broker.control.store import Store
from sqs_broker.options import Options
from sqs_broker.rules import attempts, dead_letter
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import DeadLetter
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.requests import date_in
from sqs_broker.tools.flower.letters import Letters
from tests.faults import proxy as faults
from tests.integration.conftest import Run, transport_options
from tests.services import Queues, wait_until

DENIED = faults.refusal("403 access denied", 403, "AccessDenied")

#: Most seconds until the next second of SQS's clock.
CLOCK_SECONDS = 10


def test_a_message_is_listed_without_its_body_and_shown_with_it(either: Queues, run: Run) -> None:
    bury(either, body("m-1", nickname="kim"), reason="MongoDB is away", attributes=TRACE)

    [listed] = lines(run(either, "dlq", "list", "--json").stdout)
    table = run(either, "dlq", "list").stdout
    shown = run(either, "dlq", "show", "m-1")

    assert (listed["id"], listed["task"]) == ("m-1", "registerUser")
    assert listed["reason"] == "MongoDB is away"
    assert listed["deliveries"] == 1
    assert listed["queue"] == either.name
    assert "m-1" in table
    assert "MongoDB is away" in table
    assert "kim" not in table + json.dumps(listed)
    assert json.loads(shown.stdout)["body"] == json.loads(body("m-1", nickname="kim"))
    raw = run(either, "dlq", "show", "m-1", "--raw").stdout
    assert json.loads(raw)["body"] == body("m-1", nickname="kim")
    assert json.loads(shown.stdout)["attributes"] == TRACE


def test_show_has_each_failed_attempt_with_its_time_and_error(
    queues: Queues, run: Run, options: dict[str, Any], store: Store
) -> None:
    bury(queues, body("m-1"))
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for number, error in enumerate(("AutoReconnect", "Timeout"), 1):
        failed = (attempts.Run(number, at.replace(minute=number), error),)
        store.add_attempts({"sqs-1": attempts.Record(frozenset({number}), runs=failed, id="m-1")})

    shown = json.loads(run(queues, "dlq", "show", "m-1", control=options).stdout)
    [listed] = lines(run(queues, "dlq", "list", "--json").stdout)

    assert shown["attempts"] == [
        {"at": "2026-01-02T03:01:05.000+00:00", "error": "AutoReconnect", "deliveries": 1},
        {"at": "2026-01-02T03:02:05.000+00:00", "error": "Timeout", "deliveries": 2},
        {"at": listed["at"], "error": listed["error"], "deliveries": listed["deliveries"]},
    ]


def test_show_says_that_the_attempts_are_not_known_without_mongodb(
    queues: Queues, run: Run
) -> None:
    bury(queues, body("m-1"))
    ran = run(queues, "dlq", "show", "m-1", control={"database_uri": "mongodb://127.0.0.1:1/"})
    assert (ran.exit_code, json.loads(ran.stdout)["attempts"]) == (0, None)
    assert "attempts are not known" in ran.stderr


def test_flower_says_that_the_attempts_are_not_known_without_mongodb(queues: Queues) -> None:
    bury(queues, body("m-1"))
    away = {"database_uri": "mongodb://127.0.0.1:1/"}
    options = Options.read(transport_options(queues) | {"control": away})
    (letter,) = queues.dead_letters()
    next_second(queues)
    found = Letters(options, driver_for(options)).find(letter["MessageId"])
    assert found is not None
    assert (found.attempts.known, found.attempts.fault is None) == (None, False)


def test_after_a_list_every_message_is_visible(either: Queues, run: Run) -> None:
    for number in range(12):
        bury(either, body(f"m-{number}"))

    for _ in range(3):
        assert len(lines(run(either, "dlq", "list", "--json").stdout)) == 12

    assert len(either.dead_letters()) == 12
    assert either.is_empty()


def test_no_more_are_listed_than_asked_for_and_all_stay_visible(either: Queues, run: Run) -> None:
    for number in range(12):
        bury(either, body(f"m-{number}"))

    ran = run(either, "dlq", "list", "--limit", "3", "--json")

    assert len(lines(ran.stdout)) == 3
    assert "--limit" in ran.stderr
    assert len(either.dead_letters()) == 12


def test_a_redriven_message_is_unchanged(either: Queues, run: Run) -> None:
    bury(either, body("m-1"), attributes=TRACE)

    ran = redrive(run, either)

    assert ran.exit_code == 0, ran.stderr
    [message] = received(either)
    assert message["Body"] == body("m-1")
    assert attributes_of(message) == TRACE
    assert either.dead_letters() == []


def test_an_attribute_that_the_note_displaced_comes_back(either: Queues, run: Run) -> None:
    ten: dict[str, Any] = {
        f"a{n}": {"DataType": "String", "StringValue": str(n)} for n in range(9)
    } | {"b": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}}
    bury(either, body("m-1"), attributes=ten)

    redrive(run, either)

    [message] = received(either)
    assert attributes_of(message) == ten


def test_a_message_that_sqs_moved_is_listed_without_a_reason_and_redriven(
    either: Queues, run: Run
) -> None:
    either.client.send_message(QueueUrl=either.dead_letter_url, MessageBody=body("m-1"))

    [listed] = lines(run(either, "dlq", "list", "--json").stdout)
    redrive(run, either)

    assert (listed["id"], listed["task"]) == ("m-1", "registerUser")
    assert "moved by SQS" in listed["reason"]
    assert [message["Body"] for message in received(either)] == [body("m-1")]


def test_of_two_duplicates_one_is_redriven_and_one_is_dropped_and_reported(
    either: Queues, run: Run
) -> None:
    bury(either, body("m-1"))
    bury(either, body("m-1"))
    bury(either, body("m-2"))

    ran = redrive(run, either, "--json")

    became = sorted((line["id"], line["became"]) for line in lines(ran.stdout))
    assert became == [("m-1", "dropped"), ("m-1", "redriven"), ("m-2", "redriven")]
    assert "1 dropped" in ran.stderr
    assert len(received(either)) == 2
    assert either.dead_letters() == []


@pytest.mark.parametrize("option", ["--keep-duplicates", "--keep-twins"])
def test_duplicates_are_redriven_if_an_option_asks_for_it(
    either: Queues, run: Run, option: str
) -> None:
    bury(either, body("m-1"))
    bury(either, body("m-1"))

    redrive(run, either, option)

    assert len(received(either)) == 2


def test_one_id_with_two_bodies_is_no_duplicate(either: Queues, run: Run) -> None:
    bury(either, body("m-1", nickname="kim"))
    bury(either, body("m-1", nickname="lee"))

    redrive(run, either)

    assert len(received(either)) == 2


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--id", "m-1", "--id", "m-3"], {"m-1", "m-3"}),
        (["--reason", "AWAY"], {"m-1", "m-2"}),
        (["--reason", "transienterror"], {"m-1", "m-2", "m-3"}),
        (["--task", "incr*"], {"m-2"}),
        (["--task", "registerUser", "--reason", "away"], {"m-1"}),
        (["--limit", "2"], None),
    ],
)
def test_only_messages_that_match_are_redriven(
    queues: Queues, run: Run, arguments: list[str], ids: set[str] | None
) -> None:
    bury(queues, body("m-1"), reason="MongoDB is away")
    bury(queues, body("m-2", action="increment"), reason="MongoDB is away", task="increment")
    bury(queues, body("m-3"), reason="a field is wrong")

    ran = redrive(run, queues, *arguments, "--json")

    redriven = {line["id"] for line in lines(ran.stdout)}
    assert redriven == {json.loads(message["Body"])["id"] for message in received(queues)}
    assert redriven == ids if ids is not None else len(redriven) == 2
    assert len(queues.dead_letters()) == 3 - len(redriven)


def test_a_dry_run_changes_nothing(either: Queues, run: Run) -> None:
    bury(either, body("m-1"))

    ran = redrive(run, either, "--dry-run")

    assert "would be redriven  m-1" in ran.stdout
    assert either.is_empty()
    assert len(either.dead_letters()) == 1


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_without_a_yes_nothing_is_redriven(queues: Queues, run: Run, answer: str) -> None:
    bury(queues, body("m-1"))

    ran = run(queues, "dlq", "redrive", stdin=answer)

    assert ran.exit_code == 1
    assert queues.is_empty()
    assert len(queues.dead_letters()) == 1


@pytest.mark.parametrize(
    ("action", "fault", "last", "sent", "left"),
    [
        ("SendMessageBatch", DENIED, None, 0, 3),
        ("SendMessageBatch", faults.SERVER_ERROR, 1, 3, 0),
        # SQS took them and its answer was lost: they are sent again. @once absorbs the second.
        ("SendMessageBatch", faults.LOST, 1, 6, 0),
        ("DeleteMessageBatch", faults.LOST, 1, 3, 0),
        ("DeleteMessageBatch", DENIED, None, 3, 3),
        ("ReceiveMessage", DENIED, None, 0, 3),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_fault_of_sqs_loses_no_message(
    queues: Queues,
    run: Run,
    action: str,
    fault: faults.Fault,
    last: int | None,
    sent: int,
    left: int,
) -> None:
    for number in range(3):
        bury(queues, body(f"m-{number}"))

    with faults.running(queues.endpoint_url) as (proxy, url):
        proxy.fail(action, fault, last=last)
        next_second(queues)
        ran = run(queues, "dlq", "redrive", "--yes", endpoint_url=url)

    assert ran.exit_code == (1 if left else 0), ran.output
    assert len(received(queues)) == sent
    assert len(queues.dead_letters()) == left


def test_a_dead_letter_queue_that_moves_messages_on_is_not_read(queues: Queues, run: Run) -> None:
    policy = queues.client.get_queue_attributes(
        QueueUrl=queues.url, AttributeNames=["RedrivePolicy"]
    )["Attributes"]
    queues.client.set_queue_attributes(QueueUrl=queues.dead_letter_url, Attributes=policy)

    ran = run(queues, "dlq", "list")

    assert ran.exit_code == 1
    assert "redrive policy of its own" in ran.stderr


def test_a_message_that_is_not_there_is_reported(queues: Queues, run: Run) -> None:
    ran = run(queues, "dlq", "show", "m-1")

    assert ran.exit_code == 1
    assert "m-1" in ran.stderr
    assert run(queues, "dlq", "redrive", "--yes").exit_code == 0
    assert run(queues, "dlq", "list", "--queue", "nobody").exit_code == 2


TRACE = {"trace": {"DataType": "String", "StringValue": "t-1"}}


def body(id_: str, action: str = "registerUser", **info: str) -> str:
    data = {"stockId": "s1", "userId": "u1", "userInfo": info or {"nickname": "kim"}}
    return json.dumps({"id": id_, "action": action, "data": data})


def bury(
    queues: Queues,
    text: str,
    *,
    reason: str = "it failed",
    task: str = "registerUser",
    attributes: dict[str, Any] | None = None,
) -> None:
    """Put a dead letter there as a worker does."""
    sent = datetime.now(UTC)
    delivery = Delivery(
        "1", queues.name, "sqs-1", "handle", text, attributes or {}, 1, sent, time.monotonic()
    )
    outcome = DeadLetter(reason, "TransientError")
    queues.client.send_message(
        QueueUrl=queues.dead_letter_url,
        MessageBody=text,
        MessageAttributes=dead_letter.attributes_of(
            delivery, outcome, task, json.loads(text)["id"], 1_048_576
        ),
    )


def redrive(run: Run, queues: Queues, *arguments: str) -> Any:
    """Redrive in a later second than that in which the messages arrived."""
    next_second(queues)
    return run(queues, "dlq", "redrive", "--yes", *arguments)


def next_second(queues: Queues) -> None:
    def now() -> datetime:
        answer = queues.client.get_queue_attributes(QueueUrl=queues.url)
        date = date_in(answer["ResponseMetadata"]["HTTPHeaders"].get("date"))
        assert date is not None
        return date

    before = now()
    wait_until(lambda: now() > before, CLOCK_SECONDS, "the next second of SQS's clock")


def received(queues: Queues) -> list[Any]:
    found: list[Any] = []
    while messages := queues.client.receive_message(
        QueueUrl=queues.url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
    ).get("Messages"):
        found += messages
    return found


def attributes_of(message: Any) -> dict[str, Any]:
    wanted = ("DataType", "StringValue", "BinaryValue")
    return {
        name: {key: value[key] for key in wanted if key in value}
        for name, value in message["MessageAttributes"].items()
    }


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]
