"""A run in the function's own process ends at its limits, and leaves nothing behind."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from sqs_broker.function.time_limit import HardLimit, Limits, Watch

pytestmark = pytest.mark.usefixtures("no_collection")


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Signals that reach the handler which this process had before."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    yield seen
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def last() -> threading.Event:
    """Whether the last time has come."""
    return threading.Event()


@pytest.fixture
def watch(last: threading.Event) -> Watch:
    return Watch(last.set)


def test_a_result_and_an_exception_of_the_work_come_through(watch: Watch) -> None:
    assert watch.run(lambda: 7, Limits()) == 7
    with pytest.raises(ZeroDivisionError):
        watch.run(lambda: 1 // 0, Limits())
    assert not watch.has_struck


def test_the_soft_limit_interrupts_a_call_that_waits(watch: Watch) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        watch.run(lambda: time.sleep(30), Limits(soft=0.05, hard=10))
    assert watch.has_struck


def test_the_hard_limit_is_raised_until_the_run_ends(watch: Watch) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        while len(caught) < 3:
            try:
                time.sleep(30)
            except BaseException as exc:
                caught.append(exc)

    watch.run(work, Limits(soft=0.05, hard=1, last=30))
    assert [type(exc) for exc in caught] == [SoftTimeLimitExceeded, HardLimit, HardLimit]


def test_a_run_without_a_hard_limit_is_interrupted_once(watch: Watch) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        for seconds in (30, 0.6):
            try:
                time.sleep(seconds)
            except BaseException as exc:
                caught.append(exc)

    watch.run(work, Limits(soft=0.05))
    assert [type(exc) for exc in caught] == [SoftTimeLimitExceeded]


def test_the_last_time_comes_while_the_work_goes_on(watch: Watch, last: threading.Event) -> None:
    assert watch.run(lambda: last.wait(30), Limits(last=0.05))


def test_the_last_time_does_not_come_after_the_work(watch: Watch, last: threading.Event) -> None:
    watch.run(lambda: None, Limits(last=0.05))
    assert not last.wait(0.2)


def test_the_handler_of_the_signal_is_that_of_before(watch: Watch, handled: list[int]) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        watch.run(lambda: time.sleep(30), Limits(soft=0.05))
    assert handled == []
    os.kill(os.getpid(), signal.SIGUSR1)
    assert handled == [signal.SIGUSR1]


def test_no_signal_is_left_over_from_runs_that_end_at_their_limit(
    watch: Watch, handled: list[int]
) -> None:
    def work(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(600):
            # The work ends at about the same time as its limit comes.
            with suppress(SoftTimeLimitExceeded, HardLimit):
                limits = Limits(soft=0.0008, hard=0.0009)
                watch.run(partial(work, 0.0008 + number % 300 / 1e6), limits)
    finally:
        sys.setswitchinterval(interval)
    assert handled == []


def test_in_another_thread_there_is_only_the_last_time(watch: Watch, last: threading.Event) -> None:
    ended: list[bool] = []

    def work() -> None:
        ended.append(watch.run(lambda: last.wait(30), Limits(soft=0.01, hard=0.02, last=0.1)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert ended == [True]
    assert not watch.has_struck
