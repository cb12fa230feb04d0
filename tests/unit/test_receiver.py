"""Receiver: whatever goes wrong with the asking, it asks again; a full queue gets help."""

import logging
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from devstack.waiting import wait_until
from sqs_broker.errors import NoThread
from sqs_broker.options import Options
from sqs_broker.rules.lease import Delivery
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.leases import AHEAD, Leases
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.receiver import QUICK, Receiver
from sqs_broker.testing import Call, Clock, FakeSqs
from tests.unit.conftest import VISIBILITY_TIMEOUT, Machine, MakeDelivery, after_a_short_task

#: Seconds that nothing here comes near to.
DEADLINE = 5

#: Seconds after which what has not happened does not happen.
PATIENCE = 0.05

RECEIVE, CHANGE = "ReceiveMessage", "ChangeMessageVisibilityBatch"

#: Seconds of a long poll.
POLL = 20


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    """SQS with one queue, whose long polls stay open until something comes."""
    made = FakeSqs(clock, holds_polls=True)
    made.create_queue("jobs", visibility_timeout=VISIBILITY_TIMEOUT)
    return made


@pytest.fixture
def url(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").url


@pytest.fixture
def options(fake: FakeSqs) -> Options:
    return fake.options(receive_pause_max=0.002, wait_time_seconds=POLL)


def wide() -> Leases:
    """Leases with room for all that a test holds."""
    leases = after_a_short_task(Leases(VISIBILITY_TIMEOUT))
    leases.resize(20)
    return leases


Come = queue.SimpleQueue[list[Delivery]]
Make = Callable[..., Receiver]
Start = Callable[..., Come]

#: The message and the reason of each lease that was over when it came.
Missed = list[tuple[str, str]]


@pytest.fixture
def missed() -> Missed:
    return []


@pytest.fixture
def make(fake: FakeSqs, options: Options, clock: Clock, missed: Missed) -> Iterator[Make]:
    """Makes receivers, which are stopped after the test."""
    made: list[Receiver] = []

    def note(delivery: Delivery, why: str) -> None:
        missed.append((delivery.message_id, why))

    def make_one(
        leases: Leases | None = None,
        on_received: Callable[[list[Delivery]], object] = lambda _: None,
        *,
        changes: dict[str, Any] | None = None,
        **how: Any,
    ) -> Receiver:
        its = replace(options, **changes or {})
        leases = wide() if leases is None else leases
        quick = {"first_pause": 0.001}
        receiver = Receiver(
            "jobs", its, fake, leases, on_received, note, clock=clock, **quick | how
        )  # type: ignore[arg-type]
        made.append(receiver)
        return receiver

    yield make_one
    for receiver in made:
        receiver.stop()
    fake.end_polls()
    fake.release()
    for receiver in made:
        receiver.join(DEADLINE)


@pytest.fixture
def start(make: Make) -> Start:
    """Starts a receiver. Gives the queue of what it hands over."""

    def start_one(leases: Leases | None = None, **how: Any) -> Come:
        handed_over: Come = queue.SimpleQueue()
        make(leases, handed_over.put, **how).start()
        return handed_over

    return start_one


def is_polling(fake: FakeSqs) -> None:
    """Wait until a poll is open: what was done before is over."""
    wait_until(lambda: fake.open_polls, DEADLINE, "an open poll")


def fail_with(fake: FakeSqs, *errors: Exception | None) -> None:
    """Let the next receives fail with these; None works."""
    left = list(errors)

    def fail(call: Call) -> None:
        if call.action == RECEIVE and left and (error := left.pop(0)):
            raise error

    fake.on_call = fail


def test_it_asks_as_sqs_wants_to_be_asked(start: Start, fake: FakeSqs, url: str) -> None:
    start()
    is_polling(fake)
    assert fake.asked(RECEIVE) == [
        {
            "QueueUrl": url,
            "MaxNumberOfMessages": 10,
            "WaitTimeSeconds": POLL,
            "MessageAttributeNames": ["All"],
            "MessageSystemAttributeNames": [
                "ApproximateReceiveCount",
                "SentTimestamp",
                "ApproximateFirstReceiveTimestamp",
                "MessageGroupId",
                "AWSTraceHeader",
            ],
        }
    ]


def poll_beside_others(make: Make, fake: FakeSqs, url: str, messages: int) -> list[tuple[int, int]]:
    """How a receiver beside 49 others polls its queue: the slots and the seconds of each call,
    until a call returns nothing."""
    leases = wide()
    leases.share_among(50)
    for _ in range(messages):
        fake.put(url, "{}")

    def forget(received: list[Delivery]) -> None:
        for delivery in received:
            leases.take(delivery.tag)

    make(leases, forget, changes={"max_receivers": 1}).start()
    is_polling(fake)
    asked = fake.asked(RECEIVE)
    return [(call["MaxNumberOfMessages"], call["WaitTimeSeconds"]) for call in asked]


def test_a_busy_queue_among_many_is_polled_for_full_batches(
    make: Make, fake: FakeSqs, url: str
) -> None:
    assert poll_beside_others(make, fake, url, 25) == [
        (1, POLL),
        (10, 1),
        (10, 1),
        (10, 1),
        (1, POLL),
    ]


def test_a_message_now_and_then_makes_no_queue_busy(make: Make, fake: FakeSqs, url: str) -> None:
    fake.slow(RECEIVE, after=QUICK, times=2)
    assert poll_beside_others(make, fake, url, 2) == [(1, POLL)] * 3


def test_an_error_of_the_back_off_itself_ends_no_thread(
    start: Start, fake: FakeSqs, url: str
) -> None:
    def fail(record: logging.LogRecord) -> bool:
        raise MemoryError

    fake.put(url, "{}")
    fake.fail(RECEIVE, times=2)
    log = logging.getLogger("sqs_broker.sqs.receiver")
    log.addFilter(fail)
    try:
        assert start().get(timeout=DEADLINE)
    finally:
        log.removeFilter(fail)


def test_what_comes_is_handed_over_in_one_call_a_batch(
    start: Start, fake: FakeSqs, url: str
) -> None:
    sent = [fake.put(url, "{}") for _ in range(2)]
    handed_over = start()
    assert [delivery.message_id for delivery in handed_over.get(timeout=DEADLINE)] == sent
    sent = [fake.put(url, "{}")]
    assert [delivery.message_id for delivery in handed_over.get(timeout=DEADLINE)] == sent


def test_a_delivery_holds_what_sqs_says_of_it(start: Start, fake: FakeSqs, url: str) -> None:
    attributes = {
        "b": {"DataType": "Binary", "BinaryValue": b"\x00", "StringListValues": []},
        "s": {"DataType": "String", "StringValue": "text", "BinaryListValues": []},
    }
    fake.put(url, "text", attributes=attributes, receives=3)
    (delivery,) = start().get(timeout=DEADLINE)
    assert delivery.queue == "jobs"
    assert delivery.receipt_handle == "receipt-1"
    assert delivery.body == "text"
    assert delivery.count == 4
    assert delivery.enqueued_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    # SQS adds empty lists that SendMessage refuses.
    assert delivery.attributes == {
        "b": {"DataType": "Binary", "BinaryValue": b"\x00"},
        "s": {"DataType": "String", "StringValue": "text"},
    }


def test_every_delivery_has_a_tag_of_its_own(start: Start, fake: FakeSqs, url: str) -> None:
    one, other = start(), start()
    tags: set[str] = set()
    wait_until(lambda: fake.open_polls == 2, DEADLINE, "two open polls")
    for _ in range(3):
        fake.put(url, "{}")
    while len(tags) < 3:
        for come in (one, other):
            while not come.empty():
                tags |= {delivery.tag for delivery in come.get()}


def test_what_is_handed_over_is_held_already(start: Start, fake: FakeSqs, url: str) -> None:
    leases = wide()
    fake.put(url, "{}")
    (delivery,) = start(leases).get(timeout=DEADLINE)
    assert leases.holds(delivery.tag)


FAULTS = [
    SqsError("AccessDenied"),
    SqsError("AWS.SimpleQueueService.NonExistentQueue"),
    SqsError("InternalError"),
    SqsError("Unknown"),
    Unreached("EndpointConnectionError"),
    Unreached("ReadTimeoutError"),
    Unreached("NoCredentialsError"),
    ConnectionResetError(),
    ssl.SSLError("bad record"),
    # An answer that is not SQS's.
    KeyError("Messages"),
    ValueError(),
    RecursionError(),
    MemoryError(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_it_outlives_every_fault_of_the_asking(
    start: Start, fake: FakeSqs, url: str, fault: Exception
) -> None:
    sent = fake.put(url, "{}")
    fake.fail(RECEIVE, error=fault, times=2)
    (delivery,) = start().get(timeout=DEADLINE)
    assert delivery.message_id == sent


def test_it_outlives_one_fault_after_the_other(start: Start, fake: FakeSqs, url: str) -> None:
    fake.put(url, "{}")
    fail_with(fake, *FAULTS)
    assert start().get(timeout=DEADLINE)
    assert fake.counts[RECEIVE] >= len(FAULTS) + 1


def test_it_outlives_a_fault_of_who_takes_what_came_and_says_so(
    make: Make, fake: FakeSqs, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def take(_: list[Delivery]) -> None:
        raise RuntimeError

    leases = wide()
    make(leases, take).start()
    for number in (1, 2):
        is_polling(fake)
        fake.put(url, "{}")
        wait_until(lambda n=number: len(caplog.records) == n, DEADLINE, "the log line")
    is_polling(fake)
    assert [vars(record)["event"] for record in caplog.records] == ["receive.broken"] * 2
    # Else their leases would be extended, and SQS would not deliver them again.
    assert len(leases) == 0


def test_a_fault_gives_the_slots_back(start: Start, fake: FakeSqs) -> None:
    # Without a window there are ten slots: one that is not given back would end the asking.
    fake.fail(RECEIVE, times=20)
    start(Leases(VISIBILITY_TIMEOUT))
    is_polling(fake)
    assert [call["MaxNumberOfMessages"] for call in fake.asked(RECEIVE)] == [10] * 21


def test_each_pause_is_up_to_twice_as_long_within_its_maximum(
    start: Start, fake: FakeSqs, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    monkeypatch.setattr("sqs_broker.rules.backoff.RANDOM.uniform", draw)
    fake.put(url, "{}")
    fail_with(fake, *[SqsError("InternalError")] * 5, None, SqsError("InternalError"))
    start(first_pause=1, changes={"receive_pause_max": 6})
    is_polling(fake)
    # A receive that worked starts it over.
    assert [high for _, high in drawn] == [1, 2, 4, 6, 6, 1]
    assert all(low == high / 2 for low, high in drawn)


def test_a_kind_of_fault_is_logged_once_a_minute(
    start: Start, fake: FakeSqs, caplog: pytest.LogCaptureFixture
) -> None:
    away, denied = Unreached("EndpointConnectionError"), SqsError("AccessDenied")
    fail_with(fake, away, away, denied, away, denied, denied)
    fail = fake.on_call

    def take_time(call: Call) -> None:
        fake.pause(20)
        fail(call)

    fake.on_call = take_time
    with caplog.at_level(logging.WARNING, "sqs_broker.sqs.receiver"):
        start()
        is_polling(fake)
    # At 20 s, 40 s (quiet), 60 s, 80 s, 100 s (quiet), and 120 s.
    kinds = [vars(record)["error"] for record in caplog.records]
    assert kinds == ["EndpointConnectionError", "AccessDenied"] * 2
    assert {vars(record)["event"] for record in caplog.records} == {"receive.failed"}


def test_recovery_is_logged_once(
    start: Start, fake: FakeSqs, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fail(RECEIVE, times=2)
    with caplog.at_level(logging.INFO, "sqs_broker.sqs.receiver"):
        handed_over = start()
        for _ in range(3):
            fake.put(url, "{}")
            handed_over.get(timeout=DEADLINE)
    events = [vars(record)["event"] for record in caplog.records]
    assert events == ["receive.failed", "receive.recovered"]


def test_a_fault_is_logged_without_its_text(
    start: Start, fake: FakeSqs, caplog: pytest.LogCaptureFixture
) -> None:
    fail_with(fake, KeyError("Kim-1f9c"), ValueError("Kim-1f9c"))
    with caplog.at_level(logging.INFO, "sqs_broker.sqs.receiver"):
        start()
        is_polling(fake)
    assert len(caplog.records) == 2
    assert "Kim-1f9c" not in caplog.text


# How old a lease is


@dataclass
class Late:
    """A receiver whose first call brings messages after so many seconds."""

    fake: FakeSqs
    leases: Leases
    handed_over: Come
    asked_at: float

    def ids(self) -> list[str]:
        """Of what was handed over, once the next poll is open."""
        is_polling(self.fake)
        if self.handed_over.empty():
            return []
        return [delivery.message_id for delivery in self.handed_over.get_nowait()]

    def ends(self) -> list[float]:
        """When each lease ends, in seconds since the call."""
        return [lease.expires_at - self.asked_at for lease in self.leases.all()]


ReceiveLate = Callable[..., Late]


@pytest.fixture
def receive_late(start: Start, fake: FakeSqs, url: str, clock: Clock) -> ReceiveLate:
    """SQS hands messages out at the end of a call of so many seconds, or at its start."""

    def start_late(
        seconds: float, *, at_its_start: bool = False, extension_takes: float = 0, came: int = 1
    ) -> Late:
        for _ in range(came):
            fake.put(url, "{}")
        when = {"after" if at_its_start else "before": seconds}
        fake.slow(RECEIVE, **when)
        fake.slow(CHANGE, after=extension_takes)
        leases, asked_at = wide(), clock()
        return Late(fake, leases, start(leases), asked_at)

    return start_late


def test_a_delivery_knows_when_it_was_asked_for_and_when_it_came(
    receive_late: ReceiveLate,
) -> None:
    late = receive_late(7)
    (delivery,) = late.handed_over.get(timeout=DEADLINE)
    assert (delivery.asked_at, delivery.received_at) == (late.asked_at, late.asked_at + 7)


@pytest.mark.parametrize("seconds", [0, 7, 20, 20.875])
def test_with_the_default_settings_no_answer_within_its_poll_costs_a_further_call(
    receive_late: ReceiveLate, seconds: float
) -> None:
    assert (Options("", {}).wait_time_seconds, VISIBILITY_TIMEOUT) == (20, 60)
    late = receive_late(seconds)
    assert late.ids() == ["sqs-1"]
    assert late.fake.asked(CHANGE) == []
    assert late.ends() == [VISIBILITY_TIMEOUT]


@pytest.mark.parametrize("seconds", [22, 59, 61, 1_000])
def test_a_lease_of_an_unknown_age_is_extended_before_its_message_is_handed_over(
    receive_late: ReceiveLate, url: str, seconds: float
) -> None:
    # A long poll, an answer that drips, a process that was stopped: the message may have been
    # handed out at any time in it.
    late = receive_late(seconds, extension_takes=2, came=10)
    assert late.ids() == [f"sqs-{number}" for number in range(1, 11)]
    (call,) = late.fake.asked(CHANGE)
    assert call["QueueUrl"] == url
    assert [(e["ReceiptHandle"], e["VisibilityTimeout"]) for e in call["Entries"]] == [
        (f"receipt-{number}", VISIBILITY_TIMEOUT) for number in range(1, 11)
    ]
    # From when the extension was sent, and not from its answer.
    assert late.ends() == [seconds + VISIBILITY_TIMEOUT] * 10


@pytest.mark.parametrize(
    "code",
    ["MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", "ReceiptHandleIsInvalid"],
)
def test_a_message_whose_lease_sqs_says_is_gone_is_not_handed_over(
    receive_late: ReceiveLate, fake: FakeSqs, missed: Missed, code: str
) -> None:
    fake.fail(CHANGE, code, entries=["receipt-2"])
    late = receive_late(70, came=3)
    assert late.ids() == ["sqs-1", "sqs-3"]
    assert missed == [("sqs-2", "SQS refused its receipt handle")]
    assert late.ends() == [70 + VISIBILITY_TIMEOUT] * 2


@pytest.mark.parametrize(
    ("error", "entries"),
    [
        (SqsError("InternalError"), [0]),
        (SqsError("AccessDenied"), None),
        (Unreached("ReadTimeoutError"), None),
        (RuntimeError("Kim-1f9c"), None),
    ],
    ids=repr,
)
@pytest.mark.parametrize(("seconds", "is_over"), [(40, False), (59.875, False), (60, True)])
def test_where_sqs_cannot_say_a_lease_counts_from_the_receive_call(
    receive_late: ReceiveLate,
    fake: FakeSqs,
    missed: Missed,
    error: Exception,
    entries: list[int] | None,
    seconds: float,
    is_over: bool,
) -> None:
    fake.fail(CHANGE, error=error, entries=entries)
    late = receive_late(seconds)
    assert late.ids() == ([] if is_over else ["sqs-1"])
    assert late.ends() == ([] if is_over else [VISIBILITY_TIMEOUT])
    assert missed == ([("sqs-1", "its time ran out")] if is_over else [])
    assert "Kim-1f9c" not in str(missed)


def test_an_extension_whose_answer_comes_after_its_own_time_is_no_lease(
    receive_late: ReceiveLate, missed: Missed
) -> None:
    late = receive_late(30, extension_takes=VISIBILITY_TIMEOUT)
    wait_until(lambda: missed, DEADLINE, "the loss")
    assert missed == [("sqs-1", "its time ran out")]
    assert [delivery.count for delivery in late.handed_over.get(timeout=DEADLINE)] == [2]


def test_what_is_lost_on_arrival_gives_its_slot_back(
    receive_late: ReceiveLate, fake: FakeSqs
) -> None:
    fake.fail(CHANGE, "MessageNotInflight", entries=range(10))
    late = receive_late(70, came=10)
    assert late.ids() == []
    first, second, *_ = (call["MaxNumberOfMessages"] for call in fake.asked(RECEIVE))
    assert first == second
    assert len(late.leases) == 0


def test_a_lease_that_was_over_before_its_message_came_is_refused_by_sqs_and_lost(
    receive_late: ReceiveLate, missed: Missed
) -> None:
    late = receive_late(VISIBILITY_TIMEOUT + 10, at_its_start=True)
    # SQS delivers it again.
    (again,) = late.handed_over.get(timeout=DEADLINE)
    assert (again.message_id, again.count) == ("sqs-1", 2)
    assert missed == [("sqs-1", "SQS refused its receipt handle")]


# Help


class FullQueue:
    """A queue with more than a test can take. Until `go_on`, helpers are held in their first call,
    and the first thread (`holds_the_first`) once three ask at the same time, so that they are
    seen."""

    def __init__(self, fake: FakeSqs, url: str) -> None:
        self._fake, self._url = fake, url
        for _ in range(3_000):
            fake.put(url, "{}")
        self.holds_the_first = True
        self.go_on = threading.Event()
        #: The lengths of the polls of each thread.
        self.waits: dict[str, set[int]] = {}
        fake.on_call = self._hold

    def _hold(self, call: Call) -> None:
        name = threading.current_thread().name
        self.waits.setdefault(name, set()).add(call.parameters["WaitTimeSeconds"])
        if name != "sqs-receiver-jobs" or (len(self.waits) >= 3 and self.holds_the_first):
            self.go_on.wait(DEADLINE)

    @property
    def batches(self) -> int:
        return self._fake.counts[RECEIVE]

    def is_asked_by_three(self) -> None:
        """Wait until three ask at the same time."""
        wait_until(lambda: len(self.waits) >= 3, DEADLINE, "three threads that ask")

    def becomes_empty(self) -> None:
        self._fake.on_call = lambda call: None
        Queue(self._url, self._fake).purge()
        self.go_on.set()


PollFull = Callable[..., tuple[Receiver, FullQueue]]


@pytest.fixture
def poll_full(make: Make, fake: FakeSqs, url: str) -> Iterator[PollFull]:
    """Starts a receiver on a full queue. What it hands over is forgotten at once."""
    full: list[FullQueue] = []

    def start(
        leases: Leases | None = None, *, holds_the_first: bool = True, **how: Any
    ) -> tuple[Receiver, FullQueue]:
        full.append(FullQueue(fake, url))
        full[-1].holds_the_first = holds_the_first
        if leases is None:
            leases = after_a_short_task(Leases(VISIBILITY_TIMEOUT))
            leases.resize(1_000_000)
        receiver = make(leases, changes={"max_receivers": 3}, **how)
        receiver.start()
        return receiver, full[-1]

    yield start
    for each in full:
        each.go_on.set()


def receivers() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if name.startswith("sqs-receiver"))


def test_while_full_batches_keep_coming_more_threads_ask_up_to_the_most(
    poll_full: PollFull,
) -> None:
    _, full = poll_full(holds_the_first=False)
    full.is_asked_by_three()
    # The first thread goes on, and could ask for help after each of its batches.
    wait_until(lambda: full.batches > 100, DEADLINE, "a hundred batches")
    assert len(receivers()) == len(full.waits) == 3


def test_help_waits_for_a_short_time_only(poll_full: PollFull) -> None:
    _, full = poll_full()
    full.is_asked_by_three()
    assert [full.waits[name] for name in receivers()] == [{POLL}, {1}, {1}]


def test_help_that_finds_no_room_waits_for_some(poll_full: PollFull) -> None:
    # Else a thread would be made for each batch.
    leases = wide()
    leases.resize(40)
    _, full = poll_full(leases)
    full.is_asked_by_three()
    helpers = {thread for thread in threading.enumerate() if "jobs-" in thread.name}
    full.go_on.set()
    wait_until(lambda: len(leases) == 40 + AHEAD, DEADLINE, "a full window")
    with pytest.raises(TimeoutError):
        wait_until(lambda: len(receivers()) < 3, PATIENCE, "the end of help")
    batches = full.batches
    for lease in leases.all():
        leases.take(lease.delivery.tag)
    wait_until(lambda: full.batches >= batches + 3, DEADLINE, "more batches")
    assert helpers <= set(threading.enumerate())


def test_help_that_finds_no_room_for_long_leaves(poll_full: PollFull) -> None:
    leases = wide()
    leases.resize(40)
    _, full = poll_full(leases, helper_patience=PATIENCE)
    full.is_asked_by_three()
    full.go_on.set()
    wait_until(lambda: receivers() == ["sqs-receiver-jobs"], DEADLINE, "one receiver left")
    assert len(leases) == 40 + AHEAD


def test_help_leaves_when_the_queue_is_no_longer_full(
    poll_full: PollFull, fake: FakeSqs, clock: Clock
) -> None:
    _, full = poll_full()
    full.is_asked_by_three()
    full.becomes_empty()

    def is_left() -> bool:
        clock.advance(1)  # The short polls end.
        return receivers() == ["sqs-receiver-jobs"]

    wait_until(is_left, DEADLINE, "one receiver left")


def test_without_room_for_another_batch_there_is_no_help(
    poll_full: PollFull, make_delivery: MakeDelivery
) -> None:
    # Room for one batch and nine.
    leases = Leases(VISIBILITY_TIMEOUT)
    leases.fill(0, [make_delivery() for _ in range(AHEAD - 19)])
    _, full = poll_full(leases)
    with pytest.raises(TimeoutError):
        wait_until(lambda: full.batches > 1, PATIENCE, "help")
    assert full.batches == 1


def test_the_end_of_help_gives_its_slots_back(poll_full: PollFull, fake: FakeSqs) -> None:
    # Else the window would shrink each time.
    leases = wide()
    leases.resize(40)
    receiver, full = poll_full(leases)
    full.is_asked_by_three()
    receiver.stop()
    full.becomes_empty()
    fake.end_polls()
    receiver.join(DEADLINE)
    for lease in leases.all():
        leases.take(lease.delivery.tag)
    assert sum(iter(leases.try_reserve, 0)) == 40 + AHEAD


def test_help_that_there_is_no_room_for_costs_no_slot_and_no_receiver(
    poll_full: PollFull, machine: Machine
) -> None:
    machine.has_no_room_for("sqs-receiver-jobs-")
    leases = after_a_short_task(Leases(VISIBILITY_TIMEOUT))
    leases.resize(1_000)
    receiver, _ = poll_full(leases, holds_the_first=False)
    # One that were lost with each try would end the asking soon.
    wait_until(lambda: len(leases) == 1_000 + AHEAD, DEADLINE, "a full window")
    assert receiver.fault() is None
    assert receivers() == ["sqs-receiver-jobs"]
    receiver.stop()
    receiver.join(DEADLINE)
    assert leases.take_all()
    assert leases.is_empty


def test_help_is_asked_for_again_once_there_is_room(poll_full: PollFull, machine: Machine) -> None:
    machine.has_no_room_for("sqs-receiver-jobs-", times=20)
    _, full = poll_full(holds_the_first=False)
    full.is_asked_by_three()


def test_one_that_there_is_no_room_for_can_be_started_later(
    make: Make, fake: FakeSqs, url: str, machine: Machine
) -> None:
    fake.put(url, "{}")
    came = threading.Event()
    receiver = make(on_received=lambda _: came.set())
    machine.has_no_room_for("sqs-receiver")
    with pytest.raises(NoThread):
        receiver.start()
    receiver.join(DEADLINE)
    machine.has_room()
    receiver.start()
    assert came.wait(DEADLINE)
    receiver.stop()
    fake.end_polls()
    assert has_ended(receiver)


def test_stopping_ends_help_too(poll_full: PollFull, fake: FakeSqs) -> None:
    receiver, full = poll_full()
    full.is_asked_by_three()
    receiver.stop()
    full.go_on.set()
    receiver.join(DEADLINE)
    assert receivers() == []


# The second poll


def two_are_open(fake: FakeSqs) -> None:
    """Wait until two polls are open."""
    wait_until(lambda: fake.open_polls == 2, DEADLINE, "two open polls")


def one_is_left(fake: FakeSqs, clock: Clock) -> None:
    """Let a second pass, and wait until only the first thread is left."""
    clock.advance(1)
    wait_until(lambda: receivers() == ["sqs-receiver-jobs"], DEADLINE, "one receiver left")
    is_polling(fake)


def waits(fake: FakeSqs) -> list[int]:
    """The seconds of each poll so far, the shortest first."""
    return sorted(call["WaitTimeSeconds"] for call in fake.asked(RECEIVE))


def test_a_message_that_arrives_between_two_calls_of_a_thread_finds_an_open_poll(
    start: Start, fake: FakeSqs, url: str
) -> None:
    handed_over = start()
    fake.put(url, "{}")
    two_are_open(fake)
    handed_over.get(timeout=DEADLINE)
    # From now on, no call reaches SQS.
    is_over = threading.Event()
    fake.on_call = lambda _: is_over.wait(DEADLINE)
    for _ in range(2):
        sent = fake.put(url, "{}")
        (delivery,) = handed_over.get(timeout=DEADLINE)
        assert delivery.message_id == sent
    is_over.set()


@pytest.mark.parametrize("came", [1, 9])
def test_while_messages_come_two_polls_are_open(
    start: Start, fake: FakeSqs, url: str, came: int
) -> None:
    for _ in range(came):
        fake.put(url, "{}")
    start()
    two_are_open(fake)
    # The one that found the messages, its next one, and a short one.
    assert waits(fake) == [1, POLL, POLL]
    assert len(receivers()) == 2


def test_one_message_after_the_other_needs_one_call_each(
    start: Start, fake: FakeSqs, url: str
) -> None:
    leases = wide()
    handed_over = start(leases)
    for _ in range(50):
        fake.put(url, "{}")
        (delivery,) = handed_over.get(timeout=DEADLINE)
        leases.take(delivery.tag)
        two_are_open(fake)
    assert fake.counts[RECEIVE] == 50 + 2


def test_the_second_poll_ends_once_no_message_has_come_for_a_second(
    start: Start, fake: FakeSqs, url: str, clock: Clock
) -> None:
    handed_over = start()
    for _ in range(2):
        fake.put(url, "{}")
        handed_over.get(timeout=DEADLINE)
        two_are_open(fake)
        one_is_left(fake, clock)
    # Two calls for each message that comes alone, and the one that is open.
    assert fake.counts[RECEIVE] == 2 * 2 + 1


def test_an_idle_queue_has_one_long_poll_after_the_other(
    start: Start, fake: FakeSqs, url: str, clock: Clock
) -> None:
    fake.put(url, "{}")
    start()
    two_are_open(fake)
    one_is_left(fake, clock)
    Queue(url, fake).purge()
    before = fake.counts[RECEIVE]
    clock.advance(POLL - 1)
    for number in range(1, 9):
        wait_until(lambda n=number: fake.counts[RECEIVE] == before + n, DEADLINE, "the next poll")
        is_polling(fake)
        clock.advance(POLL)
    wait_until(lambda: fake.counts[RECEIVE] == before + 9, DEADLINE, "the last poll")
    assert set(waits(fake)[1:]) == {POLL}


def poll_once_more(fake: FakeSqs, number: int) -> None:
    """Wait until a poll is open after so many others."""
    wait_until(lambda: fake.counts[RECEIVE] > number, DEADLINE, "the next poll")
    is_polling(fake)


@pytest.mark.parametrize("is_shared", [True, False])
def test_queues_that_share_a_window_and_those_with_one_receiver_have_no_second_poll(
    make: Make, fake: FakeSqs, url: str, is_shared: bool
) -> None:
    leases = wide()
    leases.share_among(2 if is_shared else 1)
    make(leases, changes={"max_receivers": 4 if is_shared else 1}).start()
    for number in range(1, 4):
        is_polling(fake)
        fake.put(url, "{}")
        poll_once_more(fake, number)
    assert receivers() == ["sqs-receiver-jobs"]
    assert waits(fake) == [POLL] * 4


def test_a_worker_whose_tasks_take_long_has_no_second_poll(
    start: Start, fake: FakeSqs, url: str, make_delivery: MakeDelivery
) -> None:
    clock = Clock()
    leases = Leases(VISIBILITY_TIMEOUT, clock=clock)
    leases.resize(1)

    def run(delivery: Delivery) -> None:
        leases.started(delivery.tag, None)
        clock.advance(30)
        leases.take(delivery.tag)

    before = make_delivery()
    leases.fill(0, [before])
    run(before)
    for _ in range(5):
        fake.put(url, "{}")
    handed_over = start(leases)
    for _ in range(5):
        # Only the one that the process can run.
        (delivery,) = handed_over.get(timeout=DEADLINE)
        run(delivery)
    is_polling(fake)
    assert [call["MaxNumberOfMessages"] for call in fake.asked(RECEIVE)] == [1] * 6
    assert waits(fake) == [POLL] * 6


def test_a_pause_leaves_no_second_poll(make: Make, fake: FakeSqs, url: str) -> None:
    leases = wide()
    come: Come = queue.SimpleQueue()
    make(leases, come.put, helper_patience=PATIENCE).start()
    fake.put(url, "{}")
    come.get(timeout=DEADLINE)
    two_are_open(fake)
    leases.pause("a test")
    for _ in range(2):
        fake.put(url, "{}")
        come.get(timeout=DEADLINE)
    wait_until(lambda: receivers() == ["sqs-receiver-jobs"], DEADLINE, "one receiver left")
    assert (fake.open_polls, fake.counts[RECEIVE]) == (0, 3)


def test_an_outage_ends_the_second_poll(start: Start, fake: FakeSqs, url: str) -> None:
    handed_over = start()
    fake.put(url, "{}")
    handed_over.get(timeout=DEADLINE)
    two_are_open(fake)
    failed: list[str] = []

    def fail(_: Call) -> None:
        failed.append(threading.current_thread().name)
        raise SqsError("InternalError")

    fake.on_call = fail
    for _ in range(2):
        fake.put(url, "{}")
        handed_over.get(timeout=DEADLINE)
    wait_until(lambda: len(failed) >= 30, DEADLINE, "30 failed calls")
    assert failed.count("sqs-receiver-jobs-2") == len(set(failed)) - 1 == 1


def test_the_second_poll_does_not_lengthen_a_stop(
    make: Make, fake: FakeSqs, url: str, clock: Clock
) -> None:
    receiver = make()
    receiver.start()
    fake.put(url, "{}")
    two_are_open(fake)
    receiver.stop()
    assert receiver.poll_left() == POLL
    clock.advance(1)
    wait_until(lambda: fake.open_polls == 1, DEADLINE, "one open poll")
    assert receiver.poll_left() == POLL - 1


# Stopping


def has_ended(receiver: Receiver) -> bool:
    receiver.join(DEADLINE)
    return not any(thread.name == "sqs-receiver-jobs" for thread in threading.enumerate())


def test_it_stops_after_the_poll_under_way_and_hands_over_what_that_brought(
    make: Make, fake: FakeSqs, url: str
) -> None:
    handed_over: Come = queue.SimpleQueue()
    receiver = make(on_received=handed_over.put)
    receiver.start()
    is_polling(fake)
    receiver.stop()
    sent = fake.put(url, "{}")
    assert has_ended(receiver)
    assert [delivery.message_id for delivery in handed_over.get(timeout=0)] == [sent]
    assert len(fake.calls) == 1


def test_it_stops_while_it_waits_for_room(
    make: Make, fake: FakeSqs, make_delivery: MakeDelivery
) -> None:
    leases = Leases(VISIBILITY_TIMEOUT)
    leases.fill(0, [make_delivery() for _ in range(20)])
    receiver = make(leases)
    receiver.start()
    receiver.stop()
    assert has_ended(receiver)
    assert fake.calls == []


def test_it_stops_while_it_pauses(make: Make, fake: FakeSqs) -> None:
    fake.deny(RECEIVE)
    receiver = make(changes={"receive_pause_max": 1_000}, first_pause=1_000)
    receiver.start()
    wait_until(lambda: fake.calls, DEADLINE, "the first call")
    receiver.stop()
    assert has_ended(receiver)
    assert len(fake.calls) == 1


# Its health


def test_a_call_that_is_open_for_longer_than_all_its_timeouts_is_a_fault(
    make: Make, fake: FakeSqs, clock: Clock
) -> None:
    fake.hold(RECEIVE)
    receiver = make()
    receiver.start()
    wait_until(lambda: fake.calls, DEADLINE, "the call")
    assert (receiver.is_polling, receiver.fault()) == (True, None)
    # The long poll, its answer's margin, the time to connect and to pause, and a margin.
    clock.advance(39)
    assert receiver.fault() is None
    clock.advance(3)
    assert "is open for 42 s" in (receiver.fault() or "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_by_itself_is_a_fault(make: Make, fake: FakeSqs) -> None:
    def end(_: Call) -> None:
        raise SystemExit

    fake.on_call = end
    receiver = make()
    receiver.start()
    wait_until(lambda: receiver.fault(), DEADLINE, "the fault")
    assert receiver.fault() == "the receiver of jobs has ended"
    assert not receiver.is_polling
    receiver.stop()
    assert receiver.fault() is None
