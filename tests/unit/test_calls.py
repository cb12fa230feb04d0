"""Calls: each has a deadline, and what ends after it is passed on; threads are reused and end."""

import os
import signal
import threading
from contextvars import ContextVar

import pytest

from sqs_broker.machine.calls import Calls, Full, Overdue
from tests.services import wait_until
from tests.unit.conftest import Machine

#: Seconds that nothing here comes near to.
DEADLINE = 30

#: Seconds after which what has not happened does not happen.
PATIENCE = 0.05


def test_a_call_returns_or_raises_what_it_does() -> None:
    calls = Calls()
    assert calls.run(lambda: 7, DEADLINE) == 7
    with pytest.raises(ZeroDivisionError):
        calls.run(lambda: 1 // 0, DEADLINE)
    with pytest.raises(SystemExit):
        calls.run(lambda: exec("raise SystemExit"), DEADLINE)


def test_one_thread_makes_the_calls_that_follow_each_other() -> None:
    calls = Calls()
    assert len({calls.run(threading.get_ident, DEADLINE) for _ in range(100)}) == 1


def test_calls_at_the_same_time_have_a_thread_each() -> None:
    calls, both = Calls(), threading.Barrier(2)
    other = threading.Thread(target=calls.run, args=(lambda: both.wait(DEADLINE), DEADLINE))
    other.start()
    calls.run(lambda: both.wait(DEADLINE), DEADLINE)
    other.join(DEADLINE)
    assert not other.is_alive()


def test_a_call_is_left_at_its_deadline_and_its_late_result_is_passed_on() -> None:
    calls, go, late = Calls(), threading.Event(), list[bool]()
    with pytest.raises(Overdue):
        calls.run(lambda: go.wait(DEADLINE), PATIENCE, late.append)
    assert calls.run(lambda: True, DEADLINE)  # Meanwhile others are made.
    assert late == []
    go.set()
    wait_until(lambda: late, DEADLINE, "the late result")
    assert late == [True]


def test_the_result_of_a_call_in_time_is_not_passed_on_too() -> None:
    late: list[int] = []
    assert Calls().run(lambda: 7, DEADLINE, late.append) == 7
    assert late == []


def test_an_exception_of_the_callers_own_leaves_the_call() -> None:
    # As Celery's soft time limit, which a signal handler raises.
    class Limit(Exception):
        pass

    calls, go, late = Calls(), threading.Event(), list[bool]()

    def raise_limit(*_: object) -> None:
        raise Limit

    before = signal.signal(signal.SIGALRM, raise_limit)
    try:
        # Once the call waits, also on a busy machine.
        signal.setitimer(signal.ITIMER_REAL, 10 * PATIENCE)
        with pytest.raises(Limit):
            calls.run(lambda: go.wait(DEADLINE), DEADLINE, late.append)
    finally:
        signal.signal(signal.SIGALRM, before)
    go.set()
    wait_until(lambda: late, DEADLINE, "the late result")


def test_no_more_calls_are_made_while_too_many_hang() -> None:
    calls, go = Calls(most_left=2), threading.Event()
    for _ in range(2):
        with pytest.raises(Overdue):
            calls.run(lambda: go.wait(DEADLINE), 0)
    with pytest.raises(Full):
        calls.run(lambda: 7, DEADLINE)
    go.set()

    def is_possible() -> bool:
        try:
            return calls.run(lambda: True, DEADLINE)
        except Full:
            return False

    wait_until(is_possible, DEADLINE, "a call")


def test_a_thread_without_calls_ends() -> None:
    calls = Calls(idle=PATIENCE)
    thread = calls.run(threading.current_thread, DEADLINE)
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert calls.run(lambda: 7, DEADLINE) == 7


def test_a_call_has_the_context_of_its_caller() -> None:
    # Tracing libraries keep the current span there.
    span: ContextVar[str] = ContextVar("span", default="none")
    span.set("mine")
    assert Calls().run(span.get, DEADLINE) == "mine"


def test_calls_that_have_begun_run_at_the_same_time_and_are_waited_for_in_any_order() -> None:
    calls, both = Calls(), threading.Barrier(2)
    first, second = (calls.begin(lambda: both.wait(DEADLINE)) for _ in range(2))
    assert {second(), first()} == {0, 1}
    with pytest.raises(ZeroDivisionError):
        calls.begin(lambda: 1 // 0)()


def test_without_a_thread_the_caller_makes_the_call(machine: Machine) -> None:
    machine.has_no_room_for("sqs-call")
    calls = Calls()
    assert calls.run(threading.get_ident, DEADLINE) == threading.get_ident()
    assert calls.begin(threading.get_ident)() == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        calls.run(lambda: 1 // 0, DEADLINE)


def test_the_child_of_a_fork_makes_its_calls_on_threads_of_its_own() -> None:
    calls = Calls()
    calls.run(lambda: 7, DEADLINE)  # Its thread waits for the next call, and the child has none.
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(calls.run(lambda: 7, DEADLINE))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
