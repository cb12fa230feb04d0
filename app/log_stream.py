"""A log handler that collects lines and writes several of them together.

Each write releases Python's lock and wakes the threads that wait for it. With one write per line, a
worker that logs two lines per message spent a tenth of its time on these interruptions.
"""

import logging
import os
import threading
from typing import TextIO
from weakref import WeakSet

#: Longest time in seconds that a line waits for others. If the process is killed, the lines of this
#: time may be lost.
LINGER = 0.05

#: Most lines that wait.
MOST = 500

#: A line of this level or above is written at once, after all waiting lines.
URGENT = logging.WARNING


class GatheringHandler(logging.StreamHandler[TextIO]):
    """Writes lines in order, within LINGER seconds. Warnings, errors, the lines of a forked child
    and those during the interpreter's exit are written at once. Thread-safe."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._begin()
        _handlers.add(self)

    def _begin(self) -> None:
        self._lines: list[str] = []
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
            self._lines.append(self.format(record))
            if record.levelno >= URGENT or len(self._lines) >= MOST or not self._write_soon():
                self.flush()
        except Exception:
            # Broad on purpose: the caller must not fail because its line cannot be logged.
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line silently: `logging` would print the arguments of the call."""

    def flush(self) -> None:
        """Write the waiting lines now. They are lost if the stream is closed or the disk full."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("".join(line + self.terminator for line in lines))
            super().flush()
        except (OSError, ValueError):
            # This must end neither the writer's thread nor the caller that logs a warning.
            return
        finally:
            self.release()

    def close(self) -> None:
        """Write the waiting lines, and end the thread."""
        self._ended.set()
        self._has_lines.set()
        self.flush()
        super().close()

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
            self._ended.wait(LINGER)
            self._has_lines.clear()
            self.flush()


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
