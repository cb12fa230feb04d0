"""Inbox: what one thread puts, another takes, all of it and in order; and it wakes the loop."""

import os
import select
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sqs_broker.machine.inbox import Arrived, Inbox

#: Seconds that nothing here comes near to.
DEADLINE = 5


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    yield made
    made.close()


def arrived(*numbers: int) -> list[Arrived]:
    return [("jobs", {"number": number}) for number in numbers]


def is_readable(inbox: Inbox) -> bool:
    readable, _, _ = select.select([inbox.fileno()], [], [], 0)
    return bool(readable)


def test_what_is_put_is_taken_once_and_in_order(inbox: Inbox) -> None:
    inbox.put(arrived(1, 2))
    inbox.put(arrived(3, 4))
    assert inbox.take_one() == ("jobs", {"number": 1})
    assert inbox.take_all() == arrived(2, 3, 4)
    assert (inbox.take_all(), inbox.take_one()) == ([], None)


def test_a_loop_is_woken_as_long_as_something_is_here(inbox: Inbox) -> None:
    assert not is_readable(inbox)
    inbox.put(arrived(1))
    inbox.put(arrived(2))
    assert is_readable(inbox)
    inbox.take_all()
    assert not is_readable(inbox)


def test_a_loop_that_does_not_read_never_blocks_who_puts(inbox: Inbox) -> None:
    # More wake-ups than a pipe holds (64 KiB on Linux).
    for number in range(70_000):
        inbox.put(arrived(number))
    assert len(inbox.take_all()) == 70_000
    assert not is_readable(inbox)


def test_a_loop_can_be_woken_for_nothing(inbox: Inbox) -> None:
    inbox.wake()
    assert is_readable(inbox)
    assert inbox.take_all() == []
    assert not is_readable(inbox)


def test_waking_takes_no_lock_that_its_own_thread_may_hold(inbox: Inbox) -> None:
    # A signal handler runs wherever its thread is, also in the middle of `put`.
    with ThreadPoolExecutor() as executor:

        def in_the_middle() -> Iterator[Arrived]:
            executor.submit(inbox.wake).result(DEADLINE)
            yield from arrived(1)

        inbox.put(in_the_middle())  # type: ignore[arg-type]  # iterated while it is put
    assert is_readable(inbox)


def test_waking_neither_blocks_nor_fails(inbox: Inbox) -> None:
    for _ in range(70_000):
        inbox.wake()
    inbox.close()
    inbox.wake()


def test_who_waits_is_woken_by_another_thread(inbox: Inbox) -> None:
    with ThreadPoolExecutor() as executor:
        waiting = executor.submit(inbox.wait, DEADLINE)
        with pytest.raises(TimeoutError):
            waiting.result(0.02)
        inbox.put(arrived(1))
        assert waiting.result(DEADLINE / 5) is True


def test_waiting_ends_at_its_timeout_or_at_once_if_something_is_here(inbox: Inbox) -> None:
    assert inbox.wait(0.001) is False
    inbox.put(arrived(1))
    assert inbox.wait(0) is True


def test_nothing_is_lost_or_doubled_between_threads(inbox: Inbox) -> None:
    taken: list[dict[str, Any]] = []
    finished = threading.Event()

    def take() -> None:
        while not finished.is_set():
            inbox.wait(0.001)
            taken.extend(payload for _, payload in inbox.take_all())

    with ThreadPoolExecutor() as executor:
        taking = executor.submit(take)
        putting = [
            executor.submit(inbox.put, arrived(*range(start, start + 10)))
            for start in range(0, 1_000, 10)
        ]
        for put in putting:
            put.result(DEADLINE)
        finished.set()
        taking.result(DEADLINE)
    taken.extend(payload for _, payload in inbox.take_all())
    assert sorted(payload["number"] for payload in taken) == list(range(1_000))


def test_closing_gives_the_descriptors_back() -> None:
    before = os.listdir("/dev/fd")
    other = Inbox()
    assert len(os.listdir("/dev/fd")) == len(before) + 2
    other.close()
    assert len(os.listdir("/dev/fd")) == len(before)


def test_after_closing_messages_can_still_be_put_and_taken(inbox: Inbox) -> None:
    # A receiver's open poll may end after its channel was closed.
    inbox.close()
    inbox.put(arrived(1))
    assert inbox.take_all() == arrived(1)


def test_closing_twice_closes_no_descriptor_of_somebody_else(inbox: Inbox) -> None:
    inbox.close()
    # Takes the numbers that were just given back.
    other = Inbox()
    inbox.close()
    other.put(arrived(1))
    assert is_readable(other)
    other.close()
