"""Leases: a receive is asked for when it is worth its call, and never for more than fits."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from devstack.waiting import wait_until
from sqs_broker.limits import BATCH
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.lease import HUNG_MARGIN, LIMIT_MARGIN, WAIT_MARGIN
from sqs_broker.sqs.leases import AHEAD, MOST_AHEAD, MOST_UNREPORTED, SPAN, Leases, Pace
from tests.unit.conftest import VISIBILITY_TIMEOUT, MakeDelivery, MakeLease, after_a_short_task

#: Seconds that nothing here comes near to.
DEADLINE = 5

#: Messages that may be held beyond what the pool runs, with room for another batch.
ROOM = AHEAD - BATCH

#: Seconds after which whoever has not answered is waiting.
PATIENCE = 0.02


@pytest.fixture
def leases() -> Leases:
    """Of a pool whose tasks are short."""
    return after_a_short_task(Leases(VISIBILITY_TIMEOUT))


@pytest.fixture
def hold(leases: Leases, make_delivery: MakeDelivery) -> Callable[[int], list[str]]:
    """Fills the table with so many deliveries, without a reservation; gives their tags."""

    def fill(number: int) -> list[str]:
        deliveries = [make_delivery() for _ in range(number)]
        leases.fill(0, deliveries)
        return [delivery.tag for delivery in deliveries]

    return fill


Hold = Callable[[int], list[str]]


class Reserver:
    """Reserves on a thread of its own, as a receiver does."""

    def __init__(self, leases: Leases) -> None:
        self.stopping = threading.Event()
        self._leases = leases
        self._executor = ThreadPoolExecutor()

    def reserve(self) -> "Future[int]":
        return self._executor.submit(self._leases.reserve, self.stopping)

    def close(self) -> None:
        self.stopping.set()
        self._leases.wake()
        self._executor.shutdown()


@pytest.fixture
def reserver(leases: Leases) -> Iterator[Reserver]:
    made = Reserver(leases)
    yield made
    made.close()


def assert_waits(reserved: "Future[int]") -> None:
    with pytest.raises(TimeoutError):
        reserved.result(PATIENCE)


@pytest.mark.parametrize(
    ("concurrency", "held"), [(1, 0), (1, 1), (4, 0), (4, 4), (20, 19), (20, 20), (4, ROOM + 4)]
)
def test_a_full_batch_is_asked_for_where_it_fits(
    leases: Leases, hold: Hold, reserver: Reserver, concurrency: int, held: int
) -> None:
    leases.resize(concurrency)
    hold(held)
    assert reserver.reserve().result(DEADLINE) == BATCH


@pytest.mark.parametrize(("concurrency", "beyond"), [(1, 1), (4, 1), (4, 9), (4, 10), (20, 1)])
def test_a_busy_pool_waits_until_a_full_batch_fits(
    leases: Leases, hold: Hold, reserver: Reserver, concurrency: int, beyond: int
) -> None:
    leases.resize(concurrency)
    *others, last = hold(concurrency + ROOM + beyond)[-beyond:]
    reserved = reserver.reserve()
    for tag in others:
        leases.take(tag)
    assert_waits(reserved)
    leases.take(last)
    assert reserved.result(DEADLINE) == BATCH


def test_a_window_that_shrank_below_what_is_held_asks_for_nothing(
    leases: Leases, hold: Hold, reserver: Reserver
) -> None:
    leases.resize(20)
    hold(20 + ROOM)
    leases.resize(2)
    assert_waits(reserver.reserve())


def test_a_wider_pool_wakes_who_waits(leases: Leases, hold: Hold, reserver: Reserver) -> None:
    leases.resize(1)
    hold(5 + ROOM)
    reserved = reserver.reserve()
    assert_waits(reserved)
    leases.resize(5)
    assert reserved.result(DEADLINE) == BATCH


def test_what_is_reserved_is_not_given_twice(leases: Leases, reserver: Reserver) -> None:
    # Room for three batches.
    leases.resize(3 * BATCH - AHEAD)
    assert [reserver.reserve().result(DEADLINE) for _ in range(3)] == [10, 10, 10]
    fourth = reserver.reserve()
    assert_waits(fourth)
    leases.fill(10, [])
    assert fourth.result(DEADLINE) == BATCH


@pytest.mark.parametrize(("concurrency", "receivers"), [(1, 2), (4, 2), (4, 5), (0, 50)])
def test_receivers_that_share_a_window_all_ask_at_the_same_time(
    leases: Leases, reserver: Reserver, concurrency: int, receivers: int
) -> None:
    leases.resize(concurrency)
    leases.share_among(receivers)
    slots = [reserver.reserve().result(DEADLINE) for _ in range(receivers)]
    assert min(slots) > 0
    assert sum(slots) <= concurrency + max(AHEAD, receivers)


def test_a_smaller_share_wakes_who_waits_for_a_larger_one(
    leases: Leases, hold: Hold, reserver: Reserver
) -> None:
    leases.resize(4)
    hold(4 + ROOM + 3)
    reserved = reserver.reserve()
    assert_waits(reserved)
    # Seven are free.
    leases.share_among(4)
    assert reserved.result(DEADLINE) == (AHEAD + 4) // 4 < 7


@pytest.mark.parametrize("at_first", [1, 2])
def test_a_pool_that_would_idle_is_fed_although_another_poll_is_open(
    leases: Leases, hold: Hold, reserver: Reserver, at_first: int
) -> None:
    concurrency = AHEAD + 4
    leases.resize(concurrency)
    leases.share_among(at_first)
    # The long polls of empty queues keep their slots for 20 s.
    reserved = sum(reserver.reserve().result(DEADLINE) for _ in range(AHEAD // BATCH))
    leases.share_among(2)
    *_, last = hold(concurrency)
    another = reserver.reserve()
    assert_waits(another)
    leases.take(last)
    assert another.result(DEADLINE) == AHEAD + 1 - reserved


@pytest.mark.parametrize("came", [0, 1, 10])
def test_a_reservation_becomes_what_came_and_the_rest_is_free_again(
    leases: Leases, make_delivery: MakeDelivery, reserver: Reserver, came: int
) -> None:
    leases.resize(0)
    assert reserver.reserve().result(DEADLINE) == BATCH
    deliveries = [make_delivery() for _ in range(came)]
    leases.fill(BATCH, deliveries)
    assert [lease.delivery for lease in leases.all()] == deliveries
    for delivery in deliveries:
        leases.take(delivery.tag)
    assert reserver.reserve().result(DEADLINE) == BATCH


def test_a_consumer_without_a_window_gets_one_batch_at_a_time(
    leases: Leases, hold: Hold, reserver: Reserver
) -> None:
    tags = hold(1 + ROOM)
    reserved = reserver.reserve()
    assert_waits(reserved)
    leases.take(tags[0])
    assert reserved.result(DEADLINE) == BATCH


@pytest.mark.parametrize("held", [0, 50])
def test_who_stops_reserves_nothing(
    leases: Leases, hold: Hold, reserver: Reserver, held: int
) -> None:
    hold(held)
    reserver.stopping.set()
    assert reserver.reserve().result(DEADLINE) == 0


def test_who_waits_stops_when_woken(leases: Leases, hold: Hold, reserver: Reserver) -> None:
    hold(50)
    reserved = reserver.reserve()
    assert_waits(reserved)
    reserver.stopping.set()
    leases.wake()
    assert reserved.result(DEADLINE) == 0


def test_all_who_wait_ask_where_there_is_room_for_all(
    leases: Leases, hold: Hold, reserver: Reserver
) -> None:
    leases.resize(1)
    hold(50)
    reserved = [reserver.reserve() for _ in range(3)]
    for each in reserved:
        assert_waits(each)
    leases.take_waiting()
    assert sorted(each.result(DEADLINE) for each in reserved) == [1, BATCH, BATCH]


def test_a_job_that_many_messages_share_wakes_who_waits_for_the_room_that_they_leave(
    make_delivery: MakeDelivery,
) -> None:
    # Of tasks that nobody has measured, so that nothing is held ahead.
    leases = Leases(VISIBILITY_TIMEOUT)
    leases.resize(2)
    deliveries = [make_delivery() for _ in range(BATCH)]
    leases.fill(0, deliveries)
    reserver = Reserver(leases)
    try:
        reserved = reserver.reserve()
        assert_waits(reserved)
        for delivery in deliveries:
            leases.started(delivery.tag, 30, Job("one job", takes=BATCH))
        # For the other process.
        assert 0 < reserved.result(DEADLINE) <= BATCH
    finally:
        reserver.close()


def test_who_stops_leaves_the_room_to_the_next_one(
    leases: Leases, hold: Hold, reserver: Reserver
) -> None:
    stops = Reserver(leases)
    try:
        leases.resize(1)
        tags = hold(BATCH + ROOM + 1)
        leaving, staying = stops.reserve(), reserver.reserve()
        for each in (leaving, staying):
            assert_waits(each)
        stops.stopping.set()
        for tag in tags[:BATCH]:
            leases.take(tag)
        assert staying.result(DEADLINE) == BATCH
    finally:
        stops.close()


def test_who_waits_for_a_time_only_gets_nothing_after_it(leases: Leases, hold: Hold) -> None:
    hold(50)
    assert leases.reserve(threading.Event(), timeout=PATIENCE) == 0


def test_short_messages_widen_the_window_and_a_pause_narrows_it_again(
    leases: Leases, make_delivery: MakeDelivery
) -> None:
    leases.resize(1)

    def is_wider() -> bool:
        # As fast as it goes: more than two batches end in a tenth of a second.
        deliveries = [make_delivery() for _ in range(BATCH)]
        leases.fill(0, deliveries)
        for delivery in deliveries:
            leases.take(delivery.tag)
        return most() > 1 + AHEAD

    def most() -> int:
        held = 0
        while slots := leases.try_reserve():
            held += slots
        leases.fill(held, [])
        return held

    wait_until(is_wider, DEADLINE, "a wider window")
    assert most() <= 1 + MOST_AHEAD
    wait_until(lambda: most() == 1 + AHEAD, DEADLINE, "the window of before")


def test_the_pace_is_what_ended_in_the_last_whole_span() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    for _ in range(3):
        pace.count()
    assert pace() == 0
    now += SPAN * 1.1
    pace.count()
    assert pace() == 3
    now += SPAN
    assert pace() == 1
    now += SPAN
    assert pace() == 0


def test_an_old_pace_is_no_pace() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    pace.count()
    now += 5 * SPAN
    assert pace() == 0
    pace.count()
    now += 5 * SPAN
    assert pace() == 0


def test_many_receivers_never_hold_more_than_the_window(
    leases: Leases, make_delivery: MakeDelivery, reserver: Reserver
) -> None:
    window = 7 + MOST_AHEAD
    leases.resize(7)
    most = []

    def receive() -> None:
        while slots := leases.reserve(reserver.stopping):
            leases.fill(slots, [make_delivery() for _ in range(slots)])
            most.append(len(leases))
            for lease in leases.all():
                leases.take(lease.delivery.tag)
            if len(most) > 1000:
                reserver.stopping.set()

    with ThreadPoolExecutor() as executor:
        for receiver in [executor.submit(receive) for _ in range(4)]:
            receiver.result(DEADLINE)
    assert max(most) <= window


@pytest.mark.parametrize(
    ("held", "slots"), [(0, BATCH), (3, BATCH), (4, BATCH), (5 + ROOM, 0), (50 + ROOM, 0)]
)
def test_who_does_not_wait_reserves_what_is_worth_it_now(
    leases: Leases, hold: Hold, held: int, slots: int
) -> None:
    leases.resize(4)
    hold(held)
    assert leases.try_reserve() == slots


def test_who_did_not_wait_holds_its_slots_as_others_do(leases: Leases) -> None:
    batches = AHEAD // BATCH
    assert [leases.try_reserve() for _ in range(batches + 1)] == [*[BATCH] * batches, 0]
    leases.fill(BATCH, [])
    assert leases.try_reserve() == BATCH


def test_nobody_asks_in_a_pause(leases: Leases, reserver: Reserver) -> None:
    leases.pause("a")
    reserved = reserver.reserve()
    assert_waits(reserved)
    assert leases.try_reserve() == 0
    leases.resume("a")
    assert reserved.result(DEADLINE) == BATCH


def test_a_pause_ends_by_its_own_reason_alone(leases: Leases) -> None:
    leases.pause("a")
    leases.pause("b")
    leases.resume("a")
    assert (leases.pauses, leases.try_reserve()) == ({"b"}, 0)
    leases.resume("b")
    assert (leases.pauses, leases.try_reserve()) == (set(), BATCH)


def test_a_pause_says_whether_it_is_a_change(leases: Leases) -> None:
    calls = (leases.resume, leases.pause, leases.pause, leases.resume, leases.resume)
    said = [call("a") for call in calls]
    assert said == [False, True, False, True, False]


def test_what_sqs_was_not_told_yet_bounds_what_is_received(
    leases: Leases, reserver: Reserver
) -> None:
    leases.count_unreported(MOST_UNREPORTED + AHEAD - BATCH + 1)
    reserved = reserver.reserve()
    assert_waits(reserved)
    leases.count_unreported(-1)
    assert reserved.result(DEADLINE) == BATCH


def test_some_that_sqs_was_not_told_yet_bound_nothing(leases: Leases) -> None:
    leases.count_unreported(MOST_UNREPORTED)
    batches = AHEAD // BATCH
    assert [leases.try_reserve() for _ in range(batches + 1)] == [*[BATCH] * batches, 0]


# The table


def test_a_delivery_ends_once(leases: Leases, make_delivery: MakeDelivery) -> None:
    delivery = make_delivery()
    leases.fill(0, [delivery])
    assert leases.holds(delivery.tag)
    lease = leases.take(delivery.tag)
    assert lease is not None
    assert lease.delivery is delivery
    assert leases.take(delivery.tag) is None
    assert not leases.holds(delivery.tag)
    assert len(leases) == 0


def test_of_all_that_wait_none_that_runs_is_taken(leases: Leases, hold: Hold) -> None:
    running, *waiting = hold(3)
    leases.started(running, 30)
    assert [lease.delivery.tag for lease in leases.take_waiting()] == waiting
    assert [lease.delivery.tag for lease in leases.all()] == [running]
    assert leases.take_waiting() == []


def test_what_was_taken_cannot_start_any_more(leases: Leases, hold: Hold) -> None:
    (tag,) = hold(1)
    leases.take_waiting()
    assert leases.started(tag, 30) is None


@pytest.mark.parametrize(("starts", "is_taken"), [(False, True), (True, False)])
def test_what_may_have_been_started_meanwhile_is_taken_only_if_it_was_not(
    leases: Leases, hold: Hold, starts: bool, is_taken: bool
) -> None:
    (tag,) = hold(1)
    if starts:
        leases.started(tag, None)
    assert (leases.take_unstarted(tag) is not None) is is_taken
    assert leases.holds(tag) is not is_taken
    assert leases.take_unstarted("another") is None


def test_two_deliveries_of_one_message_are_held_apart(
    leases: Leases, make_delivery: MakeDelivery
) -> None:
    first, second = make_delivery(message_id="same"), make_delivery(message_id="same")
    leases.fill(0, [first, second])
    leases.take(first.tag)
    assert [lease.delivery for lease in leases.all()] == [second]


# A lease


def test_a_lease_ends_a_visibility_timeout_after_the_receive_call(
    leases: Leases, make_delivery: MakeDelivery
) -> None:
    leases.fill(0, [make_delivery(received_at=1_020.0, waited=20.0)])
    assert leases.all()[0].expires_at == 1_000.0 + VISIBILITY_TIMEOUT


def test_an_extension_lasts_until_the_time_that_was_asked_for(
    leases: Leases, make_delivery: MakeDelivery
) -> None:
    delivery = make_delivery(received_at=1_000.0)
    leases.fill(0, [delivery])
    leases.extended(delivery.tag, until=1_040.0 + VISIBILITY_TIMEOUT)
    assert leases.all()[0].expires_at == 1_040.0 + VISIBILITY_TIMEOUT


def test_a_waiting_message_is_kept_for_a_quarter_of_an_hour(make_lease: MakeLease) -> None:
    lease = make_lease(received_at=1_000.0)
    assert lease.is_running is False
    assert lease.waits_until == 1_000.0 + 900
    # Time to hand it back in.
    assert lease.may_last_until == 1_000.0 + 900 + WAIT_MARGIN


def test_how_long_a_message_may_wait_can_be_told(make_delivery: MakeDelivery) -> None:
    leases = Leases(VISIBILITY_TIMEOUT, longest_wait=5)
    leases.fill(0, [make_delivery(received_at=1_000.0)])
    assert leases.all()[0].waits_until == 1_005.0


@pytest.mark.parametrize(
    ("limit", "until"),
    [
        # From its start, and not from the receive.
        (30, 5_000 + 30 + LIMIT_MARGIN + HUNG_MARGIN),
        (0.5, 5_000 + 0.5 + LIMIT_MARGIN + HUNG_MARGIN),
        (7_200, 5_000 + 7_200 + LIMIT_MARGIN + HUNG_MARGIN),
        # SQS's 12 hours do count from the receive, which may have been when the call was sent.
        (43_200, 1_000 + 43_199),
        (None, 1_000 + 43_199),
    ],
)
def test_a_running_message_is_kept_to_its_limit_and_never_beyond_twelve_hours(
    make_delivery: MakeDelivery, limit: float | None, until: float
) -> None:
    leases = Leases(VISIBILITY_TIMEOUT, clock=lambda: 5_000.0)
    delivery = make_delivery(received_at=1_020.0, waited=20.0)
    leases.fill(0, [delivery])
    leases.started(delivery.tag, limit)
    (lease,) = leases.all()
    assert (lease.is_running, lease.may_last_until) == (True, until)


def test_what_has_ended_neither_starts_nor_is_extended(leases: Leases) -> None:
    leases.started("ended", 30)
    leases.extended("ended", 0.0)
    assert leases.all() == []


# Tasks that hang


def test_a_run_is_found_to_hang_once_and_only_while_its_end_is_not_known(
    leases: Leases, hold: Hold
) -> None:
    hangs, ended, waits, limitless = hold(4)
    for tag in (hangs, ended):
        leases.started(tag, 30)
    leases.started(limitless, None)
    leases.run_ended(ended)
    found = [leases.claim_hung(tag) for tag in (hangs, hangs, ended, waits, limitless, "gone")]
    assert found == [True, False, False, False, False, False]


def test_a_process_whose_task_hangs_gets_no_message_until_the_task_ends(
    leases: Leases, make_delivery: MakeDelivery
) -> None:
    leases.resize(2)
    first, second = make_delivery(), make_delivery()
    leases.fill(0, [first, second])
    for delivery in (first, second):
        leases.started(delivery.tag, 30)
    assert leases.take_hung(first.tag)
    assert leases.take_hung(first.tag) is None
    assert (len(leases), leases.all_hang, leases.is_worth_a_receive()) == (1, False, True)
    leases.take_hung(second.tag)
    assert (len(leases), leases.all_hang, leases.is_worth_a_receive()) == (0, True, False)
    assert leases.take(first.tag) is None
    assert (leases.all_hang, leases.is_worth_a_receive()) == (False, True)


def test_messages_of_one_job_that_hangs_take_one_process(leases: Leases, hold: Hold) -> None:
    leases.resize(2)
    tags = hold(3)
    for tag in tags:
        leases.started(tag, 30, Job("shared", takes=10))
        leases.take_hung(tag)
    assert not leases.all_hang


def test_who_waits_for_room_is_woken_once_a_task_that_hung_has_ended(
    leases: Leases, hold: Hold, reserver: Reserver
) -> None:
    leases.resize(1)
    (tag,) = hold(1)
    leases.started(tag, 30)
    leases.take_hung(tag)
    reserved = reserver.reserve()
    assert_waits(reserved)
    leases.take(tag)
    assert reserved.result(DEADLINE) > 0


# Handed back


def test_what_was_promised_to_a_process_or_runs_is_not_taken_back(
    leases: Leases, make_delivery: MakeDelivery
) -> None:
    waiting, promised, running = (make_delivery(tag=tag) for tag in "abc")
    leases.fill(0, [waiting, promised, running])
    assert leases.promise(promised.tag)
    leases.started(running.tag, 30)
    assert [lease.delivery for lease in leases.take_waiting()] == [waiting]
    assert not leases.promise(waiting.tag)
    assert [lease.delivery for lease in leases.take_all()] == [promised, running]


def test_a_message_is_kept_back_only_where_no_process_has_taken_it(
    leases: Leases, make_delivery: MakeDelivery
) -> None:
    waiting, promised, running = (make_delivery(tag=tag) for tag in "abc")
    leases.fill(0, [waiting, promised, running])
    leases.promise(promised.tag)
    leases.started(running.tag, 30)
    kept = [leases.keep_back(tag) for tag in ("a", "b", "c", "ended")]
    assert [lease and lease.delivery for lease in kept] == [waiting, None, None, None]
    assert not leases.promise(waiting.tag)
    assert leases.started(waiting.tag, 30) is None
    assert [lease.delivery for lease in leases.all()] == [promised, running]


@pytest.fixture
def threads_in_turn() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("threads_in_turn")
@pytest.mark.parametrize("take", [Leases.promise, lambda leases, tag: leases.started(tag, 30)])
def test_at_one_instant_a_message_is_either_taken_or_kept_back(
    leases: Leases, hold: Hold, take: Callable[[Leases, str], object]
) -> None:
    tags = hold(2_000)
    together = threading.Barrier(2)

    def go(each: Callable[[str], object]) -> list[bool]:
        together.wait(DEADLINE)
        return [bool(each(tag)) for tag in tags]

    with ThreadPoolExecutor() as executor:
        taken = executor.submit(go, lambda tag: take(leases, tag))
        kept = executor.submit(go, leases.keep_back)
    assert all(a != b for a, b in zip(taken.result(DEADLINE), kept.result(DEADLINE), strict=True))


def test_it_is_told_when_nothing_is_in_flight_and_no_receive_is_open(
    leases: Leases, make_delivery: MakeDelivery
) -> None:
    told: list[bool] = []
    leases.on_empty = lambda: told.append(leases.is_empty)
    leases.resize(2)
    slots = leases.try_reserve()
    assert not leases.is_empty
    leases.fill(slots, [make_delivery(tag="a"), make_delivery(tag="b")])
    leases.take("a")
    assert told == []
    leases.take("b")
    leases.fill(leases.try_reserve(), [])
    leases.fill(0, [make_delivery(tag="c")])
    leases.take_waiting()
    assert told == [True] * 3


class Jumping:
    """A clock that stands still, but for one moment while it is asked."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.asked = 0
        self.jumps_at = 0

    def __call__(self) -> float:
        self.asked += 1
        if self.asked == self.jumps_at:
            self.now += SPAN * 1.5
        return self.now


@pytest.mark.parametrize("jumps_at", range(1, 9))
def test_a_receiver_gets_slots_or_waits_whenever_the_pace_changes(
    make_delivery: MakeDelivery, jumps_at: int
) -> None:
    clock = Jumping()
    leases = Leases(VISIBILITY_TIMEOUT, clock=clock)
    leases.resize(4)

    def fill() -> list[str]:
        deliveries = [make_delivery() for _ in range(leases.try_reserve())]
        leases.fill(len(deliveries), deliveries)
        return [delivery.tag for delivery in deliveries]

    # Many end in a short time, so that many are held ahead.
    for _ in range(3):
        for _ in range(20):
            for tag in fill():
                leases.take(tag)
        clock.now += SPAN
    fill()
    clock.asked, clock.jumps_at = 0, jumps_at
    reserver = Reserver(leases)
    slots = reserver.reserve()
    try:
        # A receiver takes 0 for a stop.
        assert slots.result(PATIENCE) > 0
    except TimeoutError:
        pass  # It waits.
    finally:
        reserver.close()
