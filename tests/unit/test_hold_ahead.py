"""What is held ahead of the pool: no more than it starts within a second, and never too little.

A model of a worker and its queue drives the real Leases, Forecast and Heartbeat on a clock of its
own.
"""

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from queue import SimpleQueue
from threading import Event, Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqs_broker.limits import BATCH
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.sqs.heartbeat import Heartbeat
from sqs_broker.sqs.leases import AHEAD, MOST_AHEAD, Leases
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.receiver import delivery_of
from sqs_broker.testing import Clock, FakeSqs
from tests.unit.conftest import SENT, VISIBILITY_TIMEOUT

#: Deliveries after which SQS dead-letters a message.
MOST_DELIVERIES = 10

MANY = settings(derandomize=True, database=None, max_examples=200)


class Model:
    """One worker of some processes, and one queue. Nothing takes time but tasks."""

    def __init__(self, processes: int) -> None:
        self.clock = Clock()
        fake = FakeSqs(self.clock, shuffle=random.Random(1))
        url = fake.create_queue("jobs", visibility_timeout=VISIBILITY_TIMEOUT)
        self.put = partial(fake.put, url)
        self.queue = Queue(url, fake)
        self.leases = Leases(VISIBILITY_TIMEOUT, clock=self.clock)
        self.leases.resize(processes)
        self.heartbeat = Heartbeat(
            fake.options(),
            fake,
            self.leases,
            self._on_lost,
            lambda: None,
            self._on_waited,
            clock=self.clock,
        )
        self.processes = processes
        #: The seconds that each task takes, by its message.
        self.seconds: list[float] = []
        self.deliveries: list[int] = []
        #: In the order of the pool's own queue.
        self.waiting: deque[str] = deque()
        self.running: dict[str, float] = {}
        self.delivery_of: dict[str, Delivery] = {}
        self.done: list[int] = []
        self.lost: list[int] = []
        self.handed_back: list[int] = []
        self.receives = 0
        self.most_waiting = 0

    def send(self, *seconds: float) -> None:
        for each in seconds:
            self.put(str(len(self.seconds)))
            self.seconds.append(each)
            self.deliveries.append(0)

    def turn(self) -> None:
        """All that can happen at this instant."""
        for tag in [tag for tag, end in self.running.items() if end <= self.clock()]:
            del self.running[tag]
            if lease := self.leases.take(tag):
                self.queue.delete([lease.delivery.receipt_handle])
                self.done.append(self._number(lease))
        self._start()
        while self._receive():
            self._start()
        self.most_waiting = max(self.most_waiting, len(self.leases) - len(self.running))

    def run(self, step: float, until: Callable[[], bool]) -> None:
        """Let time pass until this holds, in steps of so many seconds, and the heartbeat beat."""
        self.turn()
        while not until():
            self.clock.advance(step)
            self.heartbeat.beat()
            self.turn()

    def _receive(self) -> bool:
        """Whether something came."""
        if not (slots := self.leases.try_reserve()):
            return False
        came = [delivery_of(m, "jobs", self.clock()) for m in self.queue.receive(slots, 0)]
        self.receives += bool(came)
        for delivery in came:
            self.deliveries[int(delivery.body)] = delivery.count
            self.delivery_of[delivery.tag] = delivery
            self.waiting.append(delivery.tag)
        self.leases.fill(slots, came)
        return bool(came)

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.processes:
            tag = self.waiting.popleft()
            if self.leases.promise(tag):
                self.leases.started(tag, 43_000, Job(tag))
                number = int(self.delivery_of[tag].body)
                self.running[tag] = self.clock() + self.seconds[number]

    def _on_waited(self, lease: Lease) -> None:
        if self.leases.keep_back(lease.delivery.tag):
            self.handed_back.append(self._number(lease))
            assert self.queue.change_visibility([(lease.delivery.receipt_handle, 0)]) == [None]

    def _on_lost(self, lease: Lease, why: str) -> None:
        self.leases.take(lease.delivery.tag)
        self.lost.append(self._number(lease))

    @staticmethod
    def _number(lease: Lease) -> int:
        return int(lease.delivery.body)


@pytest.fixture
def make_model() -> Callable[[int], Model]:
    random.seed(1)
    return Model


MakeModel = Callable[[int], Model]


def all_done(model: Model) -> Callable[[], bool]:
    return lambda: len(model.done) == len(model.seconds)


# Long tasks


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("seconds", [30, 120, 300, 600, 1_800])
def test_of_long_tasks_each_message_is_delivered_once_and_none_waits(
    make_model: MakeModel, processes: int, seconds: float
) -> None:
    model = make_model(processes)
    model.send(*[seconds] * 60)
    model.run(10, all_done(model))
    assert model.deliveries == [1] * 60
    assert model.most_waiting == 0


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("seconds", [30, 120, 300, 600, 1_800])
def test_long_tasks_after_short_ones_are_never_near_the_last_delivery_that_sqs_allows(
    make_model: MakeModel, processes: int, seconds: float
) -> None:
    # When they come, the worker takes them for short ones.
    model = make_model(processes)
    model.send(*[0.01] * 40)
    model.run(0.01, all_done(model))
    model.send(*[seconds] * 60)
    model.run(10, all_done(model))
    assert max(model.deliveries) <= 3 < MOST_DELIVERIES
    assert model.lost == []


@pytest.mark.parametrize("processes", [1, 3])
def test_long_tasks_among_short_ones_lose_no_lease_and_no_message_is_handed_out_ten_times(
    make_model: MakeModel, processes: int
) -> None:
    model = make_model(processes)
    times = [0.01] * 200 + [1_800.0] * 6 + [120.0] * 20
    random.shuffle(times)
    model.send(*times)
    model.run(5, all_done(model))
    assert max(model.deliveries) < MOST_DELIVERIES
    assert model.lost == []
    assert sorted(model.done) == list(range(len(times)))


def test_what_waits_behind_long_tasks_is_handed_back_before_its_lease_is_over(
    make_model: MakeModel,
) -> None:
    model = make_model(1)
    model.send(*[0.01] * 40)
    model.run(0.01, all_done(model))
    model.send(*[1_800.0] * 10)
    model.turn()
    held = len(model.leases)
    assert held > 1
    model.run(10, lambda: bool(model.handed_back))
    assert model.clock() <= 1_000 + 40 + 900
    model.run(10, lambda: model.clock() > 1_000 + 1_000)
    assert (len(model.handed_back), len(model.leases), model.lost) == (held - 1, 1, [])


# Short tasks


@pytest.mark.parametrize(("processes", "seconds"), [(1, 0.01), (2, 0.01), (8, 0.05), (4, 0.1)])
def test_short_tasks_are_received_in_full_batches_once_one_has_run(
    make_model: MakeModel, processes: int, seconds: float
) -> None:
    model = make_model(processes)
    model.send(*[seconds] * 1_000)
    model.run(seconds, all_done(model))
    assert model.receives <= 1_000 / BATCH * 1.05 + 3
    assert model.most_waiting > BATCH


@pytest.mark.parametrize("seconds", [0.125, 0.25, 0.5, 0.75, 1.5, 5])
@pytest.mark.parametrize("processes", [1, 2, 8])
def test_no_message_waits_for_much_longer_than_a_second(
    make_model: MakeModel, processes: int, seconds: float
) -> None:
    model = make_model(processes)
    model.send(*[seconds] * 100)
    model.run(seconds / 4, all_done(model))
    assert model.most_waiting <= max(processes / seconds, 0 if seconds > 1 else 1)
    # No process is without work while there is some: each receive takes no time here.
    assert model.clock() - 1_000 <= (100 / processes + 1) * seconds


# The multiplier


@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("multiplier", [1, 2, 4])
def test_no_more_is_held_than_the_multiplier_allows_however_short_the_tasks_are(
    make_model: MakeModel, processes: int, multiplier: int
) -> None:
    model = make_model(processes)
    model.leases.limit(multiplier)
    model.send(*[0.05] * 200)
    model.run(0.01, all_done(model))
    assert model.most_waiting == min(processes * (multiplier - 1), AHEAD)


def test_a_multiplier_makes_no_worker_hold_long_tasks(make_model: MakeModel) -> None:
    model = make_model(2)
    model.leases.limit(10)
    model.send(*[30] * 60)
    model.run(10, all_done(model))
    assert model.most_waiting == 0


# The window


def leases_of(processes: int, *, queues: int = 1) -> tuple[Leases, list[float]]:
    """Leases, and the clock that they look at."""
    now = [1_000.0]
    leases = Leases(VISIBILITY_TIMEOUT, clock=lambda: now[0])
    leases.resize(processes)
    leases.share_among(queues)
    return leases, now


def deliveries(*tags: str) -> list[Delivery]:
    return [Delivery(t, "jobs", t, t, "{}", {}, 1, SENT, 1_000.0) for t in tags]


def hold(leases: Leases, slots: int, *tags: str) -> None:
    leases.fill(slots, deliveries(*tags))


def run_one(leases: Leases, now: list[float], seconds: float) -> None:
    hold(leases, 0, "one")
    leases.started("one", None)
    now[0] += seconds
    leases.take("one")


def reserve_all(leases: Leases) -> list[int]:
    return list(iter(leases.try_reserve, 0))


@pytest.mark.parametrize("is_measured", [True, False])
@pytest.mark.parametrize(("processes", "slots"), [(1, [1]), (4, [4]), (25, [10, 10, 5])])
def test_of_long_tasks_and_of_unknown_ones_no_more_is_asked_for_than_there_are_free_processes(
    processes: int, slots: list[int], is_measured: bool
) -> None:
    leases, now = leases_of(processes)
    if is_measured:
        run_one(leases, now, 30)
    assert reserve_all(leases) == slots


def test_each_process_that_is_free_again_is_fed_at_once() -> None:
    leases, now = leases_of(3)
    run_one(leases, now, 30)
    assert reserve_all(leases) == [3]
    hold(leases, 3, "a", "b", "c")
    for tag in "abc":
        assert reserve_all(leases) == []
        leases.started(tag, None)
    now[0] += 30
    assert reserve_all(leases) == []
    leases.take("b")
    assert reserve_all(leases) == [1]


def test_each_of_several_queues_has_a_poll_with_a_slot_while_a_process_is_free() -> None:
    leases, now = leases_of(1, queues=3)
    run_one(leases, now, 30)
    assert reserve_all(leases) == [1, 1, 1]
    # Two of them are empty, and their polls stay open.
    hold(leases, 1, "a")
    leases.started("a", None)
    assert reserve_all(leases) == []
    now[0] += 30
    leases.take("a")
    assert reserve_all(leases) == [1]


def test_polls_that_were_open_before_the_tasks_became_long_keep_no_process_from_work() -> None:
    leases, now = leases_of(4, queues=2)
    run_one(leases, now, 0.01)
    # The second one is of an empty queue.
    assert [leases.try_reserve() for _ in range(2)] == [BATCH, BATCH]
    hold(leases, BATCH, *"abcd")
    for tag in "abcd":
        leases.started(tag, None)
    now[0] += 30
    assert reserve_all(leases) == []
    leases.take("a")
    assert leases.try_reserve() >= 1


def test_a_process_that_is_free_gets_a_whole_job_where_messages_share_them() -> None:
    # Although more run in the other process than there are processes.
    leases, now = leases_of(2)
    tags = [f"shared-{number}" for number in range(BATCH)]
    hold(leases, 0, *tags)
    for tag in tags:
        leases.started(tag, None, Job("one job", takes=BATCH))
    now[0] += 5
    assert reserve_all(leases) == [BATCH]


def test_messages_of_bad_bodies_do_not_wait_for_a_task_to_be_measured() -> None:
    leases, now = leases_of(1)
    for number in range(2 * AHEAD):
        hold(leases, 0, str(number))
        leases.take(str(number))
    now[0] += 0.1
    assert reserve_all(leases)[0] == BATCH


# A busy queue beside others


def flow(leases: Leases, now: list[float], messages: int = 400) -> None:
    """Short tasks have run for a while, so the window is at its largest."""
    for number in range(messages):
        hold(leases, 0, tag := f"before-{number}")
        leases.started(tag, None)
        now[0] += 0.002
        leases.take(tag)


@pytest.mark.parametrize("queues", [2, 10, 50])
def test_a_busy_queue_has_the_whole_window_although_the_others_poll(queues: int) -> None:
    alone, now_alone = leases_of(2)
    flow(alone, now_alone)
    whole = sum(reserve_all(alone))

    leases, now = leases_of(2, queues=queues)
    flow(leases, now)
    for _ in range(queues - 1):
        assert leases.try_reserve() >= 1
    slots = list(iter(lambda: leases.try_reserve(is_busy=True), 0))

    assert slots[0] == BATCH
    assert sum(slots) >= whole


@pytest.mark.parametrize(("multiplier", "most"), [(0, 2 + MOST_AHEAD), (1, 2), (3, 6)])
def test_a_queue_beside_a_busy_one_can_always_look_for_a_message(
    multiplier: int, most: int
) -> None:
    leases, now = leases_of(2, queues=3)
    leases.limit(multiplier)
    flow(leases, now)
    slots = list(iter(lambda: leases.try_reserve(is_busy=True), 0))
    for number, some in enumerate(slots):
        leases.fill(some, deliveries(*(f"{number}-{n}" for n in range(some))), is_busy=True)

    assert len(leases) <= most
    # One message for each further queue.
    assert [leases.try_reserve() for _ in range(3)] == [1, 1, 0]


def test_beside_long_tasks_nothing_is_received_that_another_worker_could_run() -> None:
    leases, now = leases_of(2, queues=3)
    run_one(leases, now, 30)
    leases.fill(leases.try_reserve(is_busy=True), deliveries("a", "b"), is_busy=True)
    for tag in "ab":
        leases.started(tag, None)
    now[0] += 30

    assert leases.try_reserve(is_busy=True) == 0
    assert leases.try_reserve() == 0


def test_the_receiver_of_a_busy_queue_is_woken_also_if_others_wait_before_it() -> None:
    leases, now = leases_of(2, queues=2)
    flow(leases, now)
    leases.pause("test")
    got: SimpleQueue[tuple[bool, int]] = SimpleQueue()
    stopping = Event()
    threads = [
        Thread(target=lambda busy=busy: got.put((busy, leases.reserve(stopping, is_busy=busy))))
        for busy in (False, True)
    ]
    for thread in threads:
        thread.start()
    leases.resume("test")
    found = dict(got.get(timeout=30) for _ in threads)
    for thread in threads:
        thread.join(30)

    assert found[True] == BATCH
    assert found[False] >= 1


@MANY
@given(
    processes=st.integers(1, 20),
    queues=st.integers(2, 20),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["poll", "busy", "come", "nothing", "start", "end"]),
            st.integers(0, 10**6),
            st.floats(0, 2),
        ),
        max_size=100,
    ),
)
def test_a_busy_queue_holds_no_more_than_it_would_alone_and_its_slots_come_back(
    processes: int, queues: int, steps: list[tuple[str, int, float]]
) -> None:
    leases, now = leases_of(processes, queues=queues)
    polls: list[tuple[int, bool]] = []
    running: list[str] = []
    waiting: list[str] = []
    names = map(str, count())
    limit = processes + max(AHEAD, queues, MOST_AHEAD)
    for what, number, seconds in steps:
        now[0] += seconds
        if what in ("poll", "busy") and (slots := leases.try_reserve(is_busy=what == "busy")):
            polls.append((slots, what == "busy"))
            busy = sum(slots for slots, is_busy in polls if is_busy)
            assert what == "poll" or len(leases) + busy <= limit
        elif what in ("come", "nothing") and polls:
            slots, is_busy = polls.pop(number % len(polls))
            came = [next(names) for _ in range(slots if what == "come" else 0)]
            leases.fill(slots, deliveries(*came), is_busy=is_busy)
            waiting += came
        elif what == "start" and waiting and len(running) < processes:
            running.append(tag := waiting.pop(0))
            assert leases.started(tag, None)
        elif what == "end" and running:
            assert leases.take(running.pop(number % len(running)))
        assert len(leases) <= 2 * limit + queues
    for slots, is_busy in polls:
        leases.fill(slots, [], is_busy=is_busy)
    leases.take_all()
    assert leases.is_empty
    # As if nothing had been.
    assert leases.try_reserve(is_busy=True) >= 1


@MANY
@given(
    processes=st.integers(1, 30),
    queues=st.integers(1, 30),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["poll", "come", "nothing", "start", "end", "hand back", "pass"]),
            st.integers(0, 10**6),
            st.floats(0, 100),
        ),
        max_size=100,
    ),
)
def test_whatever_runs_the_window_of_before_is_kept_and_an_idle_pool_may_ask(
    processes: int, queues: int, steps: list[tuple[str, int, float]]
) -> None:
    leases, now = leases_of(processes, queues=queues)
    polls: list[int] = []
    names = iter(range(10**9))
    waiting: list[str] = []
    running: list[str] = []
    for what, number, seconds in steps:
        # A queue has a receiver, and only in a full queue more.
        if what == "poll" and len(polls) < queues and (slots := leases.try_reserve()):
            polls.append(slots)
        elif what in ("come", "nothing") and polls:
            slots = polls.pop(number % len(polls))
            came = [str(next(names)) for _ in range(slots if what == "come" else 0)]
            hold(leases, slots, *came)
            waiting += came
        elif what == "start" and waiting and len(running) < processes:
            tag = waiting.pop(0)
            assert leases.started(tag, None)
            running.append(tag)
        elif what == "end" and running:
            assert leases.take(running.pop(number % len(running)))
        elif what == "hand back" and waiting:
            assert leases.keep_back(waiting.pop(number % len(waiting)))
        elif what == "pass":
            now[0] += seconds
        held = len(leases) + sum(polls)
        # A queue beside a busy one may always look for one message.
        assert held <= processes + max(AHEAD, queues, MOST_AHEAD) + queues * (queues > 1)
        if not waiting and len(running) < processes and len(polls) < queues:
            # Whatever the polls of other queues have reserved.
            assert leases.is_worth_a_receive()
