"""Queue and its requests: ten a call, results by place, one kind of error, nothing about how it is
carried."""

import ast
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sqs_broker.sqs import requests
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.queue import TRIES, Queue
from sqs_broker.sqs.requests import Answer, Outgoing, Pack
from sqs_broker.testing import Clock, FakeSqs

URL = "https://sqs.test/1/jobs"
DELETE, SEND = "DeleteMessageBatch", "SendMessageBatch"

ROOT = Path(__file__).parents[2]

#: What a file imports to make requests, by where it is.
OF_REQUESTS = {"sqs_broker.sqs.requests": "Request", "sqs_broker.sqs": "requests"}


@pytest.fixture
def url(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").url


@pytest.fixture
def queue(fake: FakeSqs, url: str) -> Queue:
    return Queue(url, fake)


@pytest.fixture
def handles(fake: FakeSqs, url: str, queue: Queue) -> list[str]:
    """Those of 25 messages that were received."""
    for _ in range(25):
        fake.put(url, "{}")
    came = [message for _ in range(3) for message in queue.receive(10, 0)]
    fake.forget_calls()
    return [message.receipt_handle for message in came]


def codes(errors: list[SqsError | None]) -> dict[int, str]:
    """The codes of what failed, by place."""
    return {place: error.code for place, error in enumerate(errors) if error}


def sizes(fake: FakeSqs, action: str) -> list[int]:
    return [len(call["Entries"]) for call in fake.asked(action)]


# Requests


def test_a_request_has_the_parameters_of_the_api_by_its_names() -> None:
    changed = requests.change_many(URL, [("r-1", 5), ("r-2", 0)])
    assert changed.action == "ChangeMessageVisibilityBatch"
    assert changed.parameters == {
        "QueueUrl": URL,
        "Entries": [
            {"Id": "0", "ReceiptHandle": "r-1", "VisibilityTimeout": 5},
            {"Id": "1", "ReceiptHandle": "r-2", "VisibilityTimeout": 0},
        ],
    }


def test_only_the_port_makes_requests() -> None:
    # So an operation of SQS, and the names of its parameters, stand in one folder.
    made_elsewhere = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("sqs_broker", "app")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.parent not in (ROOT / "sqs_broker/sqs", ROOT / "sqs_broker/testing")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and OF_REQUESTS.get(str(node.module)) in {alias.name for alias in node.names}
    ]
    assert made_elsewhere == []


def test_a_delay_that_nobody_gave_is_left_to_the_queue() -> None:
    assert "DelaySeconds" not in requests.send(URL, Outgoing("{}")).parameters
    assert requests.send(URL, Outgoing("{}", delay=0)).parameters["DelaySeconds"] == 0


def test_failed_entries_are_read_by_their_ids_in_any_order() -> None:
    failed = [
        {"Id": "3", "Code": "AWS.SimpleQueueService.InternalError", "SenderFault": False},
        {"Id": "1", "Code": "InvalidParameterValue", "SenderFault": True, "Message": "no"},
    ]
    errors = requests.delete_many(URL, "abcde").read(Answer({"Failed": failed}))
    assert codes(errors) == {1: "InvalidParameterValue", 3: "InternalError"}
    assert [error and error.is_sender_fault for error in errors] == [None, True, None, False, None]


def test_a_message_that_no_part_of_the_answer_names_was_not_sent() -> None:
    # Else a dead letter would be deleted here, and be nowhere.
    errors = requests.send_many(URL, [Outgoing("a"), Outgoing("b")]).read(
        Answer({"Successful": [{"Id": "1"}]})
    )
    assert codes(errors) == {0: "Unanswered"}
    assert errors[0]
    assert errors[0].is_worth_another_try


@pytest.mark.parametrize("message", [{}, {"MessageId": "m", "ReceiptHandle": "r", "Body": "{}"}])
def test_an_answer_that_is_not_sqss_is_an_error(message: dict[str, Any]) -> None:
    with pytest.raises(KeyError):
        requests.receive(URL, 1, 0).read(Answer({"Messages": [message]}))


@pytest.mark.parametrize(
    ("date", "at"),
    [
        ("Fri, 02 Jan 2026 03:04:05 GMT", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (None, None),
        ("yesterday", None),
    ],
)
def test_the_time_of_an_answer_is_that_of_its_header(date: str | None, at: Any) -> None:
    assert requests.attributes(URL, "All").read(Answer({}, date)).at == at


def test_a_pack_takes_ten_messages_within_its_bytes_and_the_first_whatever_it_has() -> None:
    pack = Pack(10)
    assert [pack.add(Outgoing("x" * size)) for size in (4, 6, 1)] == [True, True, False]
    pack = Pack(1_000)
    assert [pack.add(Outgoing("x")) for _ in range(11)] == [True] * 10 + [False]
    assert Pack(1).add(Outgoing("x" * 100))


# Batches


def test_batches_are_ten_a_call_and_their_results_by_place(
    queue: Queue, fake: FakeSqs, handles: list[str]
) -> None:
    fake.fail(DELETE, entries=[handles[3]])
    fake.fail(DELETE, "RequestThrottled", entries=[handles[14]])
    assert codes(queue.delete(handles)) == {3: "InternalError", 14: "RequestThrottled"}
    assert sizes(fake, DELETE) == [10, 10, 5]


@pytest.mark.parametrize(
    "error", [SqsError("AccessDenied"), Unreached("ReadTimeoutError"), RuntimeError("Kim-1f9c")]
)
def test_where_a_call_fails_each_of_its_entries_did(
    queue: Queue, fake: FakeSqs, handles: list[str], error: Exception
) -> None:
    fake.fail(DELETE, error=error)
    errors = queue.delete(handles)
    assert codes(errors) == dict.fromkeys(range(10), SqsError.of(error).code)
    assert not any(error.is_of_entry for error in errors if error)
    assert "Kim-1f9c" not in str(errors[0])


def test_what_cannot_be_deleted_is_tried_again_alone_and_at_once(
    queue: Queue, fake: FakeSqs, handles: list[str]
) -> None:
    fake.fail(DELETE, entries=[handles[1], handles[2]])
    fake.fail(DELETE, entries=[handles[12]])
    fake.fail(DELETE, entries=[handles[2]], times=2)
    assert codes(queue.delete(handles, tries=3)) == {2: "InternalError"}
    assert sizes(fake, DELETE) == [10, 10, 5, 3, 1]


def test_entries_that_sqs_failed_itself_are_sent_again_after_a_pause(
    queue: Queue, fake: FakeSqs, url: str, clock: Clock
) -> None:
    before = clock()
    fake.fail(SEND, "Busy", entries=["b"], times=2)
    assert queue.send_many([Outgoing("a"), Outgoing("b"), Outgoing("c")]) == [None] * 3
    assert fake.bodies(url) == ["a", "c", "b"]
    assert sizes(fake, SEND) == [3, 1, 1]
    assert clock() > before


def test_what_is_the_senders_fault_is_not_sent_again(queue: Queue, fake: FakeSqs) -> None:
    fake.fail(SEND, "Refused", entries=["b"], sender_fault=True)
    assert codes(queue.send_many([Outgoing("a"), Outgoing("b")])) == {1: "Refused"}
    assert len(fake.calls) == 1


def test_entries_that_sqs_fails_each_time_are_given_up(queue: Queue, fake: FakeSqs) -> None:
    fake.fail(SEND, "Busy", entries=["b"], times=TRIES)
    messages = [Outgoing("a"), Outgoing("b"), *[Outgoing("c")] * 10]
    assert codes(queue.send_many(messages)) == {1: "Busy"}
    assert sizes(fake, SEND) == [10, *[1] * (TRIES - 1), 2]


def test_a_call_that_failed_whole_is_not_sent_again(queue: Queue, fake: FakeSqs) -> None:
    # Its messages may be there: its driver has tried as often as it may.
    fake.fail(SEND, error=Unreached("ReadTimeoutError"))
    assert codes(queue.send_many([Outgoing("a")])) == {0: "ReadTimeoutError"}
    assert len(fake.calls) == 1


def test_nothing_costs_no_call(queue: Queue, fake: FakeSqs) -> None:
    assert queue.delete([]) == queue.change_visibility([]) == queue.send_many([]) == []
    assert fake.calls == []


# Errors


@pytest.mark.parametrize(
    ("code", "true"),
    [
        ("AccessDenied", {"is_denied", "is_final"}),
        ("AccessDeniedException", {"is_denied", "is_final"}),
        ("QueueDoesNotExist", {"is_no_queue"}),
        ("AWS.SimpleQueueService.NonExistentQueue", {"is_no_queue"}),
        ("ReceiptHandleIsInvalid", {"is_lost_lease", "is_final", "is_refusal"}),
        ("InvalidParameterValue", {"is_lost_lease", "is_final", "is_refusal"}),
        ("AWS.SimpleQueueService.MessageNotInflight", {"is_lost_lease", "is_final", "is_refusal"}),
        ("AWS.SimpleQueueService.EmptyBatchRequest", {"is_refusal"}),
        ("KMS.DisabledException", {"is_of_key"}),
        ("BatchRequestTooLong", {"is_refusal_of_contents"}),
        ("InvalidMessageContents", {"is_refusal_of_contents"}),
        ("InternalError", set()),
        ("503", set()),
    ],
)
def test_an_error_says_what_callers_ask(code: str, true: set[str]) -> None:
    error = SqsError(code)
    asked = {"is_denied", "is_final", "is_no_queue", "is_lost_lease", "is_refusal", "is_of_key",
             "is_refusal_of_contents"}  # fmt: skip
    assert {name for name in asked if getattr(error, name)} == true
    assert error.code == code.rpartition(".")[2]
    assert error.has_reached
    assert not Unreached(code).has_reached


@pytest.mark.parametrize("kind", [SqsError, Unreached])
def test_an_error_crosses_processes(kind: type[SqsError]) -> None:
    # A task that sends may raise it in a process of the pool.
    error = kind("KMS.Disabled", "no", is_of_entry=True, is_sender_fault=True)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.code, str(copy), copy.is_of_entry, copy.is_of_key) == (
        "Disabled",
        "no",
        True,
        True,
    )
