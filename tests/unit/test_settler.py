"""Settler: SQS is told each outcome, ten a call, again where it did not hear, and never twice."""

import logging
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError

from devstack.waiting import wait_until
from sqs_broker.errors import NoThread
from sqs_broker.options import Options, QueueAddress
from sqs_broker.rules.dead_letter import read_note
from sqs_broker.rules.outcomes import DeadLetter, Done, Outcome, Postponed, Released, Retry
from sqs_broker.rules.policy import Policy
from sqs_broker.sqs.copies import MOST_REMEMBERED, Copies
from sqs_broker.sqs.settler import Settler
from tests.unit.conftest import Machine, MakeLease

#: Seconds that nothing here comes near to.
DEADLINE = 5

#: Seconds after which what has not happened does not happen.
PATIENCE = 0.05

OPTIONS = Options(
    region="us-east-1",
    queues={
        "jobs": QueueAddress("https://sqs.test/jobs", "https://sqs.test/jobs-dlq"),
        "mail": QueueAddress("https://sqs.test/mail", "https://sqs.test/mail-dlq"),
    },
    policy=Policy(visibility_timeout=60),
)
DEAD = DeadLetter("no such task", "KeyError")


def refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "DeleteMessageBatch")


#: What passes, on its own or once someone has repaired it.
PASSING = [
    refused("InternalError"),
    refused("RequestThrottled"),
    refused("AWS.SimpleQueueService.NonExistentQueue"),
    EndpointConnectionError(endpoint_url="https://sqs.test"),
    ConnectionClosedError(endpoint_url="https://sqs.test"),
    ReadTimeoutError(endpoint_url="https://sqs.test"),
    NoCredentialsError(),
    # botocore lets these through as they are.
    ResponseParserError("half an answer"),
    ConnectionResetError(),
    RuntimeError("nobody has foreseen this"),
]

#: What no second try can change.
FINAL = [
    "InvalidParameterValue",
    "AccessDenied",
    "AccessDeniedException",
    "ReceiptHandleIsInvalid",
    "MessageNotInflight",
    # With the prefix that SQS's query protocol gives it.
    "AWS.SimpleQueueService.MessageNotInflight",
]


class Client:
    """Notes each call. `fail(name, fault…)` gives the faults of the next calls of that name: an
    exception, or the error code of each entry that fails, by its receipt handle."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._faults: dict[str, list[Any]] = {}
        self.open = threading.Event()
        self.open.set()

    def fail(self, name: str, *faults: Any) -> None:
        self._faults.setdefault(name, []).extend(faults)

    def named(self, name: str) -> list[dict[str, Any]]:
        return [call for called, call in self.calls if called == name]

    def receipts(self, name: str) -> list[list[str]]:
        """The receipt handles of each call."""
        return [[e["ReceiptHandle"] for e in call["Entries"]] for call in self.named(name)]

    def _answer(self, name: str, call: dict[str, Any]) -> dict[str, Any]:
        self.open.wait(DEADLINE)
        self.calls.append((name, call))
        faults = self._faults.get(name)
        fault = faults.pop(0) if faults else {}
        if isinstance(fault, Exception):
            raise fault
        entries = call.get("Entries", [])
        codes = {e["Id"]: fault[e["ReceiptHandle"]] for e in entries if e["ReceiptHandle"] in fault}
        return {"Failed": [{"Id": id_, "Code": code} for id_, code in codes.items()]}

    def send_message(self, **call: Any) -> dict[str, Any]:
        return self._answer("send", call)

    def delete_message_batch(self, **call: Any) -> dict[str, Any]:
        return self._answer("delete", call)

    def change_message_visibility_batch(self, **call: Any) -> dict[str, Any]:
        return self._answer("change", call)


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def settler(client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settler]:
    """Not started: what is settled before `start` shares its calls."""
    monkeypatch.setattr("sqs_broker.sqs.settler.RETRY_PAUSE", 0.005)
    monkeypatch.setattr("sqs_broker.sqs.settler.LINGER", 0.001)
    made = Settler(OPTIONS, client)  # type: ignore[arg-type]
    yield made
    client.open.set()
    made.stop(DEADLINE)


@pytest.fixture
def settle(settler: Settler, make_lease: MakeLease) -> Callable[..., str]:
    """Hands over the outcome of a new delivery. Gives its receipt handle."""

    def settle_it(outcome: Outcome, **facts: Any) -> str:
        lease = make_lease(**facts)
        settler.settle(lease, outcome, "registerUser", "id-1")
        return lease.delivery.receipt_handle

    return settle_it


Settle = Callable[..., str]


def tell_all(settler: Settler) -> None:
    settler.start()
    assert settler.flush(DEADLINE)


def flat(calls: list[list[str]]) -> list[str]:
    return [receipt for call in calls for receipt in call]


# What is told


@pytest.mark.parametrize("outcome", [Done(), Retry(7, "KeyError"), Released()])
def test_outcomes_are_told_ten_a_call(
    settler: Settler, client: Client, settle: Settle, outcome: Outcome
) -> None:
    handles = [settle(outcome) for _ in range(25)]
    tell_all(settler)
    name = "delete" if outcome == Done() else "change"
    assert sorted(len(call) for call in client.receipts(name)) == [5, 10, 10]
    assert sorted(flat(client.receipts(name))) == sorted(handles)
    assert len(client.calls) == 3


def test_the_ids_of_a_call_are_distinct(settler: Settler, client: Client, settle: Settle) -> None:
    for _ in range(10):
        settle(Done())
    tell_all(settler)
    (call,) = client.named("delete")
    assert len({entry["Id"] for entry in call["Entries"]}) == 10


@pytest.mark.parametrize(
    ("outcome", "visibility"),
    [(Retry(7, "KeyError"), 7), (Retry(0, "KeyError"), 0), (Released(), 0)],
)
def test_a_message_comes_back_after_its_delay(
    settler: Settler, client: Client, settle: Settle, outcome: Outcome, visibility: int
) -> None:
    handle = settle(outcome)
    tell_all(settler)
    assert client.calls == [
        (
            "change",
            {
                "QueueUrl": "https://sqs.test/jobs",
                "Entries": [{"Id": "0", "ReceiptHandle": handle, "VisibilityTimeout": visibility}],
            },
        )
    ]


@pytest.mark.parametrize("age", [0, 30, 59])
def test_a_delay_and_the_age_of_its_lease_are_within_twelve_hours(
    settler: Settler, client: Client, settle: Settle, age: int
) -> None:
    # SQS counts the 12 hours from the receive, which may have been when the call was sent, and
    # refuses what goes beyond them.
    received_at = monotonic() - age + 20
    settle(Retry(43_200, "KeyError"), received_at=received_at, waited=20)
    tell_all(settler)
    (call,) = client.named("change")
    visibility = call["Entries"][0]["VisibilityTimeout"]
    assert 43_200 - age - 5 <= visibility <= 43_200 - age
    assert visibility + monotonic() - (received_at - 20) <= 43_200


@pytest.mark.parametrize(("delay", "is_said"), [(43_200, True), (43_000, False), (7, False)])
def test_that_a_retry_comes_sooner_than_it_was_asked_for_is_said(
    settler: Settler,
    settle: Settle,
    caplog: pytest.LogCaptureFixture,
    delay: int,
    is_said: bool,
) -> None:
    settle(Retry(delay, "KeyError"), message_id="sqs-7", received_at=monotonic() - 30)
    tell_all(settler)
    told = [vars(r) for r in caplog.records if vars(r).get("event") == "retry.clamped"]
    assert [line["sqs_message_id"] for line in told] == ["sqs-7"] * is_said
    assert all(43_100 < line["delay"] <= 43_170 for line in told)


def test_each_queue_is_told_by_its_own_url(
    settler: Settler, client: Client, settle: Settle
) -> None:
    told = {name: [settle(Done(), queue=name) for _ in range(2)] for name in ("mail", "jobs")}
    tell_all(settler)
    assert {
        call["QueueUrl"]: [entry["ReceiptHandle"] for entry in call["Entries"]]
        for call in client.named("delete")
    } == {f"https://sqs.test/{name}": handles for name, handles in told.items()}


def test_deletes_and_changes_of_one_batch_are_told_apart(
    settler: Settler, client: Client, settle: Settle
) -> None:
    done, again = settle(Done()), settle(Retry(1, "KeyError"))
    tell_all(settler)
    assert client.receipts("delete") == [[done]]
    assert client.receipts("change") == [[again]]


# Copies


def test_a_dead_letter_is_sent_before_its_message_is_deleted(
    settler: Settler, client: Client, settle: Settle
) -> None:
    attributes = {"trace": {"DataType": "String", "StringValue": "t-1"}}
    handle = settle(DEAD, body="original", attributes=attributes)
    tell_all(settler)
    assert [name for name, _ in client.calls] == ["send", "delete"]
    copy = client.named("send")[0]
    assert copy["QueueUrl"] == "https://sqs.test/jobs-dlq"
    assert copy["MessageBody"] == "original"
    assert copy["MessageAttributes"]["trace"] == attributes["trace"]
    assert (read_note(copy["MessageAttributes"]) or {})["reason"] == "no such task"
    assert client.receipts("delete") == [[handle]]


def test_a_message_that_is_not_due_is_sent_on_before_it_is_deleted(
    settler: Settler, client: Client, settle: Settle
) -> None:
    attributes = {"trace": {"DataType": "String", "StringValue": "t-1"}}
    settle(Postponed(900), body="original", attributes=attributes)
    tell_all(settler)
    assert [name for name, _ in client.calls] == ["send", "delete"]
    assert client.named("send") == [
        {
            "QueueUrl": "https://sqs.test/jobs",
            "MessageBody": "original",
            "MessageAttributes": attributes,
            "DelaySeconds": 900,
        }
    ]


@pytest.mark.parametrize("outcome", [DEAD, Postponed(5)])
@pytest.mark.parametrize("fault", PASSING, ids=repr)
def test_a_message_is_not_deleted_before_its_copy_was_sent(
    settler: Settler, client: Client, settle: Settle, outcome: Outcome, fault: Exception
) -> None:
    client.fail("send", fault, fault)
    handle = settle(outcome)
    tell_all(settler)
    assert [name for name, _ in client.calls] == ["send", "send", "send", "delete"]
    assert client.receipts("delete") == [[handle]]


@pytest.mark.parametrize("outcome", [DEAD, Postponed(5)])
@pytest.mark.parametrize("fault", PASSING, ids=repr)
def test_a_copy_is_sent_once_although_the_delete_fails(
    settler: Settler, client: Client, settle: Settle, outcome: Outcome, fault: Exception
) -> None:
    client.fail("delete", fault, fault)
    handle = settle(outcome)
    tell_all(settler)
    assert [name for name, _ in client.calls] == ["send", "delete", "delete", "delete"]
    assert client.receipts("delete") == [[handle]] * 3


def test_a_copy_is_sent_once_although_its_entry_of_the_delete_fails(
    settler: Settler, client: Client, settle: Settle
) -> None:
    handle = settle(DEAD)
    client.fail("delete", {handle: "InternalError"})
    tell_all(settler)
    assert [name for name, _ in client.calls] == ["send", "delete", "delete"]


@pytest.mark.parametrize("outcome", [DEAD, Postponed(5)])
def test_the_next_delivery_of_a_message_whose_copy_was_sent_is_only_deleted(
    settler: Settler, client: Client, settle: Settle, outcome: Outcome
) -> None:
    client.fail("delete", refused("ReceiptHandleIsInvalid"))
    settle(outcome, message_id="sqs-7")
    tell_all(settler)
    handle = settle(outcome, message_id="sqs-7", count=2)
    assert settler.flush(DEADLINE)
    assert [name for name, _ in client.calls] == ["send", "delete", "delete"]
    assert client.receipts("delete")[-1] == [handle]


def test_of_copies_that_were_not_sent_nothing_is_remembered(
    settler: Settler, client: Client, settle: Settle, make_lease: MakeLease
) -> None:
    client.fail("send", refused("AccessDenied"))
    settle(DEAD, message_id="sqs-7")
    tell_all(settler)
    assert not settler.copies.are_sent(make_lease(message_id="sqs-7").delivery)


def test_a_worker_remembers_the_last_copies_and_not_all_of_them(
    client: Client, make_lease: MakeLease
) -> None:
    copies = Copies(OPTIONS, client)  # type: ignore[arg-type]
    deliveries = [make_lease().delivery for _ in range(MOST_REMEMBERED + 5)]
    for delivery in deliveries:
        copies.send(delivery, DEAD, None, None)
    assert [copies.are_sent(delivery) for delivery in deliveries] == (
        [False] * 5 + [True] * MOST_REMEMBERED
    )


def test_a_copy_that_cannot_be_sent_holds_no_other_message_up(
    settler: Settler, client: Client, settle: Settle
) -> None:
    client.fail("send", *[refused("InternalError")] * 3)
    dead, done = settle(DEAD), settle(Done())
    tell_all(settler)
    assert client.receipts("delete") == [[done], [dead]]


def test_a_copy_that_may_not_be_sent_leaves_the_message_where_it_is(
    settler: Settler, client: Client, settle: Settle
) -> None:
    client.fail("send", refused("AccessDenied"))
    settle(DEAD)
    tell_all(settler)
    assert [name for name, _ in client.calls] == ["send"]


# What fails


@pytest.mark.parametrize(
    ("name", "outcome"), [("delete", Done()), ("change", Retry(7, "KeyError"))]
)
@pytest.mark.parametrize("fault", PASSING, ids=repr)
def test_a_call_that_failed_is_made_again(
    settler: Settler, client: Client, settle: Settle, name: str, outcome: Outcome, fault: Exception
) -> None:
    client.fail(name, fault, fault)
    handles = [settle(outcome) for _ in range(3)]
    tell_all(settler)
    assert client.receipts(name) == [handles] * 3


@pytest.mark.parametrize(("name", "outcome"), [("delete", Done()), ("change", Released())])
def test_entries_that_failed_are_tried_again_alone(
    settler: Settler, client: Client, settle: Settle, name: str, outcome: Outcome
) -> None:
    first, second, third, fourth = (settle(outcome) for _ in range(4))
    client.fail(name, {second: "InternalError", fourth: "RequestThrottled"})
    tell_all(settler)
    assert client.receipts(name) == [[first, second, third, fourth], [second, fourth]]


@pytest.mark.parametrize("code", FINAL)
@pytest.mark.parametrize("of_the_call", [True, False])
def test_what_no_second_try_can_change_is_given_up_and_logged_with_its_ids(
    settler: Settler,
    client: Client,
    settle: Settle,
    caplog: pytest.LogCaptureFixture,
    code: str,
    of_the_call: bool,
) -> None:
    handle = settle(Done(), message_id="sqs-7")
    client.fail("delete", refused(code) if of_the_call else {handle: code})
    tell_all(settler)
    assert len(client.calls) == 1
    (record,) = caplog.records
    facts = vars(record)
    assert (record.levelno, facts["event"]) == (logging.ERROR, "settle.failed")
    bare = code.rpartition(".")[2]
    assert (facts["error"], facts["sqs_message_id"], facts["queue"]) == (bare, "sqs-7", "jobs")


@pytest.mark.parametrize("outcome", [Done(), Retry(7, "KeyError"), Released(), DEAD, Postponed(5)])
def test_where_the_lease_is_over_sqs_is_told_nothing(
    settler: Settler,
    client: Client,
    settle: Settle,
    caplog: pytest.LogCaptureFixture,
    outcome: Outcome,
) -> None:
    # It waited here for too long; the message may be another worker's by now.
    settle(outcome, received_at=monotonic() - 60, message_id="sqs-7")
    tell_all(settler)
    assert client.calls == []
    (record,) = caplog.records
    facts = vars(record)
    assert (facts["event"], facts["error"]) == ("settle.failed", "LeaseOver")
    assert facts["sqs_message_id"] == "sqs-7"


def test_where_the_lease_ends_while_the_copy_is_sent_the_message_is_not_deleted(
    settler: Settler, client: Client, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_slowly(**call: Any) -> dict[str, Any]:
        monkeypatch.setattr("sqs_broker.sqs.settler.monotonic", lambda: monotonic() + 61)
        return Client.send_message(client, **call)

    monkeypatch.setattr(client, "send_message", send_slowly)
    settle(DEAD)
    tell_all(settler)
    assert [name for name, _ in client.calls] == ["send"]


def test_where_the_lease_is_over_there_is_no_second_try(
    settler: Settler, client: Client, settle: Settle, caplog: pytest.LogCaptureFixture
) -> None:
    client.fail("delete", refused("InternalError"))
    settle(Done(), received_at=monotonic() - 60 + 0.004, message_id="sqs-7")
    tell_all(settler)
    assert len(client.calls) <= 1
    assert vars(caplog.records[0])["sqs_message_id"] == "sqs-7"


def test_what_fails_is_tried_for_as_long_as_the_lease_lasts(
    settler: Settler, client: Client, settle: Settle, caplog: pytest.LogCaptureFixture
) -> None:
    client.fail("delete", *[refused("InternalError")] * 1_000)
    settle(Done(), received_at=monotonic() - 60 + 0.25)
    tell_all(settler)
    assert 2 <= len(client.calls) < 1_000
    assert len(caplog.records) == 1


def test_an_extended_lease_is_tried_for_as_long_as_it_lasts(
    settler: Settler, client: Client, make_lease: MakeLease
) -> None:
    client.fail("delete", refused("InternalError"), refused("InternalError"))
    lease = make_lease(received_at=monotonic() - 600)
    lease.expires_at = monotonic() + 60
    settler.settle(lease, Done())
    tell_all(settler)
    assert len(client.calls) == 3


def test_a_fault_of_one_message_does_not_touch_those_beside_it(
    settler: Settler, client: Client, settle: Settle
) -> None:
    client.fail("delete", refused("AccessDenied"))
    settle(Done())
    again = settle(Retry(1, "KeyError"))
    tell_all(settler)
    assert client.receipts("change") == [[again]]


# Waiting and stopping


@pytest.fixture
def _lingers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A settlement waits for others for longer than a test does."""
    monkeypatch.setattr("sqs_broker.sqs.settler.LINGER", 1_000)
    monkeypatch.setattr("sqs_broker.sqs.settler.LONGEST_LINGER", 1_000)


@pytest.mark.usefixtures("settler", "_lingers")
def test_a_settlement_waits_for_others_until_there_are_ten(
    settler: Settler, client: Client, settle: Settle
) -> None:
    settler.start()
    for _ in range(9):
        settle(Done())
    assert settler.flush(PATIENCE) is False
    assert client.calls == []
    settle(Done())
    assert settler.flush(DEADLINE)
    assert [len(call) for call in client.receipts("delete")] == [10]


def test_a_settlement_waits_for_others_for_a_moment_only(
    settler: Settler, client: Client, settle: Settle
) -> None:
    settler.start()
    settle(Done())
    assert settler.flush(DEADLINE)
    assert [len(call) for call in client.receipts("delete")] == [1]


def test_handing_over_never_waits_for_sqs(settler: Settler, client: Client, settle: Settle) -> None:
    client.open.clear()
    settler.start()
    handles = [settle(Done()) for _ in range(100)]
    assert client.calls == []
    client.open.set()
    assert settler.flush(DEADLINE)
    assert sorted(flat(client.receipts("delete"))) == sorted(handles)


def test_flushing_says_whether_all_was_told(
    settler: Settler, client: Client, settle: Settle
) -> None:
    client.open.clear()
    settle(Done())
    settler.start()
    assert settler.flush(0.01) is False
    client.open.set()
    assert settler.flush(DEADLINE) is True


def test_what_fails_is_tried_again_though_nothing_else_is_settled(
    settler: Settler, client: Client, settle: Settle
) -> None:
    client.fail("delete", refused("InternalError"))
    client.open.clear()
    settle(Done())
    settler.start()
    # Another thread waits for the next batch before this one fails.
    wait_until(lambda: settler._at_work and settler._changed._waiters, DEADLINE, "who waits")
    client.open.set()
    assert settler.flush(DEADLINE)
    assert len(client.named("delete")) == 2


def test_flushing_waits_for_what_has_to_be_tried_again(
    settler: Settler, client: Client, settle: Settle
) -> None:
    client.fail("delete", *[refused("InternalError")] * 5)
    settle(Done())
    tell_all(settler)
    assert len(client.calls) == 6


def test_stopping_tells_what_is_left_and_ends_the_threads(
    settler: Settler, client: Client, settle: Settle, caplog: pytest.LogCaptureFixture
) -> None:
    settler.start()
    for _ in range(30):
        settle(Done())
    settler.stop(DEADLINE)
    assert sum(len(receipts) for receipts in client.receipts("delete")) == 30
    assert caplog.records == []
    assert not any(thread.name.startswith("sqs-settler") for thread in threading.enumerate())


def test_stopping_before_all_was_told_is_logged(
    settler: Settler, client: Client, settle: Settle, caplog: pytest.LogCaptureFixture
) -> None:
    client.open.clear()
    settler.start()
    settle(Done())
    settler.stop(0.01)
    assert [vars(record)["event"] for record in caplog.records] == ["settle.unfinished"]


def test_each_settlement_is_told_of_once_however_often_it_is_tried(
    client: Client, make_lease: MakeLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Their number bounds what is received (`Leases.telling`).
    monkeypatch.setattr("sqs_broker.sqs.settler.RETRY_PAUSE", 0.005)
    told: list[int] = []
    settler = Settler(OPTIONS, client, told.append)  # type: ignore[arg-type]
    first, second, third = (make_lease() for _ in range(3))
    client.fail("delete", refused("InternalError"), {second.delivery.receipt_handle: "Busy"})
    client.fail("send", refused("InternalError"))
    for lease, outcome in ((first, Done()), (second, Done()), (third, DEAD)):
        settler.settle(lease, outcome)
    tell_all(settler)
    settler.stop(DEADLINE)
    assert sum(told) == 3


def test_what_is_given_up_is_told_of_too(
    client: Client, make_lease: MakeLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    settler = Settler(OPTIONS, client, told.append)  # type: ignore[arg-type]
    client.fail("delete", refused("AccessDenied"))
    settler.settle(make_lease(), Done())
    tell_all(settler)
    settler.stop(DEADLINE)
    assert sum(told) == 1


@pytest.mark.parametrize("times", [1, 2])
def test_stopping_what_never_ran_or_has_stopped_does_nothing(settler: Settler, times: int) -> None:
    for _ in range(times):
        settler.stop(DEADLINE)


def test_an_unforeseen_fault_is_logged_without_its_text(
    settler: Settler, client: Client, settle: Settle, caplog: pytest.LogCaptureFixture
) -> None:
    client.fail("delete", RuntimeError("Kim-1f9c"))
    settle(Done())
    tell_all(settler)
    assert all("Kim-1f9c" not in record.getMessage() for record in caplog.records)


# Its threads


def settlers() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if name.startswith("sqs-settler"))


def test_a_settler_works_with_the_threads_that_there_is_room_for(
    settler: Settler, client: Client, settle: Callable[..., str], machine: Machine
) -> None:
    machine.has_no_room_for("sqs-settler-1")
    settler.start()
    assert settlers() == ["sqs-settler-0"]
    receipt = settle(Done())
    assert settler.flush(DEADLINE)
    assert client.receipts("delete") == [[receipt]]


def test_threads_that_there_was_no_room_for_are_tried_again(
    settler: Settler,
    settle: Callable[..., str],
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sqs_broker.sqs.settler.GROW_PAUSE", 0)
    machine.has_no_room_for("sqs-settler-1", times=2)
    settler.start()

    def has_grown() -> bool:
        settle(Done())
        return len(settlers()) == 3

    wait_until(has_grown, DEADLINE, "three threads")
    settler.stop(DEADLINE)
    assert settlers() == []


def test_without_a_thread_a_settler_does_not_start_and_can_be_started_later(
    settler: Settler, client: Client, settle: Callable[..., str], machine: Machine
) -> None:
    machine.has_no_room_for("sqs-settler")
    with pytest.raises(NoThread):
        settler.start()
    machine.has_room()
    settler.start()
    receipt = settle(Done())
    assert settler.flush(DEADLINE)
    assert client.receipts("delete") == [[receipt]]
    assert len(settlers()) == 3
