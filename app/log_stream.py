"""The stream that log lines go to. Lines of one moment are written together.

A write lets go of Python's lock and wakes whoever waits for it, so that a worker with two lines a
message spent a tenth of its time on being interrupted.
"""

import logging
import os
import threading
from typing import TextIO
from weakref import WeakSet

#: Seconds that a line waits for others at the most: what a killed process may leave unsaid.
LINGER = 0.05

#: Lines that wait at the most.
MOST = 500

#: From this level on a line is written at once, and all that wait before it.
URGENT = logging.WARNING


class GatheringHandler(logging.StreamHandler[TextIO]):
    """Writes lines in order, within LINGER seconds; warnings and errors, what a forked child says,
    and what is said when the interpreter exits, at once. Thread-safe."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._begin()
        _handlers.add(self)

    def _begin(self) -> None:
        self._lines: list[str] = []
        self._writer: threading.Thread | None = None
        self._is_waited_for = threading.Event()
        self._ended = threading.Event()

    def begin_in_child(self) -> None:
        """Forget what waits, which the parent writes, and its thread, which is not here."""
        self._begin()
        self._ended.set()

    def emit(self, record: logging.LogRecord) -> None:
        """Take the record's line. Never raises. Called under the handler's lock."""
        try:
            self._lines.append(self.format(record))
            if record.levelno >= URGENT or len(self._lines) >= MOST or not self._write_soon():
                self.flush()
        except Exception:
            # Broad on purpose: what cannot be logged must not end what it is about.
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line without a word: logging would print the arguments of the call."""

    def flush(self) -> None:
        """Write what waits, now. Lines are lost where the stream is closed, or its disk is full."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("".join(line + self.terminator for line in lines))
            super().flush()
        except (OSError, ValueError):
            # Neither the writer's thread nor who logs a warning may end of it.
            return
        finally:
            self.release()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._ended.set()
        self._is_waited_for.set()
        self.flush()
        super().close()

    def _write_soon(self) -> bool:
        """Let the thread write; False where there is none, once closed and in a child."""
        if self._ended.is_set():
            return False
        if self._writer is None:
            writer = threading.Thread(target=self._run, name="log-writer", daemon=True)
            try:
                writer.start()
            except RuntimeError:
                return False  # The interpreter ends, or there are too many threads.
            self._writer = writer
        if not self._is_waited_for.is_set():
            self._is_waited_for.set()
        return True

    def _run(self) -> None:
        while not self._ended.is_set():
            self._is_waited_for.wait()
            self._ended.wait(LINGER)
            self._is_waited_for.clear()
            self.flush()


_handlers: WeakSet[GatheringHandler] = WeakSet()
_held: list[GatheringHandler] = []


def _hold_all() -> None:
    # A child that is forked in the middle of a write would wait for the stream for ever.
    _held.extend(_handlers)
    for handler in _held:
        handler.acquire()


def _let_go_of_all() -> None:
    while _held:
        _held.pop().release()


def _begin_in_child() -> None:
    # logging itself has made the locks anew.
    while _held:
        _held.pop().begin_in_child()


os.register_at_fork(
    before=_hold_all, after_in_parent=_let_go_of_all, after_in_child=_begin_in_child
)
