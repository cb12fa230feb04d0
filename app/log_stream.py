"""A log handler that collects lines, writes several of them together, and never waits long for who
reads them.

Each write releases Python's lock and wakes the threads that wait for it. With one write per line, a
worker that logs two lines per message spent a tenth of its time on these interruptions.
"""

import io
import logging
import os
import select
import socket
import stat
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Protocol
from weakref import WeakSet

from sqs_broker.machine import files

#: Longest time in seconds that a line waits for others. If the process is killed, the lines of this
#: time may be lost.
LINGER = 0.05

#: Most lines that wait for others.
MOST = 500

#: A line of this level or above is written at once, after all waiting lines.
URGENT = logging.WARNING

#: Seconds that a caller waits for a reader that takes nothing. After that it waits no more, until
#: the reader has taken all lines.
PATIENCE = 0.1

#: Longest time in seconds between two attempts of the thread to write, if the reader takes nothing.
PAUSE = 0.5

#: Most lines that wait for a reader that takes nothing. Further lines are dropped and counted.
ROOM = 10_000

#: Most bytes of one write: a pipe that can be written to takes so many at once, and does not mix
#: them with those of other processes (PIPE_BUF, pipe(7)).
ONE_WRITE = select.PIPE_BUF


class Stream(Protocol):
    """What lines are written to: a text stream, or a LogFile."""

    def write(self, text: str, /) -> Any:
        """Write text. Used only if the stream has no file descriptor."""

    def flush(self) -> Any:
        """Write what is buffered."""

    def fileno(self) -> int:
        """The file descriptor. Raises OSError if there is none."""


class LogFile:
    """A file that lines are added to, opened again if it was moved away (as by logrotate).

    As `logging.handlers.WatchedFileHandler` does, which Celery uses for `--logfile`.
    """

    encoding = "utf-8"

    def __init__(self, path: str) -> None:
        """Raises OSError if the file cannot be written to."""
        self._path = Path(path).absolute()
        self._fd = self._open()

    def fileno(self) -> int:
        """The file descriptor of the file that has this path now. Raises OSError."""
        if not self._is_in_place():
            # The old one is closed last: if the new one cannot be opened, it takes the lines.
            with suppress(OSError):
                new = self._open()
                os.close(self._fd)
                self._fd = new
        return self._fd

    def write(self, text: str, /) -> None:
        """Add text. Raises OSError."""
        os.write(self.fileno(), text.encode(self.encoding, "backslashreplace"))

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _open(self) -> int:
        return files.open_log(self._path)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except OSError:
            return False


class GatheringHandler(logging.StreamHandler[Any]):
    """Writes lines in order, within LINGER seconds. Warnings, errors, the lines of a forked child
    and those during the interpreter's exit are written at once. Thread-safe.

    If a pipe, socket or terminal takes nothing, a caller waits at most PATIENCE seconds (of a pipe,
    `unblock` makes this sure). Up to ROOM lines wait, and a line says how many more were dropped.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._begin()
        _handlers.add(self)

    def _begin(self) -> None:
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._is_stuck = False
        self._writer: threading.Thread | None = None
        self._has_lines = threading.Event()
        self._ended = threading.Event()

    def begin_in_child(self) -> None:
        """Forget the waiting lines, which the parent writes, and the parent's thread."""
        self._begin()
        self._ended.set()

    def emit(self, record: logging.LogRecord) -> None:
        """Add the record's line. Never raises. Called under the handler's lock."""
        try:
            self._add(record)
            if record.levelno >= URGENT or len(self._lines) >= MOST or not self._write_soon():
                self.flush()
                if self._lines:
                    self._write_soon()
        except Exception:
            # Broad on purpose: the caller must not fail because its line cannot be logged.
            self.handleError(record)

    def add_lines(self, lines: Iterable[str]) -> None:
        """Add lines that are no warnings and have their ends."""
        self.acquire()
        try:
            room = max(ROOM - len(self._lines), 0)
            encoded = [line.encode("utf-8", "backslashreplace") for line in lines]
            self._lines.extend(encoded[:room])
            self._dropped += len(encoded[room:])
            if len(self._lines) >= MOST or not self._write_soon():
                self.flush()
                if self._lines:
                    self._write_soon()
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line silently: `logging` would print the arguments of the call."""

    def flush(self) -> None:
        """Write the waiting lines now. They are lost if the stream is closed or the disk full, and
        go on waiting if the reader takes nothing."""
        self.acquire()
        try:
            self._write_waiting()
        except (OSError, ValueError):
            # This must end neither the writer's thread nor the caller that logs a warning.
            self._lines.clear()
        finally:
            self.release()

    def close(self) -> None:
        """Write the waiting lines, and end the thread."""
        self._ended.set()
        self._has_lines.set()
        self.flush()
        super().close()

    def _add(self, record: logging.LogRecord) -> None:
        if len(self._lines) >= ROOM:
            self._dropped += 1
            return
        line = self.format(record) + self.terminator
        self._lines.append(line.encode("utf-8", "backslashreplace"))

    def _write_waiting(self) -> None:
        if self._lines and self._has_taken_all(0 if self._is_stuck else PATIENCE) and self._dropped:
            self._add(self._said_dropped())
            self._has_taken_all(PATIENCE)

    def _said_dropped(self) -> logging.LogRecord:
        count, self._dropped = self._dropped, 0
        text = "%d lines of the log are missing here: who reads the log took none for too long."
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, text, (count,), None)
        facts = {"event": "log.dropped", "count": count}
        vars(record).update(facts)
        return record

    def _has_taken_all(self, patience: float) -> bool:
        """Write the lines. Return False if the reader did not take all within `patience` seconds.
        Raises OSError and ValueError."""
        fd = self._fd()
        if fd is None:
            text = b"".join(self._lines).decode()
            self._lines.clear()
            self.stream.write(text)
            self.stream.flush()
            return True
        until = monotonic() + patience
        while self._lines:
            if not (_is_ready(fd, until - monotonic()) and _write_some(fd, self._lines)):
                self._is_stuck = True
                return False
        self._is_stuck = False
        return True

    def _fd(self) -> int | None:
        try:
            return int(self.stream.fileno())
        except (AttributeError, io.UnsupportedOperation):
            return None  # A stream in memory.

    def _write_soon(self) -> bool:
        """Let the thread write. Return False if there is none: after `close`, or in a child."""
        if self._ended.is_set():
            return False
        if self._writer is None:
            writer = threading.Thread(target=self._run, name="log-writer", daemon=True)
            try:
                writer.start()
            except RuntimeError:
                return False  # The interpreter exits, or there are too many threads.
            self._writer = writer
        if not self._has_lines.is_set():
            self._has_lines.set()
        return True

    def _run(self) -> None:
        while not self._ended.is_set():
            self._has_lines.wait()
            if self._is_stuck:
                self._await_reader()
            else:
                self._ended.wait(LINGER)
            self._has_lines.clear()
            self.flush()
            if self._is_stuck:
                self._has_lines.set()

    def _await_reader(self) -> None:
        # Without the handler's lock, which callers need.
        try:
            if (fd := self._fd()) is not None:
                _is_ready(fd, PAUSE)
        except (OSError, ValueError):
            self._ended.wait(PAUSE)  # It is closed: the next write says so.


def unblock(fd: int) -> None:
    """Let a write to this pipe or socket fail if nobody reads it, instead of wait. Pipes are opened
    again for this, so that other programs that write to the same pipe still wait."""
    with suppress(OSError):
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            os.set_blocking(fd, False)
        elif stat.S_ISFIFO(mode):
            new = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.dup2(new, fd)
            os.close(new)


def can_take(fd: int) -> bool:
    """Whether a short text can be written to it without waiting."""
    return _is_ready(fd, 0)


def _is_ready(fd: int, seconds: float) -> bool:
    """Wait until it can be written to; at least look. A closed one is ready: the write says why."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _write_some(fd: int, lines: deque[bytes]) -> bool:
    """Write the first lines, and remove what was taken. Return False if nothing was."""
    pack = [lines.popleft()]
    size = len(pack[0])
    while lines and size + len(lines[0]) <= ONE_WRITE:
        size += len(lines[0])
        pack.append(lines.popleft())
    data = b"".join(pack)
    try:
        taken = _write(fd, data[:ONE_WRITE])
    except BlockingIOError:
        taken = 0
    if taken < len(data):
        lines.appendleft(data[taken:])
    return taken > 0


def _write(fd: int, data: bytes) -> int:
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as connection:
            return connection.send(data, socket.MSG_DONTWAIT)
    return os.write(fd, data)


_handlers: WeakSet[GatheringHandler] = WeakSet()
_held: list[GatheringHandler] = []


def _acquire_all() -> None:
    # A child that is forked during a write would wait for the stream's lock for ever.
    _held.extend(_handlers)
    for handler in _held:
        handler.acquire()


def _release_all() -> None:
    while _held:
        _held.pop().release()


def _begin_in_child() -> None:
    # `logging` itself has replaced the locks in the child.
    while _held:
        _held.pop().begin_in_child()


os.register_at_fork(
    before=_acquire_all, after_in_parent=_release_all, after_in_child=_begin_in_child
)
