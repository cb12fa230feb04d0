"""Writer: whoever publishes never waits, and what MongoDB cannot take is events and not time."""

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, OperationFailure

from devstack.waiting import wait_until
from sqs_broker.control.broadcast import MOST_TOGETHER, Broadcast
from sqs_broker.control.writer import BATCH, MOST_WAITING, Writer
from tests.unit.conftest import Machine

#: Seconds that nothing here comes near to.
DEADLINE = 10


class Store:
    """Keeps what is written, once it is let, and fails as often as it is told."""

    def __init__(self) -> None:
        self.broadcasts: list[list[Broadcast]] = []
        self.replies: list[list[Broadcast]] = []
        #: Of either, in their order, and of broadcasts alone.
        self.faults: list[Exception] = []
        self.broadcast_faults: list[Exception] = []
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()

    def broadcast(self, messages: list[Broadcast]) -> None:
        self._take(self.broadcasts, messages, self.broadcast_faults or self.faults)

    def reply(self, messages: list[Broadcast]) -> None:
        self._take(self.replies, messages, self.faults)

    def _take(
        self, kept: list[list[Broadcast]], messages: list[Broadcast], faults: list[Exception]
    ) -> None:
        self.asked.set()
        self.open.wait(DEADLINE)
        if faults:
            raise faults.pop(0)
        kept.append(messages)

    @property
    def bodies(self) -> list[str]:
        return [message.body for batch in self.broadcasts for message in batch]


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.faults.clear()
    made.open.set()


def new_writer(store: Store, **options: float) -> Writer:
    return Writer(store, first_pause=0.001, **options)  # type: ignore[arg-type]  # a store


@pytest.fixture
def writer(store: Store) -> Writer:
    return new_writer(store)


def event(body: Any = "{}") -> Broadcast:
    return Broadcast("celeryev", "task.multi", {}, body)


def said(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if vars(record).get("event") == event]


def test_there_is_no_thread_before_the_first_message(store: Store) -> None:
    before = set(threading.enumerate())
    new_writer(store)
    assert set(threading.enumerate()) - before == set()


def test_what_is_put_is_written_in_order_and_many_at_a_time(writer: Writer, store: Store) -> None:
    for number in range(1_000):
        writer.put_events(event(str(number)))
    assert writer.flush(DEADLINE)
    assert store.bodies == [str(number) for number in range(1_000)]
    assert len(store.broadcasts) < 100
    assert max(map(len, store.broadcasts)) <= BATCH


def test_json_is_made_by_the_thread(writer: Writer, store: Store) -> None:
    writer.put_events(event([{"uuid": "id-1"}, {"uuid": "id-2"}]))
    assert writer.flush(DEADLINE)
    assert store.bodies == ['[{"uuid": "id-1"}, {"uuid": "id-2"}]']


def test_an_event_that_is_no_json_is_lost_alone(writer: Writer, store: Store) -> None:
    circle: list[Any] = []
    circle.append(circle)
    writer.put_events(event(circle))
    writer.put_events(event("{}"))
    assert writer.flush(DEADLINE)
    assert store.bodies == ["{}"]
    assert writer.lost == 1


def test_of_a_list_of_events_those_are_lost_that_are_no_json(writer: Writer, store: Store) -> None:
    writer.put_events(event([{"uuid": "id-1"}, {"uuid": object()}, {"uuid": "id-3"}]))
    assert writer.flush(DEADLINE)
    assert store.bodies == ['[{"uuid": "id-1"}, {"uuid": "id-3"}]']
    assert [message.events for batch in store.broadcasts for message in batch] == [2]
    assert writer.lost == 1


def test_lists_of_events_that_wait_are_written_in_few_messages(
    writer: Writer, store: Store
) -> None:
    lists = [[{"uuid": f"id-{n}-{m}"} for m in range(30)] for n in range(20)]
    store.open.clear()
    for each in lists:
        writer.put_events(event(each))
    store.open.set()
    assert writer.flush(DEADLINE)
    written = [message for batch in store.broadcasts for message in batch]
    bodies = [json.loads(message.body) for message in written]
    assert [each for body in bodies for each in body] == [e for each in lists for e in each]
    assert [message.events for message in written] == [len(body) for body in bodies]
    assert MOST_TOGETHER // 2 < max(map(len, bodies)) <= MOST_TOGETHER


@pytest.mark.parametrize(
    "other",
    [
        Broadcast("celeryev", "task.multi", {"hostname": "two"}, [2]),
        Broadcast("celeryev", "other.multi", {"hostname": "one"}, [2]),
        Broadcast("other", "task.multi", {"hostname": "one"}, [2]),
        Broadcast("celeryev", "task.multi", {"hostname": "one"}, {"uuid": "id-2"}),
    ],
)
def test_events_for_others_or_of_others_are_messages_of_their_own(
    writer: Writer, store: Store, other: Broadcast
) -> None:
    store.open.clear()
    for message in (Broadcast("celeryev", "task.multi", {"hostname": "one"}, [1]), other):
        writer.put_events(message)
    store.open.set()
    assert writer.flush(DEADLINE)
    assert len(store.bodies) == 2


def test_a_flood_costs_events_and_no_time(
    writer: Writer, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.open.clear()
    writer.put_events(event())
    assert store.asked.wait(DEADLINE)
    # Nothing is written meanwhile, and yet each of these calls returns.
    for _ in range(5_000):
        writer.put_events(event([{}] * 20))
    assert writer.lost == 100_000 - MOST_WAITING
    store.open.set()
    assert writer.flush(DEADLINE)
    writer.put_events(event("after"))
    assert writer.flush(DEADLINE)
    assert store.bodies[-1] == "after"
    (line,) = said(caplog, "control.up")
    assert line["count"] == writer.lost


def test_a_reply_waits_for_nothing(store: Store) -> None:
    writer = new_writer(store, gather=DEADLINE * 10)
    writer.put_events(event())
    writer.put_reply(event("reply"))
    wait_until(lambda: store.replies, DEADLINE, "the reply")


def test_an_outage_is_said_once_and_what_waited_is_written(
    writer: Writer, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store.faults = [AutoReconnect("marker of an address") for _ in range(5)]
    writer.put_events(event("1"))
    writer.put_reply(event("2"))
    wait_until(lambda: store.bodies == ["1"], DEADLINE, "the event")
    assert [batch[0].body for batch in store.replies] == ["2"]
    assert len(said(caplog, "control.down")) == len(said(caplog, "control.up")) == 1
    assert writer.lost == 0
    assert "marker of an address" not in caplog.text


def test_what_was_written_is_not_written_again_with_what_was_not(
    writer: Writer, store: Store
) -> None:
    store.broadcast_faults = [AutoReconnect() for _ in range(3)]
    writer.put_events(event("1"))
    writer.put_reply(event("2"))
    wait_until(lambda: store.bodies == ["1"], DEADLINE, "the event")
    assert len(store.replies) == 1


def test_what_mongodb_refuses_is_lost_and_the_next_is_written(writer: Writer, store: Store) -> None:
    store.faults = [OperationFailure("not authorized", 13)]
    writer.put_events(event([{}, {}]))
    wait_until(lambda: writer.lost == 2, DEADLINE, "the loss")
    writer.put_events(event("next"))
    wait_until(lambda: store.bodies == ["next"], DEADLINE, "the next event")


def test_a_process_that_ends_does_not_wait_for_a_mongodb_that_is_away(
    writer: Writer, store: Store
) -> None:
    store.faults = [AutoReconnect() for _ in range(10_000)]
    writer.put_events(event())
    # It would be DEADLINE that is waited for.
    assert not writer.flush(DEADLINE * 10)


# Its thread


def test_while_there_is_no_room_for_its_thread_messages_wait_and_then_they_are_written(
    writer: Writer, store: Store, machine: Machine
) -> None:
    machine.has_no_room_for("control-writer")
    for number in range(3):
        writer.put_events(event(str(number)))
    writer.put_reply(event("reply"))
    assert not writer.flush(DEADLINE * 10)
    machine.has_room()
    writer.put_events(event("3"))
    assert writer.flush(DEADLINE)
    assert store.bodies == ["0", "1", "2", "3"]
    assert [batch[0].body for batch in store.replies] == ["reply"]


def test_a_writer_that_is_full_without_a_thread_tries_again(
    writer: Writer, store: Store, machine: Machine
) -> None:
    machine.has_no_room_for("control-writer")
    for _ in range(MOST_WAITING + 1):
        writer.put_events(event())
    assert writer.lost == 1
    machine.has_room()
    writer.put_events(event())
    wait_until(lambda: len(store.bodies) == MOST_WAITING, DEADLINE, "all that waited")
