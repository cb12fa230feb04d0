"""Threads: a machine that has no room for one more is a passing fault, and its caller is told."""

import logging
import threading
from time import monotonic

import pytest

from sqs_broker.errors import NoThread
from sqs_broker.machine import threads
from tests.unit.conftest import Machine

#: Seconds that nothing here comes near to.
DEADLINE = 5


def test_a_thread_has_its_name_and_does_not_keep_the_process() -> None:
    seen: list[threading.Thread] = []
    thread = threads.start(lambda *_: seen.append(threading.current_thread()), "one", 1, 2)
    assert thread is not None
    thread.join(DEADLINE)
    assert (seen, thread.name, thread.daemon) == ([thread], "one", True)


@pytest.mark.parametrize("fault", [RuntimeError("can't start new thread"), MemoryError()])
def test_where_there_is_no_room_the_caller_is_told_and_the_log_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    def fail(_: threading.Thread) -> None:
        raise fault

    monkeypatch.setattr(threading.Thread, "start", fail)
    # Names of this test's own: another test may have said theirs.
    names = [f"{number} for {fault!r}" for number in (1, 2)]
    assert [threads.start(print, name) for name in names * 2] == [None] * 4
    for name, record in zip(names, caplog.records, strict=True):
        assert f"thread {name} ({type(fault).__name__})" in record.getMessage()
        assert (record.levelno, vars(record)["event"]) == (logging.WARNING, "thread.failed")


def test_what_is_insisted_on_is_tried_until_there_is_room(machine: Machine) -> None:
    ran = threading.Event()
    machine.has_no_room_for("one", times=3)
    threads.insist(ran.set, "one")
    assert ran.wait(DEADLINE)


def test_what_is_insisted_on_is_given_up_in_the_end_with_what_to_do(machine: Machine) -> None:
    machine.has_no_room_for("one")
    began = monotonic()
    with pytest.raises(NoThread, match=r"cannot start the thread one\. Raise its limit"):
        threads.insist(print, "one")
    assert 0.05 <= monotonic() - began < DEADLINE
