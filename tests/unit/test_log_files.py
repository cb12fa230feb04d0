"""Where the log goes: to a file, also after it was moved away; and to a reader that may hang."""

import fcntl
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from celery import Celery

from app.errors import SettingsError
from app.log_stream import PATIENCE, ROOM, GatheringHandler, LogFile, unblock
from app.logs import JsonLines, redirect_prints
from app.prints import LONGEST, Prints
from app.startup import check_log_file

#: Seconds that nothing here comes near to.
DEADLINE = 5

Log = Callable[..., None]


def logging_to(handler: GatheringHandler) -> Log:
    def log(text: object, level: int = logging.INFO) -> None:
        handler.handle(logging.LogRecord("app.test", level, __file__, 1, text, (), None))

    return log


# A file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    """Logs to the file."""
    handler = GatheringHandler(LogFile(str(path)))
    yield logging_to(handler)
    handler.close()


def test_lines_go_to_the_file_after_those_that_are_there(path: Path, log: Log) -> None:
    path.write_text("before\n")
    log("line")
    log("é \ud800", logging.WARNING)
    assert path.read_text().splitlines() == ["before", "line", "é \\ud800"]


def test_after_the_file_was_moved_away_lines_go_to_a_new_one(path: Path, log: Log) -> None:
    log("old", logging.WARNING)
    moved = path.rename(path.with_suffix(".1"))
    log("new", logging.WARNING)
    assert (moved.read_text(), path.read_text()) == ("old\n", "new\n")


def test_after_the_file_was_deleted_lines_go_to_a_new_one(path: Path, log: Log) -> None:
    log("old", logging.WARNING)
    path.unlink()
    log("new", logging.WARNING)
    assert path.read_text() == "new\n"


def test_as_long_as_no_new_file_can_be_opened_the_old_one_takes_the_lines(
    path: Path, log: Log, tmp_path: Path
) -> None:
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    log("line", logging.WARNING)
    assert (moved / path.name).read_text() == "line\n"
    moved.rename(tmp_path)


@pytest.mark.parametrize(("mode", "is_followed"), [(0o700, True), (0o1777, False)])
def test_a_link_is_followed_unless_other_users_may_have_made_it(
    path: Path, tmp_path: Path, mode: int, is_followed: bool
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    path.symlink_to(other / "target")
    tmp_path.chmod(mode)
    try:
        LogFile(str(path)).close()
    except OSError:
        assert not is_followed
    assert (other / "target").exists() == is_followed


def test_a_log_file_that_cannot_be_written_to_is_one_line_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        check_log_file(str(tmp_path / "none" / "%n.log"), "w1@host")
    assert "--logfile" in raised.value.message
    assert "\n" not in raised.value.message


def test_the_name_of_the_log_file_is_completed_as_celery_does(tmp_path: Path) -> None:
    check_log_file(str(tmp_path / "%n-%h%I.log"), "w1@host")
    assert [file.name for file in tmp_path.iterdir()] == ["w1-host.log"]


# A reader that hangs


class Reader:
    """A pipe or a socket, and who reads it: nobody, until `read`."""

    def __init__(self, reading: Any, writing: Any) -> None:
        self.stream = writing
        self._reading = reading

    def read(self, until: str) -> list[str]:
        """All lines, up to the one that contains this text."""
        lines: list[str] = []
        while not (lines and until in lines[-1]):
            lines.append(self._reading.readline().rstrip("\n"))
        return lines


@pytest.fixture(params=["pipe", "unblocked pipe", "socket"])
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    """A reader that takes nothing."""
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        with ours, theirs, ours.makefile() as reading, theirs.makefile("w") as writing:
            yield Reader(reading, writing)
        return
    reading_fd, writing_fd = os.pipe()
    fcntl.fcntl(writing_fd, fcntl.F_SETPIPE_SZ, 8192)
    if request.param == "unblocked pipe":
        unblock(writing_fd)
    with os.fdopen(reading_fd) as reading, os.fdopen(writing_fd, "w") as writing:
        yield Reader(reading, writing)


@pytest.fixture
def to_reader(reader: Reader) -> Iterator[GatheringHandler]:
    """A handler that writes to this reader."""
    handler = GatheringHandler(reader.stream)
    handler.setFormatter(JsonLines())
    yield handler
    handler.close()


def within_deadline(work: Callable[[], None]) -> None:
    """Do it on a thread, which must end."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_who_logs_does_not_wait_for_a_reader_that_hangs(
    reader: Reader, to_reader: GatheringHandler
) -> None:
    log = logging_to(to_reader)

    def work() -> None:
        for number in range(5_000):
            log(f"line {number} " + "x" * 200, logging.WARNING)

    within_deadline(work)
    lines = [json.loads(line)["message"] for line in reader.read("line 4999")]
    assert [int(line.split()[1]) for line in lines] == list(range(5_000))


def test_lines_beyond_the_bound_are_dropped_and_counted(
    reader: Reader, to_reader: GatheringHandler
) -> None:
    # A socket takes some before it is full.
    log, more = logging_to(to_reader), 2_000
    said = ROOM + more

    def work() -> None:
        for _ in range(said):
            log("x" * 200)

    within_deadline(work)
    lines = [json.loads(line) for line in reader.read("log.dropped")]
    assert lines[-1]["level"] == "warning"
    assert 0 < lines[-1]["count"] <= more
    assert len(lines) - 1 + lines[-1]["count"] == said
    log("after", logging.WARNING)
    assert json.loads(reader.read("after")[-1])["message"] == "after"


def test_a_line_longer_than_a_pipe_takes_at_once_is_written_whole(
    reader: Reader, to_reader: GatheringHandler
) -> None:
    log = logging_to(to_reader)
    log("x" * 50_000, logging.WARNING)
    log("last", logging.WARNING)
    first, last = map(json.loads, reader.read("last"))
    assert (first["message"], last["message"]) == ("x" * 50_000, "last")


def test_closing_does_not_wait_for_a_reader_that_hangs(
    reader: Reader, to_reader: GatheringHandler
) -> None:
    log = logging_to(to_reader)
    for _ in range(2_000):
        log("x" * 200)
    began = monotonic()
    within_deadline(to_reader.close)
    assert monotonic() - began < 20 * PATIENCE


# Prints


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """What is printed."""
    logger, found = logging.getLogger(Prints.__module__), list[logging.LogRecord]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", found.append)
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def printed(records: list[logging.LogRecord]) -> Callable[[], list[str]]:
    """The lines of the log, each of which was printed."""

    def lines() -> list[str]:
        for record in records:
            assert (vars(record)["event"], record.levelname) == ("print", "INFO")
        return [record.getMessage() for record in records]

    return lines


def test_each_line_of_a_print_is_a_line_of_the_log(printed: Callable[[], list[str]]) -> None:
    out = Prints()
    print("a", 1, "%s", file=out)
    print("b\nc\n", file=out)
    assert printed() == ["a 1 %s", "b", "c"]


def test_what_is_no_whole_line_is_logged_when_it_is_flushed(
    printed: Callable[[], list[str]],
) -> None:
    out = Prints()
    print("a", end="", file=out)
    assert printed() == []
    print("b", end="", flush=True, file=out)
    print("c", file=out)
    assert printed() == ["ab", "c"]


def test_a_long_print_is_several_lines(printed: Callable[[], list[str]]) -> None:
    out = Prints()
    print("x" * (2 * LONGEST + 1), file=out)
    assert list(map(len, printed())) == [LONGEST, LONGEST, 1]


def test_what_a_task_prints_last_is_a_line_of_its_own_although_it_has_no_end(
    printed: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # For the end of the test.
    celery = Celery("printing", set_as_current=False)

    @celery.task
    def talk(n: int) -> None:
        sys.stdout.write(f"{n}")
        sys.stderr.write(f"error {n}")
        if n == 2:
            raise ValueError

    redirect_prints(celery.conf)
    for n in (1, 2, 3):
        talk.apply((n,))
    monkeypatch.undo()
    assert printed() == ["1", "error 1", "2", "error 2", "3", "error 3"]


def test_bytes_cannot_be_printed_as_to_any_text_stream() -> None:
    with pytest.raises(TypeError, match="must be str"):
        Prints().write(b"x")  # type: ignore[arg-type]  # what is tested
