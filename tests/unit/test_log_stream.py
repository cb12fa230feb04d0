"""GatheringHandler: lines of one moment are one write, and none is late, lost, or written twice."""

import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.log_stream import MOST, GatheringHandler
from devstack.waiting import wait_until
from tests.unit.conftest import Machine

#: Seconds that nothing here comes near to.
DEADLINE = 5


class Stream(io.StringIO):
    """Counts what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.is_full = False

    def write(self, text: str) -> int:
        self.writes += 1
        if self.is_full:
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def handler(stream: Stream) -> Iterator[GatheringHandler]:
    made = GatheringHandler(stream)
    yield made
    made.close()


Log = Callable[..., None]


@pytest.fixture
def log(handler: GatheringHandler) -> Log:
    def say(text: object, level: int = logging.INFO, *args: Any) -> None:
        handler.handle(logging.LogRecord("app.test", level, __file__, 1, text, args, None))

    return say


def test_lines_of_one_moment_are_one_write_in_their_order(stream: Stream, log: Log) -> None:
    for number in range(100):
        log(str(number))
    wait_until(lambda: len(stream.lines) == 100, DEADLINE, "all lines")
    assert stream.lines == [str(number) for number in range(100)]
    # One, or some more where the thread woke between two lines.
    assert stream.writes <= 10


def test_a_line_is_written_soon_though_nothing_follows(stream: Stream, log: Log) -> None:
    for text in ("one", "two"):
        log(text)
        wait_until(lambda text=text: text in stream.lines, DEADLINE, text)


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR, logging.CRITICAL])
def test_a_warning_is_written_at_once_after_what_waited(
    stream: Stream, log: Log, level: int
) -> None:
    log("before")
    log("warning", level)
    assert stream.lines == ["before", "warning"]


def test_more_lines_than_may_wait_are_written_at_once(stream: Stream, log: Log) -> None:
    for number in range(MOST):
        log(str(number))
    assert len(stream.lines) == MOST


def test_flushing_writes_what_waits(stream: Stream, handler: GatheringHandler, log: Log) -> None:
    log("line")
    handler.flush()
    assert stream.lines == ["line"]


def test_closing_writes_what_waits_and_ends_the_thread(
    stream: Stream, handler: GatheringHandler, log: Log
) -> None:
    before = set(threading.enumerate())
    log("line")
    (writer,) = set(threading.enumerate()) - before
    handler.close()
    assert stream.lines == ["line"]
    writer.join(DEADLINE)
    assert not writer.is_alive()


def test_what_is_said_after_the_close_is_written_at_once(
    stream: Stream, handler: GatheringHandler, log: Log
) -> None:
    handler.close()
    log("late")
    assert stream.lines == ["late"]


def test_a_forked_child_writes_its_own_lines_at_once_and_none_of_its_parent(
    handler: GatheringHandler, log: Log
) -> None:
    reading, writing = os.pipe()
    handler.setStream(os.fdopen(writing, "w"))
    log("parent")
    if (child := os.fork()) == 0:
        log("child")
        # As it would end: with what waits.
        handler.flush()
        os._exit(0)
    os.waitpid(child, 0)
    handler.flush()
    handler.stream.close()
    with os.fdopen(reading) as read:
        assert sorted(read.read().splitlines()) == ["child", "parent"]


def test_a_child_forked_while_others_write_can_write_too(handler: GatheringHandler) -> None:
    reading, writing = os.pipe()
    # Buffered, as stderr is: its lock is copied by a fork, and nobody would let go of it.
    handler.setStream(os.fdopen(writing, "w"))
    stopping = threading.Event()

    def say(text: str) -> None:
        handler.handle(logging.LogRecord("app.test", logging.ERROR, "", 1, text, (), None))

    def chatter() -> None:
        while not stopping.is_set():
            say("parent")

    def read() -> None:
        while os.read(reading, 65_536):
            pass

    threads = [threading.Thread(target=work) for work in (chatter, chatter, read)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            if (child := os.fork()) == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(DEADLINE)
                say("child")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stopping.set()
        threads[0].join()
        threads[1].join()
        handler.stream.close()
        threads[2].join()
        os.close(reading)


def test_what_cannot_be_made_a_line_harms_no_other(
    stream: Stream, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", printed := io.StringIO())
    log("%d", logging.INFO, "no number")
    log("next", logging.WARNING)
    assert stream.lines == ["next"]
    # logging itself would print the arguments.
    assert printed.getvalue() == ""


def test_a_stream_that_is_closed_ends_nobody(
    stream: Stream, handler: GatheringHandler, log: Log
) -> None:
    stream.close()
    log("line", logging.ERROR)
    handler.flush()


def test_a_full_disk_ends_neither_who_logs_nor_the_writer(stream: Stream, log: Log) -> None:
    stream.is_full = True
    log("lost", logging.WARNING)
    log("lost too")
    wait_until(lambda: stream.writes == 2, DEADLINE, "the writer's try")
    stream.is_full = False
    log("written")
    wait_until(lambda: stream.lines == ["written"], DEADLINE, "the next line")


def test_a_line_is_written_at_once_where_no_thread_can_be_started(
    stream: Stream, log: Log, machine: Machine
) -> None:
    machine.has_no_room_for("log-writer")
    log("line")
    assert stream.lines == ["line"]
