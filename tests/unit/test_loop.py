"""Loop: what fails is one callback, and neither the worker nor what else was due."""

import logging
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import RestartFreqExceeded
from celery.exceptions import WorkerShutdown, WorkerTerminate
from kombu.asynchronous import Hub as KombuHub

from sqs_broker.machine.inbox import Inbox
from sqs_broker.worker.loop import MOST_ERRORS, WITHIN, Hub, Loop, LoopBroken


@pytest.fixture
def hub() -> Iterator[KombuHub]:
    """A hub with something to read, so that no turn sleeps."""
    made, inbox = KombuHub(), Inbox()
    made.add_reader(inbox.fileno(), print)
    inbox.wake()
    yield made
    made.close()
    inbox.close()


def fail(error: BaseException) -> Callable[..., None]:
    def raise_it(*_: Any) -> None:
        raise error

    return raise_it


def soon(hub: KombuHub, callback: Callable[[], None]) -> None:
    hub.call_soon(callback)


def by_timer(hub: KombuHub, callback: Callable[[], None]) -> None:
    hub.call_later(0, callback)


def by_reader(hub: KombuHub, callback: Callable[[], None]) -> None:
    (fd,) = hub.readers
    hub.add_reader(fd, callback)


def on_tick(hub: KombuHub, callback: Callable[[], None]) -> None:
    hub.on_tick.add(callback)


WAYS = [soon, by_timer, by_reader, on_tick]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "error", [BlockingIOError(11, "fork"), ConnectionResetError(), MemoryError(), KeyError()]
)
def test_it_goes_on_after_an_error_wherever_it_comes_from(
    hub: KombuHub, caplog: pytest.LogCaptureFixture, way: Any, error: Exception
) -> None:
    # Celery has those raised that it takes for a lost connection.
    hub.propagate_errors = (OSError,)
    way(hub, fail(error))
    loop, done = Loop(hub), list[int]()
    next(loop)
    hub.on_tick.clear()
    hub.call_soon(done.append, 1)
    next(loop)
    assert done == [1]
    logged = {vars(record).get("event") for record in caplog.records}
    # A timer's error that Celery does not take for that, kombu logs itself.
    assert "loop.error" in logged or (way is by_timer and isinstance(error, KeyError))


def test_an_error_costs_nothing_else_that_was_due(hub: KombuHub) -> None:
    done: list[int] = []
    for number in range(20):
        hub.call_soon(done.append, number)
        if number % 5 == 0:
            hub.call_soon(fail(OSError()))
    next(Loop(hub))
    assert sorted(done) == list(range(20))


@pytest.mark.parametrize("error", [WorkerShutdown(0), WorkerTerminate(1), KeyboardInterrupt()])
@pytest.mark.parametrize("way", WAYS)
def test_what_ends_the_worker_passes_and_the_rest_is_still_due(
    hub: KombuHub, way: Any, error: BaseException
) -> None:
    done: list[int] = []
    way(hub, fail(error))
    loop = Loop(hub)
    for number in range(20):
        hub.call_soon(done.append, number)
    with pytest.raises(type(error)):
        next(loop)
    hub.on_tick.clear()
    by_reader(hub, print)
    next(loop)
    assert sorted(done) == list(range(20))


def test_a_pool_that_has_given_up_ends_the_worker(hub: KombuHub) -> None:
    hub.call_soon(fail(RestartFreqExceeded()))
    with pytest.raises(RestartFreqExceeded):
        next(Loop(hub))


def test_a_loop_that_fails_again_and_again_ends(hub: KombuHub) -> None:
    error = OSError()
    on_tick(hub, fail(error))
    loop = Loop(hub)
    for _ in range(MOST_ERRORS):
        next(loop)
    with pytest.raises(LoopBroken) as raised:
        next(loop)
    assert raised.value.__cause__ is error


def test_errors_that_are_far_between_are_outlived_for_ever(hub: KombuHub) -> None:
    on_tick(hub, fail(OSError()))
    loop = Loop(hub, clock=count(0.0, WITHIN / MOST_ERRORS).__next__)
    for _ in range(10 * MOST_ERRORS):
        next(loop)


def test_callbacks_that_ask_for_others_do_not_keep_the_loop(hub: KombuHub) -> None:
    read: list[int] = []

    def again() -> None:
        hub.call_soon(again)

    by_reader(hub, lambda: read.append(1))
    again()
    next(Loop(hub))
    assert read == [1]


def test_the_event_of_its_lines_is_said_by_who_turns_it(
    hub: KombuHub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.call_soon(fail(OSError()))
    next(Loop(hub, "shutdown.error"))
    (record,) = caplog.records
    assert (vars(record)["event"], record.levelno) == ("shutdown.error", logging.ERROR)


def test_a_hub_is_as_the_one_behind_it_but_for_its_loop() -> None:
    behind = SimpleNamespace(readers={7: print}, propagate_errors=(), create_loop=lambda: iter("a"))
    hub = Hub(behind)
    hub.propagate_errors = (OSError,)
    assert (hub.readers, behind.propagate_errors) == ({7: print}, (OSError,))
    assert isinstance(hub.create_loop(), Loop)
