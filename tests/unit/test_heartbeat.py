"""Heartbeat: leases are extended in time, ten a call and within bounds; a loss is said once."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sqs_broker.errors import NoThread
from sqs_broker.limits import LONGEST_VISIBILITY
from sqs_broker.options import Options
from sqs_broker.rules.lease import HUNG_MARGIN, LIMIT_MARGIN, WAIT_MARGIN, Lease
from sqs_broker.rules.policy import LONGEST_WAIT, Policy
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.heartbeat import Heartbeat
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.queue import Queue
from sqs_broker.testing import Clock, FakeSqs
from tests.unit.conftest import VISIBILITY_TIMEOUT, Machine, MakeDelivery, Receive

#: Seconds that nothing here comes near to.
DEADLINE = 5

#: When every message of these tests was received, in monotonic seconds.
RECEIVED = 1_000.0

CHANGE = "ChangeMessageVisibilityBatch"

#: So many beats in a lease that the thread never pauses for long.
FAST = 100_000


@pytest.fixture
def leases(clock: Clock) -> Leases:
    return Leases(VISIBILITY_TIMEOUT, clock=clock)


@pytest.fixture
def lost() -> list[tuple[str, str]]:
    """Receipt handle and reason of each lease that was lost."""
    return []


@pytest.fixture
def handed_back() -> list[Lease]:
    """Each lease that was handed back, since its message had waited for so long."""
    return []


@pytest.fixture
def hung() -> list[Lease]:
    """Each lease whose task ran past its hard time limit, once."""
    return []


@pytest.fixture
def heartbeat(
    options: Options,
    fake: FakeSqs,
    leases: Leases,
    clock: Clock,
    lost: list[tuple[str, str]],
    handed_back: list[Lease],
    hung: list[Lease],
) -> Heartbeat:
    """Not started: the tests beat. What is lost or handed back is taken from the table, as the
    channel does."""

    def on_lost(lease: Lease, why: str) -> None:
        if leases.take(lease.delivery.tag):
            lost.append((lease.delivery.receipt_handle, why))

    def on_waited(lease: Lease) -> None:
        if leases.keep_back(lease.delivery.tag):
            handed_back.append(lease)

    def on_hung(lease: Lease) -> None:
        if leases.take_hung(lease.delivery.tag):
            hung.append(lease)

    return Heartbeat(options, fake, leases, on_lost, lambda: None, on_waited, on_hung, clock=clock)


@pytest.fixture
def at(clock: Clock) -> Callable[[float], None]:
    """Lets the time pass to so many seconds after the receive, where it is not there yet."""
    return lambda seconds: clock.advance(max(0, RECEIVED + seconds - clock()))


@pytest.fixture
def hold(leases: Leases, receive: Receive) -> Callable[..., Lease]:
    """Holds a new delivery."""

    def hold_one(**facts: Any) -> Lease:
        leases.fill(0, [receive(**facts).delivery])
        return leases.all()[-1]

    return hold_one


At = Callable[[float], None]
Hold = Callable[..., Lease]


def extended(fake: FakeSqs) -> dict[str, int]:
    """The seconds that each receipt handle was extended by."""
    return {e["ReceiptHandle"]: e["VisibilityTimeout"] for e in fake.entries(CHANGE)}


def refuse(fake: FakeSqs, lease: Lease, code: str) -> None:
    """Let the next extension of a lease fail."""
    fake.fail(CHANGE, code, entries=[lease.delivery.receipt_handle])


# When


@pytest.mark.parametrize("age", [0, 5, 9.9])
def test_a_young_lease_costs_no_call(
    heartbeat: Heartbeat, fake: FakeSqs, hold: Hold, at: At, age: float
) -> None:
    hold()
    at(age)
    heartbeat.beat()
    assert fake.calls == []


@pytest.mark.parametrize("age", [10, 20, 40, 59.9])
def test_a_lease_is_extended_before_its_time_is_over(
    heartbeat: Heartbeat, fake: FakeSqs, hold: Hold, at: At, age: float
) -> None:
    lease = hold()
    at(age)
    heartbeat.beat()
    assert extended(fake) == {lease.delivery.receipt_handle: VISIBILITY_TIMEOUT}
    assert lease.expires_at == RECEIVED + age + VISIBILITY_TIMEOUT


def test_no_lease_gets_older_than_a_third_of_its_time_between_two_beats(
    heartbeat: Heartbeat, fake: FakeSqs, hold: Hold, at: At
) -> None:
    # The thread beats every sixth of it.
    lease = hold()
    left = []
    for age in range(0, 600, 10):
        at(age)
        left.append(lease.expires_at - RECEIVED - age)
        heartbeat.beat()
    assert min(left) >= VISIBILITY_TIMEOUT * 2 / 3


def test_an_extension_that_failed_is_tried_again_at_the_next_beat(
    heartbeat: Heartbeat, fake: FakeSqs, hold: Hold, at: At
) -> None:
    lease = hold()
    fake.fail(CHANGE, error=Unreached("ReadTimeoutError"))
    for age in (10, 20):
        at(age)
        heartbeat.beat()
    assert len(fake.calls) == 2
    assert lease.expires_at == RECEIVED + 20 + VISIBILITY_TIMEOUT


# How


def test_leases_are_extended_ten_a_call(
    heartbeat: Heartbeat, fake: FakeSqs, hold: Hold, at: At
) -> None:
    handles = [hold().delivery.receipt_handle for _ in range(25)]
    at(20)
    heartbeat.beat()
    assert [len(call["Entries"]) for call in fake.asked(CHANGE)] == [10, 10, 5]
    assert list(extended(fake)) == handles


def test_each_queue_is_asked_by_its_own_url(
    heartbeat: Heartbeat, options: Options, fake: FakeSqs, hold: Hold, at: At
) -> None:
    for queue in ("jobs", "mail", "jobs"):
        hold(queue=queue)
    at(20)
    heartbeat.beat()
    asked = {call["QueueUrl"]: len(call["Entries"]) for call in fake.asked(CHANGE)}
    assert asked == {options.queue("jobs").url: 2, options.queue("mail").url: 1}


def test_what_ends_while_others_are_extended_is_not_extended(
    heartbeat: Heartbeat, fake: FakeSqs, leases: Leases, hold: Hold, at: At
) -> None:
    # Its settler has told SQS when it is to be seen again, or that it is done.
    held = [hold() for _ in range(11)]
    fake.on_call = lambda _: leases.take(held[-1].delivery.tag)
    at(20)
    heartbeat.beat()
    assert [len(call["Entries"]) for call in fake.asked(CHANGE)] == [10]


def test_a_lease_lasts_as_long_as_sqs_was_asked_for_although_its_task_starts_meanwhile(
    heartbeat: Heartbeat, fake: FakeSqs, leases: Leases, hold: Hold, at: At
) -> None:
    lease = hold()
    leases.started(lease.delivery.tag, 4.5)
    fake.on_call = lambda _: leases.started(lease.delivery.tag, 600)
    lease.expires_at = RECEIVED + 5
    at(4)
    heartbeat.beat()
    (seconds,) = extended(fake).values()
    assert lease.expires_at == RECEIVED + 4 + seconds


# Within bounds


def beat_until(heartbeat: Heartbeat, at: At, *, end: int, step: int = 10) -> None:
    for age in range(0, end, step):
        at(age)
        heartbeat.beat()


@pytest.mark.parametrize("step", [5, 10, 14])
def test_a_waiting_message_is_handed_back_before_its_longest_wait_with_time_to_tell_sqs(
    heartbeat: Heartbeat,
    hold: Hold,
    at: At,
    lost: list[tuple[str, str]],
    handed_back: list[Lease],
    step: int,
) -> None:
    lease = hold()
    for age in range(0, LONGEST_WAIT + 1, step):
        at(age)
        heartbeat.beat()
        if handed_back:
            break
    assert (handed_back, lost) == ([lease], [])
    assert LONGEST_WAIT * 0.9 < age <= LONGEST_WAIT
    assert lease.expires_at - (RECEIVED + age) >= 10


def test_a_message_that_a_process_has_taken_is_not_handed_back(
    heartbeat: Heartbeat, leases: Leases, hold: Hold, at: At, handed_back: list[Lease]
) -> None:
    running, promised = hold(), hold()
    leases.started(running.delivery.tag, None)
    leases.promise(promised.delivery.tag)
    beat_until(heartbeat, at, end=2 * LONGEST_WAIT)
    assert handed_back == []
    assert [lease.delivery for lease in leases.all()] == [running.delivery]


def test_a_message_that_is_promised_to_a_process_at_the_last_moment_has_time_to_start(
    heartbeat: Heartbeat, leases: Leases, hold: Hold, at: At, lost: list[tuple[str, str]]
) -> None:
    lease = hold()
    beat_until(heartbeat, at, end=LONGEST_WAIT - 30)
    leases.promise(lease.delivery.tag)
    for age in range(LONGEST_WAIT - 30, LONGEST_WAIT + WAIT_MARGIN, 10):
        at(age)
        heartbeat.beat()
    assert leases.started(lease.delivery.tag, 600)
    for age in range(LONGEST_WAIT + WAIT_MARGIN - 1, LONGEST_WAIT + 600, 10):
        at(age)
        heartbeat.beat()
    assert lost == []


def test_a_promised_message_that_never_starts_is_given_back_in_the_end(
    heartbeat: Heartbeat, leases: Leases, hold: Hold, at: At, lost: list[tuple[str, str]]
) -> None:
    lease = hold()
    leases.promise(lease.delivery.tag)
    beat_until(heartbeat, at, end=2_000)
    assert lost == [(lease.delivery.receipt_handle, "its time ran out")]
    assert lease.expires_at <= RECEIVED + LONGEST_WAIT + WAIT_MARGIN + VISIBILITY_TIMEOUT


@pytest.mark.parametrize("step", [5, 10, 14])
@pytest.mark.parametrize("limit", [1, 30, 7_200])
def test_a_run_that_hangs_is_found_soon_after_its_limit_with_time_to_report_it(
    heartbeat: Heartbeat,
    leases: Leases,
    hold: Hold,
    at: At,
    lost: list[tuple[str, str]],
    hung: list[Lease],
    limit: int,
    step: int,
) -> None:
    lease = hold()
    leases.started(lease.delivery.tag, limit)
    for age in range(0, limit + 200, step):
        at(age)
        heartbeat.beat()
        if hung:
            break
    assert (hung, lost) == ([lease], [])
    assert limit + LIMIT_MARGIN <= age < limit + LIMIT_MARGIN + step
    assert lease.expires_at - (RECEIVED + age) >= 10


@pytest.mark.parametrize("visibility_timeout", [2, 3, 12, 60, 600, LONGEST_VISIBILITY])
def test_a_lease_of_any_length_lasts_until_its_run_is_found_to_hang(
    options: Options, fake: FakeSqs, receive: Receive, clock: Clock, visibility_timeout: int
) -> None:
    # The clock of this test advances with each pause of the thread.
    url = options.queue("jobs").url
    fake.set_attributes(url, VisibilityTimeout=str(visibility_timeout))
    leases = Leases(visibility_timeout, clock=clock)
    found: list[str] = []
    heartbeat = Heartbeat(
        replace(options, policy=replace(options.policy, visibility_timeout=visibility_timeout)),
        fake,
        leases,
        lambda *_: found.append("lost"),
        lambda: None,
        on_hung=lambda _: found.append("hung"),
        clock=clock,
    )
    delivery = receive().delivery
    leases.fill(0, [delivery])
    limit = min(visibility_timeout - 1, 3_600)
    leases.started(delivery.tag, limit)
    while not found:
        clock.advance(heartbeat.pause)
        heartbeat.beat()
    assert found == ["hung"]
    after = clock() - delivery.received_at - limit
    assert LIMIT_MARGIN <= after <= LIMIT_MARGIN + HUNG_MARGIN / 2


def test_a_run_past_its_limit_hangs_at_once_if_its_lease_cannot_be_extended(
    heartbeat: Heartbeat, fake: FakeSqs, leases: Leases, hold: Hold, at: At, hung: list[Lease]
) -> None:
    lease = hold()
    leases.started(lease.delivery.tag, 45)
    for age in (10, 20, 30, 40, 46):
        fake.fail(CHANGE, error=Unreached("ReadTimeoutError"))
        at(age)
        heartbeat.beat()
        assert hung == ([lease] if age > 45 else [])


def test_a_run_whose_end_is_known_does_not_hang(
    heartbeat: Heartbeat, leases: Leases, hold: Hold, at: At, hung: list[Lease]
) -> None:
    ended, limitless = hold(), hold()
    leases.started(ended.delivery.tag, 30)
    leases.started(limitless.delivery.tag, None)
    leases.run_ended(ended.delivery.tag)
    beat_until(heartbeat, at, end=1_000)
    assert hung == []


def test_a_run_that_hangs_and_is_not_ended_gives_its_message_back(
    options: Options, fake: FakeSqs, leases: Leases, clock: Clock, hold: Hold, at: At
) -> None:
    lost: list[str] = []

    def on_lost(lease: Lease, _: str) -> None:
        if leases.take(lease.delivery.tag):
            lost.append(lease.delivery.tag)

    heartbeat = Heartbeat(options, fake, leases, on_lost, lambda: None, clock=clock)
    lease = hold()
    leases.started(lease.delivery.tag, 30)
    beat_until(heartbeat, at, end=30 + LIMIT_MARGIN)
    assert lost == []
    beat_until(heartbeat, at, end=200)
    assert lost == [lease.delivery.tag]
    assert lease.expires_at <= RECEIVED + 30 + LIMIT_MARGIN + HUNG_MARGIN + VISIBILITY_TIMEOUT


@pytest.mark.parametrize("limit", [30, 45, 100])
def test_no_extension_reaches_beyond_what_its_lease_may_last(
    heartbeat: Heartbeat, leases: Leases, hold: Hold, at: At, limit: int
) -> None:
    lease = hold()
    leases.started(lease.delivery.tag, limit)
    own = lease.expires_at
    beat_until(heartbeat, at, end=1_000)
    assert lease.expires_at <= max(own, lease.may_last_until)


@pytest.mark.parametrize("limit", [None, 100_000])
def test_no_extension_reaches_beyond_twelve_hours(
    heartbeat: Heartbeat,
    options: Options,
    fake: FakeSqs,
    leases: Leases,
    hold: Hold,
    at: At,
    limit: int | None,
) -> None:
    # SQS refuses the whole extension, and its 12 hours count from the receive.
    lease = hold()
    leases.started(lease.delivery.tag, limit)
    queue = Queue(options.queue("jobs").url, fake)
    assert queue.change_visibility([(lease.delivery.receipt_handle, 43_180)]) == [None]
    lease.expires_at = RECEIVED + LONGEST_VISIBILITY - 20
    at(LONGEST_VISIBILITY - 30)
    heartbeat.beat()
    (seconds,) = extended(fake).values()
    assert 20 < seconds <= 29
    # What was asked for is what the lease lasts.
    assert lease.expires_at == RECEIVED + LONGEST_VISIBILITY - 30 + seconds


def test_after_twelve_hours_nothing_is_asked_for(
    heartbeat: Heartbeat, fake: FakeSqs, leases: Leases, hold: Hold, at: At
) -> None:
    lease = hold()
    leases.started(lease.delivery.tag, None)
    lease.expires_at = RECEIVED + LONGEST_VISIBILITY + 20
    at(LONGEST_VISIBILITY - 1)
    heartbeat.beat()
    assert fake.calls == []


# What is lost


@pytest.mark.parametrize("age", [60, 61, 10_000])
def test_a_lease_whose_time_is_over_is_lost_once_and_not_extended(
    heartbeat: Heartbeat,
    fake: FakeSqs,
    hold: Hold,
    at: At,
    lost: list[tuple[str, str]],
    age: float,
) -> None:
    lease = hold()
    at(age)
    heartbeat.beat()
    heartbeat.beat()
    assert lost == [(lease.delivery.receipt_handle, "its time ran out")]
    assert fake.calls == []


@pytest.mark.parametrize(
    "code",
    [
        "MessageNotInflight",
        "AWS.SimpleQueueService.MessageNotInflight",
        "ReceiptHandleIsInvalid",
        "InvalidParameterValue",
    ],
)
def test_a_refused_receipt_handle_is_lost_once_and_those_beside_it_are_not(
    heartbeat: Heartbeat,
    fake: FakeSqs,
    hold: Hold,
    at: At,
    lost: list[tuple[str, str]],
    code: str,
) -> None:
    first, second = hold(), hold()
    refuse(fake, first, code)
    for age in (20, 40):
        at(age)
        heartbeat.beat()
    assert lost == [(first.delivery.receipt_handle, "SQS refused its receipt handle")]
    assert second.expires_at == RECEIVED + 40 + VISIBILITY_TIMEOUT


@pytest.mark.parametrize("code", ["InternalError", "RequestThrottled", "AccessDenied"])
def test_an_entry_that_may_succeed_later_is_not_lost(
    heartbeat: Heartbeat,
    fake: FakeSqs,
    hold: Hold,
    at: At,
    lost: list[tuple[str, str]],
    code: str,
) -> None:
    lease = hold()
    refuse(fake, lease, code)
    at(20)
    heartbeat.beat()
    assert lease.expires_at == RECEIVED + VISIBILITY_TIMEOUT
    heartbeat.beat()
    assert lost == []
    assert lease.expires_at == RECEIVED + 20 + VISIBILITY_TIMEOUT


@pytest.mark.parametrize(
    "fault",
    [
        SqsError("AccessDenied"),
        Unreached("ConnectionClosedError"),
        RuntimeError("Kim-1f9c"),
    ],
    ids=repr,
)
def test_a_call_that_failed_loses_nothing_and_is_logged_without_its_text(
    heartbeat: Heartbeat,
    fake: FakeSqs,
    hold: Hold,
    at: At,
    lost: list[tuple[str, str]],
    caplog: pytest.LogCaptureFixture,
    fault: Exception,
) -> None:
    # The leases of one queue do not suffer from a fault of the other.
    jobs, mail = hold(queue="jobs"), hold(queue="mail")
    fake.fail(CHANGE, error=fault)
    at(20)
    heartbeat.beat()
    assert lost == []
    assert (jobs.expires_at, mail.expires_at) == (RECEIVED + 60, RECEIVED + 80)
    assert [vars(record)["event"] for record in caplog.records] == ["lease.failed"]
    assert "Kim-1f9c" not in caplog.text


# The thread


def test_the_thread_beats_until_it_is_stopped(
    options: Options, fake: FakeSqs, leases: Leases
) -> None:
    beats = threading.Semaphore(0)
    heartbeat = Heartbeat(options, fake, leases, print, beats.release, beats_per_lease=FAST)
    heartbeat.start()
    assert all(beats.acquire(timeout=DEADLINE) for _ in range(3))
    heartbeat.stop(DEADLINE)
    assert not any(thread.name == "sqs-heartbeat" for thread in threading.enumerate())


def test_a_wait_that_is_shorter_than_a_beat_of_a_long_lease_is_noticed_in_time(
    options: Options, fake: FakeSqs, make_delivery: MakeDelivery
) -> None:
    policy = Policy(visibility_timeout=LONGEST_VISIBILITY, longest_wait=0.3)
    leases = Leases(policy.visibility_timeout, policy.longest_wait)
    waited = threading.Event()
    heartbeat = Heartbeat(
        replace(options, policy=policy),
        fake,
        leases,
        print,
        lambda: None,
        lambda _: waited.set(),
    )
    leases.fill(0, [make_delivery()])
    heartbeat.start()
    try:
        assert waited.wait(DEADLINE)
    finally:
        heartbeat.stop(DEADLINE)


def test_the_thread_outlives_a_fault_of_who_is_told(
    options: Options, fake: FakeSqs, leases: Leases, caplog: pytest.LogCaptureFixture
) -> None:
    beats = threading.Semaphore(0)

    def fail() -> None:
        beats.release()
        raise RuntimeError

    heartbeat = Heartbeat(options, fake, leases, print, fail, beats_per_lease=FAST)
    with caplog.at_level(logging.CRITICAL + 1):
        heartbeat.start()
        assert all(beats.acquire(timeout=DEADLINE) for _ in range(3))
        heartbeat.stop(DEADLINE)


def test_stopping_does_not_wait_for_the_next_beat(heartbeat: Heartbeat) -> None:
    heartbeat.start()
    heartbeat.stop(DEADLINE)
    assert not any(thread.name == "sqs-heartbeat" for thread in threading.enumerate())


def test_stopping_what_never_ran_does_nothing(heartbeat: Heartbeat) -> None:
    heartbeat.stop(DEADLINE)


def test_one_that_there_is_no_room_for_can_be_stopped_and_started_later(
    heartbeat: Heartbeat, machine: Machine
) -> None:
    machine.has_no_room_for("sqs-heartbeat")
    with pytest.raises(NoThread):
        heartbeat.start()
    machine.has_room()
    heartbeat.start()
    assert any(thread.name == "sqs-heartbeat" for thread in threading.enumerate())
    heartbeat.stop(DEADLINE)
