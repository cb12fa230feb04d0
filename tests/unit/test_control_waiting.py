"""What waits for a consumer of the control plane is bounded: events by their age and number."""

import threading
from typing import Any

import pytest

from devstack.waiting import wait_until
from sqs_broker.control.waiting import (
    GATHER,
    MOST_EVENTS,
    MOST_MESSAGES,
    OLDEST,
    SELDOM,
    Read,
    Waiting,
)

#: Seconds that nothing here comes near to.
DEADLINE = 30


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waiting(clock: Clock) -> Waiting:
    return Waiting(clock)


def enter(waiting: Waiting, events: int) -> Read:
    read = waiting.enter("a message", events, lambda: True)
    assert read is not None
    return read


def counts(caplog: pytest.LogCaptureFixture) -> list[int]:
    found: list[Any] = [r for r in caplog.records if getattr(r, "event", "") == "control.late"]
    return [record.count for record in found]


def test_an_event_is_passed_on_until_it_is_too_old(waiting: Waiting, clock: Clock) -> None:
    early, late = enter(waiting, 1), enter(waiting, 1)
    clock.now += OLDEST
    assert waiting.leave(early)
    clock.now += 0.1
    assert not waiting.leave(late)


def test_commands_and_replies_are_passed_on_however_old_they_are(
    waiting: Waiting, clock: Clock
) -> None:
    command = enter(waiting, 0)
    clock.now += 100 * OLDEST
    assert waiting.leave(command)


def test_a_reader_never_waits_for_the_consumer_of_events(waiting: Waiting) -> None:
    first = enter(waiting, MOST_EVENTS)
    assert waiting.enter("a message", 1, lambda: True) is None
    waiting.leave(first)
    assert enter(waiting, 1).events == 1


def test_a_list_of_more_events_than_may_wait_is_passed_on_if_nothing_else_waits(
    waiting: Waiting,
) -> None:
    assert waiting.leave(enter(waiting, MOST_EVENTS + 1))


def test_all_events_that_were_dropped_are_counted_in_one_line(
    waiting: Waiting, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    reads = [enter(waiting, 7) for _ in range(3)]
    clock.now += OLDEST + 1
    for read in reads:
        waiting.leave(read)
    assert counts(caplog) == []
    full = enter(waiting, MOST_EVENTS)
    waiting.enter("a message", 5, lambda: True)
    clock.now += GATHER
    waiting.leave(full)
    assert counts(caplog) == [26]


def test_a_consumer_that_stays_too_slow_is_logged_seldom(
    waiting: Waiting, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        for _ in range(int(SELDOM)):
            read = enter(waiting, 1)
            clock.now += OLDEST + 1
            waiting.leave(read)
    seconds = 2 * SELDOM * (OLDEST + 1)
    assert 1 < len(counts(caplog)) <= seconds / SELDOM + 1


def test_what_was_dropped_is_logged_when_the_consumer_goes(
    waiting: Waiting, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    read = enter(waiting, 2)
    clock.now += OLDEST + 1
    waiting.leave(read)
    waiting.unwanted()
    assert counts(caplog) == [2]


def test_a_reader_of_commands_waits_for_room_and_for_nobody_who_is_gone(waiting: Waiting) -> None:
    reads = [enter(waiting, 0) for _ in range(MOST_MESSAGES)]
    wanted, got = [True], list[Read | None]()

    def read() -> None:
        got.append(waiting.enter("another", 0, lambda: bool(wanted)))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting.leave(reads[0])
    wait_until(lambda: len(got) == 1, DEADLINE, "one that finds room")
    wanted.clear()
    waiting.unwanted()
    for thread in threads:
        thread.join(DEADLINE)
    assert [read is None for read in got] == [False, True]
