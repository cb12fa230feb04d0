"""Settler: SQS is told each outcome, ten a call, again where it did not hear, and never twice."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from devstack.waiting import wait_until
from sqs_broker.errors import NoThread
from sqs_broker.options import Options
from sqs_broker.rules.facts import facts_of
from sqs_broker.rules.outcomes import DeadLetter, Done, Outcome, Postponed, Released, Retry
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.settler import LINGER, Settled, Settler
from sqs_broker.testing import Clock, FakeSqs
from tests.unit.conftest import HEADERS, VISIBILITY_TIMEOUT, Machine, Receive

#: Seconds that nothing here comes near to.
DEADLINE = 30

#: Seconds after which what has not happened does not happen.
PATIENCE = 0.05

DELETE, CHANGE = "DeleteMessageBatch", "ChangeMessageVisibilityBatch"
DEAD = DeadLetter("no such task", "KeyError")

#: What passes, on its own or once someone has repaired it.
PASSING = [
    SqsError("InternalError"),
    SqsError("RequestThrottled"),
    SqsError("AWS.SimpleQueueService.NonExistentQueue"),
    Unreached("EndpointConnectionError"),
    Unreached("ReadTimeoutError"),
    Unreached("NoCredentialsError"),
    # A driver may let these through as they are.
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

MakeSettler = Callable[..., Settler]

#: The id and the error of each message that SQS will not hear of.
GivenUp = list[tuple[str, str]]


@pytest.fixture
def given_up() -> GivenUp:
    return []


@pytest.fixture
def make_settler(
    options: Options, fake: FakeSqs, clock: Clock, given_up: GivenUp
) -> Iterator[MakeSettler]:
    """Makes settlers that wait for nothing, unless told to. Not started: what is settled before
    `start` shares its calls."""
    made: list[Settler] = []

    def note(settled: Sequence[Settled]) -> None:
        given_up.extend(
            (each.settlement.message.delivery.message_id, each.error.code)
            for each in settled
            if each.error
        )

    def make(**how: Any) -> Settler:
        quick = {"retry_pause": 0.0, "linger": 0.0}
        settler = Settler(options, fake, note, clock=clock, **quick | how)
        made.append(settler)
        return settler

    yield make
    fake.release()
    for settler in made:
        settler.stop(DEADLINE)


@pytest.fixture
def settler(make_settler: MakeSettler) -> Settler:
    return make_settler()


@pytest.fixture
def settle(settler: Settler, receive: Receive) -> Callable[..., str]:
    """Hands over the outcome of a new delivery. Gives its receipt handle."""
    return lambda outcome: hand_over(settler, receive, outcome)


Settle = Callable[..., str]


def hand_over(settler: Settler, receive: Receive, outcome: Outcome) -> str:
    lease = receive()
    settler.settle_all([(lease, facts_of(lease.delivery, HEADERS), outcome)])
    return lease.delivery.receipt_handle


def tell_all(settler: Settler) -> None:
    settler.start()
    assert settler.flush(DEADLINE)


def receipts(fake: FakeSqs, action: str) -> list[list[str]]:
    """The receipt handles of each call."""
    return [[entry["ReceiptHandle"] for entry in call["Entries"]] for call in fake.asked(action)]


def sizes(fake: FakeSqs, action: str = DELETE) -> list[int]:
    return [len(call["Entries"]) for call in fake.asked(action)]


# What is told (and see test_teller.py)


@pytest.mark.parametrize("outcome", [Done(), Retry(7, "KeyError"), Released()])
def test_outcomes_are_told_ten_a_call(
    settler: Settler, fake: FakeSqs, settle: Settle, outcome: Outcome
) -> None:
    handles = [settle(outcome) for _ in range(25)]
    fake.forget_calls()
    tell_all(settler)
    action = DELETE if outcome == Done() else CHANGE
    assert sorted(sizes(fake, action)) == [5, 10, 10]
    assert sorted(e["ReceiptHandle"] for e in fake.entries(action)) == sorted(handles)
    assert len(fake.calls) == 3


# What fails


@pytest.mark.parametrize("outcome", [DEAD, Postponed(5)])
@pytest.mark.parametrize("error", PASSING, ids=repr)
@pytest.mark.parametrize("action", ["SendMessage", DELETE])
def test_a_copy_that_failed_is_tried_again_and_its_message_is_deleted_once(
    settler: Settler,
    fake: FakeSqs,
    settle: Settle,
    outcome: Outcome,
    error: Exception,
    action: str,
) -> None:
    fake.fail(action, error=error, times=2)
    handle = settle(outcome)
    tell_all(settler)
    assert fake.counts == {"SendMessage": 1, DELETE: 1} | {action: 3}
    assert receipts(fake, DELETE)[-1] == [handle]


@pytest.mark.parametrize("outcome", [DEAD, Postponed(5)])
def test_the_next_delivery_of_a_message_whose_copy_was_sent_is_only_deleted(
    settler: Settler,
    fake: FakeSqs,
    options: Options,
    receive: Receive,
    clock: Clock,
    outcome: Outcome,
) -> None:
    fake.fail(DELETE, "ReceiptHandleIsInvalid")
    lease = receive()
    settler.settle_all([(lease, facts_of(lease.delivery, HEADERS), outcome)])
    tell_all(settler)
    # SQS delivers it again.
    settler.settle_all([(lease, facts_of(lease.delivery, HEADERS), outcome)])
    assert settler.flush(DEADLINE)
    assert fake.counts == {"SendMessage": 1, DELETE: 2}


@pytest.mark.parametrize(("action", "outcome"), [(DELETE, Done()), (CHANGE, Retry(7, "KeyError"))])
@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_call_that_failed_is_made_again(
    settler: Settler,
    fake: FakeSqs,
    settle: Settle,
    action: str,
    outcome: Outcome,
    error: Exception,
) -> None:
    fake.fail(action, error=error, times=2)
    handles = [settle(outcome) for _ in range(3)]
    tell_all(settler)
    assert receipts(fake, action) == [handles] * 3


@pytest.mark.parametrize(("action", "outcome"), [(DELETE, Done()), (CHANGE, Released())])
def test_entries_that_failed_are_tried_again_alone(
    settler: Settler, fake: FakeSqs, settle: Settle, action: str, outcome: Outcome
) -> None:
    first, second, third, fourth = (settle(outcome) for _ in range(4))
    fake.fail(action, "RequestThrottled", entries=[second, fourth])
    tell_all(settler)
    assert receipts(fake, action) == [[first, second, third, fourth], [second, fourth]]


@pytest.mark.parametrize("code", FINAL)
@pytest.mark.parametrize("of_the_call", [True, False])
def test_what_no_second_try_can_change_is_given_up(
    settler: Settler,
    fake: FakeSqs,
    receive: Receive,
    given_up: GivenUp,
    code: str,
    of_the_call: bool,
) -> None:
    lease = receive()
    settler.settle_all([(lease, facts_of(lease.delivery, HEADERS), Done())])
    fake.fail(DELETE, code, entries=None if of_the_call else [0])
    tell_all(settler)
    assert len(fake.calls) == 1
    assert given_up == [(lease.delivery.message_id, code.rpartition(".")[2])]


def test_a_copy_that_may_not_be_sent_leaves_the_message_where_it_is(
    settler: Settler, fake: FakeSqs, settle: Settle
) -> None:
    fake.deny("SendMessage")
    settle(DEAD)
    tell_all(settler)
    assert fake.counts == {"SendMessage": 1}


def test_where_the_lease_is_over_the_message_is_given_up(
    settler: Settler, fake: FakeSqs, receive: Receive, clock: Clock, given_up: GivenUp
) -> None:
    lease = receive()
    clock.advance(VISIBILITY_TIMEOUT)
    settler.settle_all([(lease, facts_of(lease.delivery, HEADERS), Done())])
    tell_all(settler)
    assert fake.calls == []
    assert given_up == [(lease.delivery.message_id, "LeaseOver")]


def test_where_the_lease_would_be_over_there_is_no_second_try(
    make_settler: MakeSettler,
    fake: FakeSqs,
    receive: Receive,
    clock: Clock,
    given_up: GivenUp,
) -> None:
    settler = make_settler(retry_pause=1.0)
    fake.fail(DELETE)
    hand_over(settler, receive, Done())
    clock.advance(VISIBILITY_TIMEOUT - 0.5)
    tell_all(settler)
    assert len(fake.calls) == 1
    assert [error for _, error in given_up] == ["InternalError"]


def test_what_fails_is_tried_for_as_long_as_the_lease_lasts(
    settler: Settler,
    fake: FakeSqs,
    settle: Settle,
    given_up: GivenUp,
) -> None:
    fake.fail(DELETE, times=1_000)
    fake.slow(DELETE, after=VISIBILITY_TIMEOUT / 6, times=1_000)
    settle(Done())
    tell_all(settler)
    assert len(fake.calls) == 6
    assert len(given_up) == 1


def test_an_extended_lease_is_tried_for_as_long_as_it_lasts(
    settler: Settler, fake: FakeSqs, receive: Receive, clock: Clock
) -> None:
    fake.fail(DELETE, times=2)
    lease = receive()
    clock.advance(600)
    lease.expires_at = clock() + VISIBILITY_TIMEOUT
    settler.settle_all([(lease, facts_of(lease.delivery, HEADERS), Done())])
    tell_all(settler)
    assert len(fake.calls) == 3


def test_a_fault_of_one_message_does_not_touch_those_beside_it(
    settler: Settler, fake: FakeSqs, settle: Settle
) -> None:
    fake.fail(DELETE, "AccessDenied")
    settle(Done())
    again = settle(Retry(1, "KeyError"))
    tell_all(settler)
    assert receipts(fake, CHANGE) == [[again]]


# Waiting and stopping


def test_a_settlement_waits_for_others_until_there_are_ten(
    make_settler: MakeSettler, fake: FakeSqs, receive: Receive
) -> None:
    settler = make_settler(linger=1_000.0)
    settler.start()
    for _ in range(9):
        hand_over(settler, receive, Done())
    with pytest.raises(TimeoutError):
        wait_until(lambda: fake.calls, PATIENCE, "a call")
    hand_over(settler, receive, Done())
    wait_until(lambda: sizes(fake) == [10], DEADLINE, "a call for ten")


def test_while_somebody_waits_for_all_reports_no_settlement_waits_for_others(
    make_settler: MakeSettler, fake: FakeSqs, receive: Receive
) -> None:
    settler = make_settler(linger=1_000.0)
    settler.start()
    hand_over(settler, receive, Done())
    assert settler.flush(DEADLINE)
    assert sizes(fake) == [1]


def test_a_settlement_waits_for_others_for_a_moment_only(
    make_settler: MakeSettler, fake: FakeSqs, receive: Receive, clock: Clock
) -> None:
    settler = make_settler(linger=0.02)
    settler.start()
    hand_over(settler, receive, Done())
    clock.advance(0.03)
    wait_until(lambda: sizes(fake) == [1], DEADLINE, "a call for one")


def test_eight_that_end_together_every_50_ms_share_calls_of_ten(
    make_settler: MakeSettler, fake: FakeSqs, receive: Receive, clock: Clock
) -> None:
    settler = make_settler(linger=LINGER)
    settler.start()
    leases = [receive() for _ in range(20)]
    ended = [(lease, facts_of(lease.delivery, HEADERS), Done()) for lease in leases]
    for together in (ended[:8], ended[8:16]):
        settler.settle_all(together)
        clock.advance(0.05)
    with pytest.raises(TimeoutError):
        wait_until(lambda: len(sizes(fake)) > 1, PATIENCE, "a call for six")
    settler.settle_all(ended[16:])
    wait_until(lambda: sizes(fake) == [10, 10], DEADLINE, "two calls for ten")


def test_handing_over_never_waits_for_sqs(
    settler: Settler, fake: FakeSqs, receive: Receive
) -> None:
    leases = [receive() for _ in range(100)]
    fake.hold(DELETE)
    settler.start()
    for lease in leases:
        settler.settle_all([(lease, facts_of(lease.delivery, HEADERS), Done())])
    assert settler.flush(0) is False
    fake.release()
    assert settler.flush(DEADLINE)
    told = sorted(entry["ReceiptHandle"] for entry in fake.entries(DELETE))
    assert told == sorted(lease.delivery.receipt_handle for lease in leases)


def test_flushing_says_whether_all_was_told(
    settler: Settler, fake: FakeSqs, settle: Settle
) -> None:
    fake.hold(DELETE)
    settle(Done())
    settler.start()
    assert settler.flush(0.01) is False
    fake.release()
    assert settler.flush(DEADLINE) is True


def test_what_fails_is_tried_again_though_nothing_else_is_settled(
    settler: Settler, fake: FakeSqs, receive: Receive
) -> None:
    # The other threads wait for as long as it takes, before this one fails: one has to wake up.
    settler.start()
    for number in range(1, 31):
        fake.hold(DELETE)
        fake.fail(DELETE)
        lease = receive()
        settler.settle_all([(lease, facts_of(lease.delivery, HEADERS), Done())])
        wait_until(lambda: fake.calls, DEADLINE, "the call")
        fake.release()
        assert settler.flush(DEADLINE), number
        assert len(fake.asked(DELETE)) == 2


def test_flushing_waits_for_what_has_to_be_tried_again(
    settler: Settler, fake: FakeSqs, settle: Settle
) -> None:
    fake.fail(DELETE, times=5)
    settle(Done())
    tell_all(settler)
    assert len(fake.calls) == 6


def test_stopping_tells_what_is_left_and_ends_the_threads(
    settler: Settler,
    fake: FakeSqs,
    options: Options,
    settle: Settle,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settler.start()
    for _ in range(30):
        settle(Done())
    settler.stop(DEADLINE)
    assert caplog.records == []
    assert settlers() == []
    assert fake.messages(options.queue("jobs").url) == []


def test_stopping_before_all_was_told_is_logged(
    settler: Settler, fake: FakeSqs, settle: Settle, caplog: pytest.LogCaptureFixture
) -> None:
    fake.hold(DELETE)
    settler.start()
    settle(Done())
    settler.stop(0.01)
    assert [vars(record)["event"] for record in caplog.records] == ["settle.unfinished"]


def test_each_settlement_is_over_once_however_often_it_is_tried(
    options: Options, fake: FakeSqs, receive: Receive, clock: Clock
) -> None:
    # Their number bounds what is received (`Leases.count_unreported`).
    over: list[tuple[str, bool]] = []

    def note(settled: Sequence[Settled]) -> None:
        over.extend(
            (each.settlement.message.delivery.message_id, each.error is None) for each in settled
        )

    settler = Settler(options, fake, note, clock=clock, retry_pause=0.0, linger=0.0)
    leases = [receive() for _ in range(4)]
    fake.fail(DELETE)
    fake.fail(DELETE, "Busy", entries=[leases[1].delivery.receipt_handle])
    fake.fail("ChangeMessageVisibilityBatch", "AccessDenied")
    fake.fail("SendMessage")
    for lease, outcome in zip(leases, (Done(), Done(), DEAD, Released()), strict=True):
        settler.settle_all([(lease, facts_of(lease.delivery, HEADERS), outcome)])
    tell_all(settler)
    settler.stop(DEADLINE)
    ids = [lease.delivery.message_id for lease in leases]
    assert sorted(over) == sorted(zip(ids, (True, True, True, False), strict=True))


@pytest.mark.parametrize("times", [1, 2])
def test_stopping_what_never_ran_or_has_stopped_does_nothing(settler: Settler, times: int) -> None:
    for _ in range(times):
        settler.stop(DEADLINE)


def test_an_unforeseen_fault_is_logged_without_its_text(
    settler: Settler, fake: FakeSqs, settle: Settle, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fail(DELETE, error=RuntimeError("Kim-1f9c"))
    settle(Done())
    tell_all(settler)
    assert all("Kim-1f9c" not in record.getMessage() for record in caplog.records)


# Its threads


def settlers() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if name.startswith("sqs-settler"))


def test_a_settler_works_with_the_threads_that_there_is_room_for(
    settler: Settler, fake: FakeSqs, settle: Settle, machine: Machine
) -> None:
    machine.has_no_room_for("sqs-settler-1")
    settler.start()
    assert settlers() == ["sqs-settler-0"]
    handle = settle(Done())
    assert settler.flush(DEADLINE)
    assert receipts(fake, DELETE) == [[handle]]


def test_threads_that_there_was_no_room_for_are_tried_again(
    make_settler: MakeSettler, receive: Receive, machine: Machine
) -> None:
    settler = make_settler(grow_pause=0.0)
    machine.has_no_room_for("sqs-settler-1", times=2)
    settler.start()

    def has_grown() -> bool:
        hand_over(settler, receive, Done())
        return len(settlers()) == 3

    wait_until(has_grown, DEADLINE, "three threads")
    settler.stop(DEADLINE)
    assert settlers() == []


def test_without_a_thread_a_settler_does_not_start_and_can_be_started_later(
    settler: Settler, fake: FakeSqs, settle: Settle, machine: Machine
) -> None:
    machine.has_no_room_for("sqs-settler")
    with pytest.raises(NoThread):
        settler.start()
    machine.has_room()
    settler.start()
    handle = settle(Done())
    assert settler.flush(DEADLINE)
    assert receipts(fake, DELETE) == [[handle]]
    assert len(settlers()) == 3
