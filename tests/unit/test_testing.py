"""FakeSqs: what Amazon's SQS does and local servers do not, and what tests ask it for.

What it has in common with real servers is in tests/integration/test_sqs_contract.py.
"""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from devstack.waiting import wait_until
from sqs_broker.limits import LONGEST_VISIBILITY
from sqs_broker.sqs import requests
from sqs_broker.sqs.errors import OVERDUE, SqsError, Unreached
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing, Request, nothing
from sqs_broker.testing import Clock, FakeSqs, State

ROOT = Path(__file__).parents[2]

#: Seconds that nothing here comes near to.
DEADLINE = 5

RECEIVE, SEND, DELETE = "ReceiveMessage", "SendMessageBatch", "DeleteMessageBatch"


@pytest.fixture
def url(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").url


@pytest.fixture
def jobs(fake: FakeSqs, url: str) -> Queue:
    return Queue(url, fake)


def codes(errors: list[SqsError | None]) -> list[str | None]:
    return [error and error.code for error in errors]


# Receipt handles


def test_a_lease_that_is_over_cannot_be_extended(
    fake: FakeSqs, url: str, jobs: Queue, clock: Clock
) -> None:
    fake.put(url, "{}")
    (message,) = jobs.receive(1, 0)
    clock.advance(60)
    assert fake.leased_until(message.receipt_handle) == clock()
    assert codes(jobs.change_visibility([(message.receipt_handle, 30)])) == ["MessageNotInflight"]


def test_the_handle_of_an_earlier_receive_deletes_nothing_and_extends_nothing(
    fake: FakeSqs, url: str, jobs: Queue, clock: Clock
) -> None:
    fake.put(url, "{}")
    (first,) = jobs.receive(1, 0)
    clock.advance(60)
    (second,) = jobs.receive(1, 0)
    assert fake.message_id(first.receipt_handle) == fake.message_id(second.receipt_handle)
    # "otherwise, the request succeeds, but the message will not be deleted"
    assert jobs.delete([first.receipt_handle]) == [None]
    assert len(fake.messages(url)) == 1
    changes = [(first.receipt_handle, 0), (second.receipt_handle, 5)]
    assert codes(jobs.change_visibility(changes)) == ["InvalidParameterValue", None]
    assert fake.leased_until(second.receipt_handle) == clock() + 5


def test_no_lease_lasts_longer_than_twelve_hours(
    fake: FakeSqs, url: str, jobs: Queue, clock: Clock
) -> None:
    fake.put(url, "{}")
    (message,) = jobs.receive(1, 0)
    clock.advance(10)
    longest = LONGEST_VISIBILITY - 10
    changes = [(message.receipt_handle, longest + 1), (message.receipt_handle, longest)]
    assert codes(jobs.change_visibility(changes)) == ["InvalidParameterValue", None]


def test_a_message_of_a_standard_queue_may_have_a_group(jobs: Queue) -> None:
    jobs.send(Outgoing("{}", group="shop-7"))
    jobs.send(Outgoing("{}"))
    assert [message.group for message in jobs.receive(10, 0)] == ["shop-7", None]


# What is refused


@pytest.mark.parametrize(
    "message",
    [
        Outgoing(""),
        Outgoing("{}", delay=901),
        Outgoing("x" * 1_048_577),
        Outgoing("{}", {f"n{n}": {"DataType": "String", "StringValue": "v"} for n in range(11)}),
    ],
    ids=["no body", "a long delay", "too long", "eleven attributes"],
)
def test_a_message_that_sqs_does_not_take_is_the_senders_fault(
    fake: FakeSqs, url: str, jobs: Queue, message: Outgoing
) -> None:
    with pytest.raises(SqsError, match="InvalidParameterValue"):
        jobs.send(message)
    assert fake.messages(url) == []


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([], "EmptyBatchRequest"),
        ([{"Id": str(n), "MessageBody": "{}"} for n in range(11)], "TooManyEntriesInBatchRequest"),
        ([{"Id": "0", "MessageBody": "{}"}] * 2, "BatchEntryIdsNotDistinct"),
        ([{"Id": str(n), "MessageBody": "x" * 600_000} for n in range(2)], "BatchRequestTooLong"),
    ],
    ids=["none", "eleven", "one id twice", "too long"],
)
def test_a_batch_that_sqs_does_not_take_is_refused_whole(
    fake: FakeSqs, url: str, jobs: Queue, entries: list[Any], code: str
) -> None:
    with pytest.raises(SqsError, match=code):
        jobs.ask(Request(SEND, {"QueueUrl": url, "Entries": entries}, nothing))
    assert fake.messages(url) == []


def test_a_second_purge_within_a_minute_is_refused(jobs: Queue, clock: Clock) -> None:
    jobs.purge()
    with pytest.raises(SqsError, match="PurgeQueueInProgress"):
        jobs.purge()
    clock.advance(60)
    jobs.purge()


# What goes wrong


def test_the_next_calls_fail_so_many_times(jobs: Queue, fake: FakeSqs) -> None:
    fake.fail(RECEIVE, "RequestThrottled", times=2)
    for _ in range(2):
        with pytest.raises(SqsError, match="RequestThrottled"):
            jobs.receive(1, 0)
    assert jobs.receive(1, 0) == []


def test_entries_fail_by_place_by_what_they_hold_or_by_what_is_true_of_them(
    fake: FakeSqs, url: str, jobs: Queue
) -> None:
    for which in (1, "b", lambda entry: entry["MessageBody"] == "b"):
        fake.fail(SEND, "Refused", entries=[which], sender_fault=True)
        assert codes(jobs.send_many([Outgoing("a"), Outgoing("b")])) == [None, "Refused"]
    assert fake.bodies(url) == ["a"] * 3


def test_a_fault_of_entries_waits_for_a_call_that_has_them(fake: FakeSqs, jobs: Queue) -> None:
    fake.fail(SEND, "Refused", entries=["b"], sender_fault=True)
    assert jobs.send_many([Outgoing("a")]) == [None]
    assert codes(jobs.send_many([Outgoing("b")])) == ["Refused"]


def test_a_call_whose_answer_is_lost_is_done(fake: FakeSqs, url: str, jobs: Queue) -> None:
    fake.lose_answer("SendMessage")
    with pytest.raises(Unreached):
        jobs.send(Outgoing("{}"))
    assert fake.bodies(url) == ["{}"]


def test_an_action_is_denied_on_one_queue_until_it_is_healed(
    fake: FakeSqs, url: str, jobs: Queue
) -> None:
    mail = Queue(fake.options().queue("mail").url, fake)
    fake.deny("SendMessage", url)
    mail.send(Outgoing("{}"))
    for _ in range(2):
        with pytest.raises(SqsError, match="AccessDenied"):
            jobs.send(Outgoing("{}"))
    fake.heal("SendMessage")
    jobs.send(Outgoing("{}"))


def test_a_slow_call_takes_its_time_on_both_sides_of_what_it_does(
    fake: FakeSqs, url: str, jobs: Queue, clock: Clock
) -> None:
    fake.put(url, "{}")
    fake.slow(RECEIVE, before=5, after=7)
    before = clock()
    (message,) = jobs.receive(1, 0)
    assert clock() == before + 12
    assert fake.leased_until(message.receipt_handle) == clock() + 60 - 7


def test_held_calls_wait_and_are_counted(fake: FakeSqs, url: str, jobs: Queue) -> None:
    fake.hold("SendMessage")
    thread = threading.Thread(target=jobs.send, args=(Outgoing("{}"),))
    thread.start()
    wait_until(lambda: fake.counts["SendMessage"] == 1, DEADLINE, "the call")
    assert fake.messages(url) == []
    fake.release()
    thread.join(DEADLINE)
    assert fake.bodies(url) == ["{}"]


def test_a_held_call_is_left_at_its_deadline_and_executed_later(fake: FakeSqs, url: str) -> None:
    fake.hold("SendMessage")
    with pytest.raises(Unreached, match=OVERDUE):
        fake.carry(replace(requests.send(url, Outgoing("{}")), seconds=0.05))
    assert fake.messages(url) == []
    fake.release()
    wait_until(lambda: fake.bodies(url), DEADLINE, "the message")


# Time


def test_with_a_clock_a_long_poll_waits_for_nothing_and_time_passes(
    fake: FakeSqs, url: str, jobs: Queue, clock: Clock
) -> None:
    before = clock()
    assert jobs.receive(1, 20) == []
    assert clock() == before + 20
    fake.put(url, "later", delay=7)
    assert [message.body for message in jobs.receive(1, 20)] == ["later"]
    assert clock() == before + 27


def poll(queue: Queue) -> tuple[threading.Thread, list[Any]]:
    came: list[Any] = []
    thread = threading.Thread(target=lambda: came.extend(queue.receive(1, 20)))
    thread.start()
    return thread, came


@pytest.mark.parametrize("way", ["send", "delay", "lease"])
@pytest.mark.parametrize("clock_is_real", [False, True])
def test_an_open_poll_ends_when_a_message_comes(way: str, clock_is_real: bool) -> None:
    clock = None if clock_is_real else Clock()
    fake = FakeSqs(clock, holds_polls=True)
    url = fake.create_queue("jobs", visibility_timeout=60)
    queue = Queue(url, fake)
    delay = 0.05 if clock_is_real else 5
    handle = ""
    if way == "delay":
        fake.put(url, "{}", delay=delay)  # type: ignore[arg-type]  # SQS has whole seconds
    elif way == "lease":
        fake.put(url, "{}")
        handle = queue.receive(1, 0)[0].receipt_handle
    thread, came = poll(queue)
    if way != "delay" or not clock_is_real:
        wait_until(lambda: fake.open_polls == 1, DEADLINE, "the poll")
    if way == "send":
        fake.put(url, "{}")
    elif way == "lease":
        queue.change_visibility([(handle, 0)])
    elif clock is not None:
        clock.advance(delay)
    thread.join(DEADLINE)
    assert [message.body for message in came] == ["{}"]


def test_an_open_poll_ends_with_its_time_and_with_the_test() -> None:
    clock = Clock()
    fake = FakeSqs(clock, holds_polls=True)
    queue = Queue(fake.create_queue("jobs"), fake)
    for end in (lambda: clock.advance(20), fake.end_polls):
        thread, came = poll(queue)
        wait_until(lambda: fake.open_polls == 1, DEADLINE, "the poll")
        end()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert came == []


def test_time_does_not_pass_backwards(clock: Clock) -> None:
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


# Looking


def test_a_message_is_where_it_is(fake: FakeSqs, url: str, jobs: Queue) -> None:
    fake.put(url, "flies")
    fake.put(url, "waits")
    fake.put(url, "is not due", delay=9)
    jobs.receive(1, 0)
    found = [(m.body, m.state, m.visible_in, m.receives) for m in fake.messages(url)]
    assert found == [
        ("flies", State.IN_FLIGHT, 60, 1),
        ("waits", State.VISIBLE, 0, 0),
        ("is not due", State.DELAYED, 9, 0),
    ]


def test_messages_come_in_any_order_where_a_test_wants_that() -> None:
    fake = FakeSqs(Clock(), shuffle=Random(1))
    url = fake.create_queue("jobs")
    sent = [fake.put(url, "{}") for _ in range(10)]
    came = [message.message_id for message in Queue(url, fake).receive(10, 0)]
    assert came != sent
    assert sorted(came) == sorted(sent)


def test_what_was_asked_is_told_by_action(fake: FakeSqs, jobs: Queue) -> None:
    jobs.send_many([Outgoing("a"), Outgoing("b")])
    jobs.receive(1, 0)
    assert fake.counts == {SEND: 1, RECEIVE: 1}
    assert [entry["MessageBody"] for entry in fake.entries(SEND)] == ["a", "b"]
    fake.forget_calls()
    assert fake.calls == []


def test_it_needs_neither_celery_nor_boto3() -> None:
    program = (
        "import sys, sqs_broker.testing; "
        "sys.exit(bool({'celery', 'kombu', 'boto3', 'botocore'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0
