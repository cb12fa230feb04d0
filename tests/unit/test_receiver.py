"""Receiver: whatever goes wrong with the asking, it asks again; a full queue gets help."""

import logging
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError

from devstack.waiting import wait_until
from sqs_broker.errors import NoThread
from sqs_broker.options import Options, QueueAddress
from sqs_broker.rules.lease import Delivery
from sqs_broker.sqs.leases import AHEAD, Leases
from sqs_broker.sqs.receiver import Receiver
from tests.unit.conftest import VISIBILITY_TIMEOUT, Machine, MakeDelivery, after_a_short_task

#: Seconds that nothing here comes near to.
DEADLINE = 5

#: Seconds after which what has not happened does not happen.
PATIENCE = 0.05

OPTIONS = Options(
    receive_pause_max=0.002,
    region="us-east-1",
    queues={"jobs": QueueAddress("https://sqs.test/jobs")},
    wait_time_seconds=20,
)


def refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "ReceiveMessage")


def message(number: int, **facts: Any) -> dict[str, Any]:
    """A message as boto3 gives it."""
    return {
        "MessageId": f"sqs-{number}",
        "ReceiptHandle": f"receipt-{number}",
        "Body": "{}",
        "Attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1767323045678"},
    } | facts


class Client:
    """Answers each receive with the next of a script, then holds the poll open until the end."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.calls: list[dict[str, Any]] = []
        self.polling = threading.Event()
        self.ended = threading.Event()
        self.before_each: Callable[[], None] = lambda: None
        self.at_last: list[dict[str, Any]] = []
        #: What is asked of leases, and how each is answered: by receipt handle the code of an entry
        #: that fails, or an exception.
        self.extensions: list[dict[str, Any]] = []
        self.answer: Any = {}
        self.before_extension: Callable[[], None] = lambda: None

    def receive_message(self, **call: Any) -> dict[str, Any]:
        self.calls.append(call)
        self.before_each()
        if not self.script:
            self.polling.set()
            self.ended.wait(DEADLINE)
            return {"Messages": self.at_last}
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return {"Messages": step} if step else {}

    def change_message_visibility_batch(self, **call: Any) -> dict[str, Any]:
        self.extensions.append(call)
        self.before_extension()
        if isinstance(self.answer, Exception):
            raise self.answer
        codes = {entry["Id"]: self.answer.get(entry["ReceiptHandle"]) for entry in call["Entries"]}
        return {"Failed": [{"Id": id_, "Code": code} for id_, code in codes.items() if code]}


def wide() -> Leases:
    """Leases with room for all that a test holds."""
    leases = after_a_short_task(Leases(VISIBILITY_TIMEOUT))
    leases.resize(20)
    return leases


Receive = Callable[..., "queue.SimpleQueue[list[Delivery]]"]


@pytest.fixture
def receive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receive]:
    """Starts a receiver on a client. Gives the queue of what it hands over."""
    monkeypatch.setattr("sqs_broker.sqs.receiver.FIRST_PAUSE", 0.001)
    started: list[tuple[Receiver, Client]] = []

    def start(client: Client, leases: Leases | None = None) -> "queue.SimpleQueue[list[Delivery]]":
        handed_over: queue.SimpleQueue[list[Delivery]] = queue.SimpleQueue()
        leases = wide() if leases is None else leases
        receiver = Receiver("jobs", OPTIONS, client, leases, handed_over.put)  # type: ignore[arg-type]
        started.append((receiver, client))
        receiver.start()
        return handed_over

    yield start
    for receiver, client in started:
        receiver.stop()
        client.ended.set()
        receiver.join(DEADLINE)


def test_it_asks_as_sqs_wants_to_be_asked(receive: Receive) -> None:
    client = Client([message(1)])
    receive(client).get(timeout=DEADLINE)
    assert client.calls[0] == {
        "QueueUrl": "https://sqs.test/jobs",
        "MaxNumberOfMessages": 10,
        "WaitTimeSeconds": 20,
        "MessageAttributeNames": ["All"],
        "MessageSystemAttributeNames": ["ApproximateReceiveCount", "SentTimestamp"],
    }


class Untellable(ClientError):
    """An error of SQS without the answer that every one of them has."""

    def __init__(self) -> None:
        Exception.__init__(self, "no answer")
        self.response = None  # type: ignore[assignment]


def test_an_error_of_the_back_off_itself_ends_no_thread(receive: Receive) -> None:
    handed_over = receive(Client(Untellable(), Untellable(), [message(1)]))
    assert handed_over.get(timeout=DEADLINE)[0].message_id == "sqs-1"


def test_what_comes_is_handed_over_in_one_call_a_batch(receive: Receive) -> None:
    handed_over = receive(Client([message(1), message(2)], [], [message(3)]))
    batches = [handed_over.get(timeout=DEADLINE) for _ in range(2)]
    ids = [[delivery.message_id for delivery in batch] for batch in batches]
    assert ids == [["sqs-1", "sqs-2"], ["sqs-3"]]


def test_a_delivery_holds_what_sqs_says_of_it(receive: Receive) -> None:
    attributes = {
        "b": {"DataType": "Binary", "BinaryValue": b"\x00", "StringListValues": []},
        "s": {"DataType": "String", "StringValue": "text", "BinaryListValues": []},
    }
    facts = {"ApproximateReceiveCount": "4", "SentTimestamp": "1767323045678"}
    client = Client([message(1, Body="text", Attributes=facts, MessageAttributes=attributes)])
    (delivery,) = receive(client).get(timeout=DEADLINE)
    assert delivery.queue == "jobs"
    assert delivery.receipt_handle == "receipt-1"
    assert delivery.body == "text"
    assert delivery.count == 4
    assert delivery.enqueued_at == datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    # SQS adds empty lists that SendMessage refuses.
    assert delivery.attributes == {
        "b": {"DataType": "Binary", "BinaryValue": b"\x00"},
        "s": {"DataType": "String", "StringValue": "text"},
    }


def test_every_delivery_has_a_tag_of_its_own(receive: Receive) -> None:
    first = receive(Client([message(1), message(1)])).get(timeout=DEADLINE)
    second = receive(Client([message(1)])).get(timeout=DEADLINE)
    assert len({delivery.tag for delivery in first + second}) == 3


def test_what_is_handed_over_is_held_already(receive: Receive) -> None:
    leases = wide()
    (delivery,) = receive(Client([message(1)]), leases).get(timeout=DEADLINE)
    assert leases.holds(delivery.tag)


FAULTS = [
    refused("AccessDenied"),
    refused("AWS.SimpleQueueService.NonExistentQueue"),
    refused("InternalError"),
    refused("RequestThrottled"),
    ClientError({}, "ReceiveMessage"),
    EndpointConnectionError(endpoint_url="https://sqs.test"),
    ConnectionClosedError(endpoint_url="https://sqs.test"),
    ReadTimeoutError(endpoint_url="https://sqs.test"),
    HTTPClientError(error="of the connection"),
    ResponseParserError("half an answer"),
    NoCredentialsError(),
    ConnectionResetError(),
    ssl.SSLError("bad record"),
    KeyError("Messages"),
    RecursionError(),
    MemoryError(),
    [message(1, Attributes={})],
    [{}],
]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_it_outlives_every_fault_of_the_asking(receive: Receive, fault: Any) -> None:
    handed_over = receive(Client(fault, fault, [message(7)]))
    (delivery,) = handed_over.get(timeout=DEADLINE)
    assert delivery.message_id == "sqs-7"


def test_it_outlives_one_fault_after_the_other(receive: Receive) -> None:
    handed_over = receive(Client(*FAULTS, [message(7)]))
    assert handed_over.get(timeout=DEADLINE)[0].message_id == "sqs-7"


def test_it_outlives_a_fault_of_who_takes_what_came_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = Client([message(1)], [message(2)])
    handed_over: queue.SimpleQueue[list[Delivery]] = queue.SimpleQueue()

    def take(deliveries: list[Delivery]) -> None:
        handed_over.put(deliveries)
        raise RuntimeError

    leases = wide()
    receiver = Receiver("jobs", OPTIONS, client, leases, take)  # type: ignore[arg-type]
    receiver.start()
    try:
        assert [handed_over.get(timeout=1)[0].message_id for _ in range(2)] == ["sqs-1", "sqs-2"]
    finally:
        receiver.stop()
        client.ended.set()
        receiver.join(DEADLINE)
    assert [vars(record)["event"] for record in caplog.records] == ["receive.broken"] * 2
    # Else their leases would be extended, and SQS would not deliver them again.
    assert leases.is_empty


def test_a_fault_gives_the_slots_back(receive: Receive) -> None:
    # Without a window there are ten slots: one that is not given back would end the asking.
    client = Client(*[refused("InternalError")] * 20)
    receive(client, Leases(VISIBILITY_TIMEOUT))
    assert client.polling.wait(DEADLINE)
    assert [call["MaxNumberOfMessages"] for call in client.calls] == [10] * 21


def test_each_pause_is_up_to_twice_as_long_within_its_maximum(
    receive: Receive, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    client = Client(*[refused("InternalError")] * 5, [], refused("InternalError"))
    monkeypatch.setattr("random.uniform", draw)
    monkeypatch.setattr("sqs_broker.sqs.receiver.FIRST_PAUSE", 1)
    monkeypatch.setattr(f"{__name__}.OPTIONS", replace(OPTIONS, receive_pause_max=6))
    receive(client)
    assert client.polling.wait(DEADLINE)
    # A receive that worked starts it over.
    assert [high for _, high in drawn] == [1, 2, 4, 6, 6, 1]
    assert all(low == high / 2 for low, high in drawn)


def test_a_kind_of_fault_is_logged_once_a_minute(
    receive: Receive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr("sqs_broker.sqs.receiver.monotonic", lambda: now[0])
    away, denied = EndpointConnectionError(endpoint_url="x"), refused("AccessDenied")
    client = Client(away, away, denied, away, denied, denied)
    client.before_each = lambda: now.__setitem__(0, now[0] + 20)
    with caplog.at_level(logging.WARNING, "sqs_broker.sqs.receiver"):
        receive(client)
        assert client.polling.wait(DEADLINE)
    # At 20 s, 40 s (quiet), 60 s, 80 s, 100 s (quiet), and 120 s.
    kinds = [vars(record)["error"] for record in caplog.records]
    assert kinds == ["EndpointConnectionError", "AccessDenied"] * 2
    assert {vars(record)["event"] for record in caplog.records} == {"receive.failed"}


def test_recovery_is_logged_once(receive: Receive, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(KeyError(), KeyError(), [], [], [])
    with caplog.at_level(logging.INFO, "sqs_broker.sqs.receiver"):
        receive(client)
        assert client.polling.wait(DEADLINE)
    events = [vars(record)["event"] for record in caplog.records]
    assert events == ["receive.failed", "receive.recovered"]


def test_a_fault_is_logged_without_its_text(
    receive: Receive, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(KeyError("Kim-1f9c"), ValueError("Kim-1f9c"))
    with caplog.at_level(logging.INFO, "sqs_broker.sqs.receiver"):
        receive(client)
        assert client.polling.wait(DEADLINE)
    assert len(caplog.records) == 2
    assert "Kim-1f9c" not in caplog.text


# How old a lease is


@dataclass
class Late:
    """A receiver whose first call brings messages after so many seconds."""

    client: Client
    leases: Leases
    handed_over: "queue.SimpleQueue[list[Delivery]]"

    def ids(self) -> list[str]:
        """Of what was handed over, once the next poll is open."""
        assert self.client.polling.wait(DEADLINE)
        if self.handed_over.empty():
            return []
        return [delivery.message_id for delivery in self.handed_over.get_nowait()]

    def ends(self) -> list[float]:
        """When each lease ends, in seconds since the call."""
        return [lease.expires_at - ASKED for lease in self.leases.all()]


#: When the receive call was sent.
ASKED = 1_000.0

ReceiveLate = Callable[..., Late]


@pytest.fixture
def receive_late(receive: Receive, monkeypatch: pytest.MonkeyPatch) -> ReceiveLate:
    def start(
        seconds: float, *, answer: Any = None, extension_takes: float = 0, came: int = 1
    ) -> Late:
        now = [ASKED]
        for module in ("sqs.extension", "sqs.receiver"):
            monkeypatch.setattr(f"sqs_broker.{module}.monotonic", lambda: now[0])
        client = Client([message(number) for number in range(came)])
        client.before_each = lambda: now.__setitem__(0, now[0] + seconds)
        client.before_extension = lambda: now.__setitem__(0, now[0] + extension_takes)
        client.answer = answer or {}
        leases = wide()
        return Late(client, leases, receive(client, leases))

    return start


def test_a_delivery_knows_when_it_was_asked_for_and_when_it_came(
    receive_late: ReceiveLate,
) -> None:
    (delivery,) = receive_late(7).handed_over.get(timeout=DEADLINE)
    assert (delivery.asked_at, delivery.received_at) == (ASKED, ASKED + 7)


@pytest.mark.parametrize("seconds", [0, 7, 20, 20.9])
def test_with_the_default_settings_no_answer_within_its_poll_costs_a_further_call(
    receive_late: ReceiveLate, seconds: float
) -> None:
    assert (OPTIONS.wait_time_seconds, VISIBILITY_TIMEOUT) == (20, 60)
    late = receive_late(seconds)
    assert late.ids() == ["sqs-0"]
    assert late.client.extensions == []
    assert late.ends() == [VISIBILITY_TIMEOUT]


@pytest.mark.parametrize("seconds", [22, 59, 61, 1_000])
def test_a_lease_of_an_unknown_age_is_extended_before_its_message_is_handed_over(
    receive_late: ReceiveLate, seconds: float
) -> None:
    # A long poll, an answer that drips, a process that was stopped: the message may have been
    # handed out at any time in it.
    late = receive_late(seconds, extension_takes=2, came=10)
    assert late.ids() == [f"sqs-{number}" for number in range(10)]
    (call,) = late.client.extensions
    assert call["QueueUrl"] == "https://sqs.test/jobs"
    assert [(e["ReceiptHandle"], e["VisibilityTimeout"]) for e in call["Entries"]] == [
        (f"receipt-{number}", VISIBILITY_TIMEOUT) for number in range(10)
    ]
    # From when the extension was sent, and not from its answer.
    assert late.ends() == [seconds + VISIBILITY_TIMEOUT] * 10


def lost(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """The message and the reason of each lease that was said to be lost."""
    lines = [vars(record) for record in caplog.records]
    said = [line for line in lines if line.get("event") == "lease.lost"]
    return [(line["sqs_message_id"], line["reason"]) for line in said]


@pytest.mark.parametrize(
    "code",
    ["MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", "ReceiptHandleIsInvalid"],
)
def test_a_message_whose_lease_sqs_says_is_gone_is_not_handed_over(
    receive_late: ReceiveLate, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    late = receive_late(70, answer={"receipt-1": code}, came=3)
    assert late.ids() == ["sqs-0", "sqs-2"]
    assert lost(caplog) == [("sqs-1", "SQS refused its receipt handle")]
    assert late.ends() == [70 + VISIBILITY_TIMEOUT] * 2


@pytest.mark.parametrize(
    "answer",
    [
        {"receipt-0": "InternalError"},
        ClientError({"Error": {"Code": "AccessDenied"}}, "ChangeMessageVisibilityBatch"),
        ReadTimeoutError(endpoint_url="https://sqs.test"),
        RuntimeError("Kim-1f9c"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(("seconds", "is_over"), [(40, False), (59.9, False), (60, True)])
def test_where_sqs_cannot_say_a_lease_counts_from_the_receive_call(
    receive_late: ReceiveLate,
    caplog: pytest.LogCaptureFixture,
    answer: Any,
    seconds: float,
    is_over: bool,
) -> None:
    late = receive_late(seconds, answer=answer)
    assert late.ids() == ([] if is_over else ["sqs-0"])
    assert late.ends() == ([] if is_over else [VISIBILITY_TIMEOUT])
    assert lost(caplog) == ([("sqs-0", "its time ran out")] if is_over else [])
    assert "Kim-1f9c" not in caplog.text


def test_an_extension_whose_answer_comes_after_its_own_time_is_no_lease(
    receive_late: ReceiveLate, caplog: pytest.LogCaptureFixture
) -> None:
    late = receive_late(30, extension_takes=VISIBILITY_TIMEOUT)
    assert late.ids() == []
    assert lost(caplog) == [("sqs-0", "its time ran out")]


def test_what_is_lost_on_arrival_gives_its_slot_back(receive_late: ReceiveLate) -> None:
    late = receive_late(
        70, answer={f"receipt-{n}": "MessageNotInflight" for n in range(10)}, came=10
    )
    assert late.ids() == []
    assert (
        late.client.calls[1]["MaxNumberOfMessages"] == late.client.calls[0]["MaxNumberOfMessages"]
    )
    assert len(late.leases) == 0


# Help


class FullQueue:
    """Gives full batches while `is_full`. Until `go_on`, helpers are held in their first call, and
    the first thread (`holds_the_first`) once three ask at the same time, so that they are seen."""

    def __init__(self) -> None:
        self.is_full = True
        self.holds_the_first = True
        self.go_on = threading.Event()
        self.batches = self.most = 0
        self.waits: dict[str, set[int]] = {}
        self._asking = 0
        self._changed = threading.Condition()

    def receive_message(self, **call: Any) -> dict[str, Any]:
        with self._changed:
            self._asking += 1
            self.batches += 1
            self.most = max(self.most, self._asking)
            name = threading.current_thread().name
            self.waits.setdefault(name, set()).add(call["WaitTimeSeconds"])
            self._changed.notify_all()
        if name != "sqs-receiver-jobs" or (self.most >= 3 and self.holds_the_first):
            self.go_on.wait(DEADLINE)
        with self._changed:
            self._asking -= 1
        number = call["MaxNumberOfMessages"] if self.is_full else 0
        return {"Messages": [message(n) for n in range(number)]}

    def is_asked_by_three(self) -> bool:
        """Whether three ask at the same time, before long."""
        with self._changed:
            return self._changed.wait_for(lambda: self.most >= 3, DEADLINE)

    def becomes_empty(self) -> None:
        self.is_full = False
        self.go_on.set()


@pytest.fixture
def poll_full() -> Iterator[Callable[..., tuple[Receiver, FullQueue]]]:
    """Starts a receiver on a full queue. What it hands over is forgotten at once."""
    started: list[tuple[Receiver, FullQueue]] = []

    def start(
        leases: Leases | None = None, *, holds_the_first: bool = True
    ) -> tuple[Receiver, FullQueue]:
        client = FullQueue()
        client.holds_the_first = holds_the_first
        if leases is None:
            leases = after_a_short_task(Leases(VISIBILITY_TIMEOUT))
            leases.resize(1_000_000)
        options = replace(OPTIONS, max_receivers=3)
        receiver = Receiver("jobs", options, client, leases, lambda _: None)  # type: ignore[arg-type]
        started.append((receiver, client))
        receiver.start()
        return receiver, client

    yield start
    for receiver, client in started:
        receiver.stop()
        client.becomes_empty()
        receiver.join(DEADLINE)


PollFull = Callable[..., tuple[Receiver, FullQueue]]


def receivers() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if name.startswith("sqs-receiver"))


def test_while_full_batches_keep_coming_more_threads_ask_up_to_the_most(
    poll_full: PollFull,
) -> None:
    _, client = poll_full(holds_the_first=False)
    assert client.is_asked_by_three()
    # The first thread goes on, and could ask for help after each of its batches.
    wait_until(lambda: client.batches > 100, DEADLINE, "a hundred batches")
    assert len(receivers()) == len(client.waits) == client.most == 3


def test_help_waits_for_a_short_time_only(poll_full: PollFull) -> None:
    _, client = poll_full()
    assert client.is_asked_by_three()
    assert [client.waits[name] for name in receivers()] == [{20}, {1}, {1}]


def test_help_that_finds_no_room_waits_for_some(poll_full: PollFull) -> None:
    # Else a thread would be made for each batch.
    leases = wide()
    leases.resize(40)
    _, client = poll_full(leases)
    assert client.is_asked_by_three()
    helpers = {thread for thread in threading.enumerate() if "jobs-" in thread.name}
    client.go_on.set()
    wait_until(lambda: len(leases) == 40 + AHEAD, DEADLINE, "a full window")
    with pytest.raises(TimeoutError):
        wait_until(lambda: len(receivers()) < 3, PATIENCE, "the end of help")
    batches = client.batches
    for lease in leases.all():
        leases.take(lease.delivery.tag)
    wait_until(lambda: client.batches >= batches + 3, DEADLINE, "more batches")
    assert helpers <= set(threading.enumerate())


def test_help_that_finds_no_room_for_long_leaves(
    poll_full: PollFull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqs_broker.sqs.receiver.HELPER_PATIENCE", PATIENCE)
    leases = wide()
    leases.resize(40)
    _, client = poll_full(leases)
    assert client.is_asked_by_three()
    client.go_on.set()
    wait_until(lambda: receivers() == ["sqs-receiver-jobs"], DEADLINE, "one receiver left")
    assert len(leases) == 40 + AHEAD


def test_help_leaves_when_the_queue_is_no_longer_full(poll_full: PollFull) -> None:
    _, client = poll_full()
    assert client.is_asked_by_three()
    client.becomes_empty()
    wait_until(lambda: receivers() == ["sqs-receiver-jobs"], DEADLINE, "one receiver left")


@pytest.mark.parametrize("came", [0, 1, 9])
def test_a_batch_that_is_not_full_needs_no_help(receive: Receive, came: int) -> None:
    client = Client([message(n) for n in range(came)])
    receive(client)
    assert client.polling.wait(DEADLINE)
    assert receivers() == ["sqs-receiver-jobs"]


def test_without_room_for_another_batch_there_is_no_help(
    poll_full: PollFull, make_delivery: MakeDelivery
) -> None:
    # Room for one batch and nine.
    leases = Leases(VISIBILITY_TIMEOUT)
    leases.fill(0, [make_delivery() for _ in range(AHEAD - 19)])
    _, client = poll_full(leases)
    with pytest.raises(TimeoutError):
        wait_until(lambda: client.batches > 1, PATIENCE, "help")
    assert client.batches == 1


def test_the_end_of_help_gives_its_slots_back() -> None:
    # Else the window would shrink each time.
    leases, client = wide(), FullQueue()
    leases.resize(40)
    options = replace(OPTIONS, max_receivers=3)
    receiver = Receiver("jobs", options, client, leases, lambda _: None)  # type: ignore[arg-type]
    receiver.start()
    assert client.is_asked_by_three()
    receiver.stop()
    client.becomes_empty()
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
    _, client = poll_full(holds_the_first=False)
    assert client.is_asked_by_three()


def test_one_that_there_is_no_room_for_can_be_started_later(machine: Machine) -> None:
    client = Client([message(1)])
    came = threading.Event()
    receiver = Receiver("jobs", OPTIONS, client, wide(), lambda _: came.set())  # type: ignore[arg-type]
    machine.has_no_room_for("sqs-receiver")
    with pytest.raises(NoThread):
        receiver.start()
    receiver.join(DEADLINE)
    machine.has_room()
    receiver.start()
    assert came.wait(DEADLINE)
    receiver.stop()
    client.ended.set()
    assert has_ended(receiver)


def test_stopping_ends_help_too(poll_full: PollFull) -> None:
    receiver, client = poll_full()
    assert client.is_asked_by_three()
    receiver.stop()
    client.go_on.set()
    receiver.join(DEADLINE)
    assert receivers() == []


# Stopping


def has_ended(receiver: Receiver) -> bool:
    receiver.join(DEADLINE)
    return not any(thread.name == "sqs-receiver-jobs" for thread in threading.enumerate())


def test_it_stops_after_the_poll_under_way_and_hands_over_what_that_brought() -> None:
    handed_over: queue.SimpleQueue[list[Delivery]] = queue.SimpleQueue()
    client = Client()
    client.at_last = [message(9)]
    receiver = Receiver("jobs", OPTIONS, client, wide(), handed_over.put)  # type: ignore[arg-type]
    receiver.start()
    assert client.polling.wait(DEADLINE)
    receiver.stop()
    client.ended.set()
    assert has_ended(receiver)
    assert [delivery.message_id for delivery in handed_over.get(timeout=0)] == ["sqs-9"]
    assert len(client.calls) == 1


def test_it_stops_while_it_waits_for_room(make_delivery: MakeDelivery) -> None:
    leases = Leases(VISIBILITY_TIMEOUT)
    leases.fill(0, [make_delivery() for _ in range(20)])
    client = Client()
    receiver = Receiver("jobs", OPTIONS, client, leases, lambda _: None)  # type: ignore[arg-type]
    receiver.start()
    receiver.stop()
    assert has_ended(receiver)
    assert client.calls == []


def test_it_stops_while_it_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqs_broker.sqs.receiver.FIRST_PAUSE", 1_000)
    asked = threading.Event()
    client = Client(refused("AccessDenied"))
    client.before_each = asked.set
    patient = replace(OPTIONS, receive_pause_max=1_000)
    receiver = Receiver("jobs", patient, client, wide(), lambda _: None)  # type: ignore[arg-type]
    receiver.start()
    assert asked.wait(DEADLINE)
    receiver.stop()
    assert has_ended(receiver)
    assert len(client.calls) == 1


# Its health


def made(client: Client) -> Receiver:
    return Receiver("jobs", OPTIONS, client, wide(), lambda _: None)  # type: ignore[arg-type]


def test_a_call_that_is_open_for_longer_than_all_its_timeouts_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client()
    receiver = made(client)
    receiver.start()
    assert client.polling.wait(DEADLINE)
    assert (receiver.is_polling, receiver.fault()) == (True, None)
    asked_at = monotonic()
    # The long poll, its answer's margin, the time to connect and to pause, and a margin.
    for seconds, is_fault in [(39, False), (42, True)]:
        monkeypatch.setattr("sqs_broker.sqs.receiver.monotonic", lambda s=seconds: asked_at + s)
        assert ("is open for" in (receiver.fault() or "")) is is_fault
    client.ended.set()
    receiver.stop()
    receiver.join(DEADLINE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_by_itself_is_a_fault() -> None:
    client = Client()
    client.before_each = lambda: (_ for _ in ()).throw(SystemExit)
    receiver = made(client)
    receiver.start()
    wait_until(lambda: receiver.fault(), DEADLINE, "the fault")
    assert receiver.fault() == "the receiver of jobs has ended"
    assert not receiver.is_polling
    receiver.stop()
    assert receiver.fault() is None
