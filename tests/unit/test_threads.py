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


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if vars(r).get("event") == "thread.failed"]


def test_a_thread_has_its_name_and_does_not_keep_the_process() -> None:
    seen: list[threading.Thread] = []
    thread = threads.start(lambda *_: seen.append(threading.current_thread()), "one", 1, 2)
    assert thread is not None
    thread.join(DEADLINE)
    assert (seen, thread.name, thread.daemon) == ([thread], "one", True)


@pytest.mark.parametrize("fault", [RuntimeError("can't start new thread"), MemoryError()])
def test_where_there_is_no_room_the_caller_is_told(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(_: threading.Thread) -> None:
        raise fault

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert threads.start(print, "one") is None


def test_it_is_said_once_a_minute_with_its_name_and_class(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr("sqs_broker.machine.threads.monotonic", lambda: now[0])
    machine.has_no_room_for("")
    for now[0] in (0.0, 20.0, 59.0, 61.0, 100.0):
        assert threads.start(print, "said-1") is None
    assert threads.start(print, "said-2") is None
    room = "Could not start the thread"
    assert said(caplog) == [
        f"{room} {name} (RuntimeError): this machine is short of threads or memory. Trying again."
        for name in ("said-1", "said-1", "said-2")
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


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
