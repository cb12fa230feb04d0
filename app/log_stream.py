"""The stream that log lines go to. Lines of one moment are written together.

A write lets go of Python's lock and wakes whoever waits for it, so that a worker with two lines a
message spent a tenth of its time on being interrupted.
"""

import logging
import os
import threading
from typing import TextIO

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
        self._lines: list[str] = []
        self._made_in = os.getpid()
        self._writer: threading.Thread | None = None
        self._is_waited_for = threading.Event()
        self._ended = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Take the record's line. Called under the handler's lock."""
        try:
            line = self.format(record)
        except Exception:
            # Broad on purpose: what cannot be logged must not end what it is about.
            self.handleError(record)
            return
        self._forget_parents_lines()
        self._lines.append(line)
        if record.levelno >= URGENT or len(self._lines) >= MOST or not self._write_soon():
            self.flush()

    def flush(self) -> None:
        """Write what waits, now."""
        with self.lock or threading.Lock():
            self._forget_parents_lines()
            lines, self._lines = self._lines, []
            try:
                if lines:
                    self.stream.write("".join(line + self.terminator for line in lines))
                super().flush()
            except ValueError:
                # The stream is closed, which logging.shutdown takes in its stride too.
                return

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._ended.set()
        self._is_waited_for.set()
        self.flush()
        super().close()

    def _write_soon(self) -> bool:
        """Let the thread write; False where there is none, in a child and once closed."""
        if self._ended.is_set() or self._made_in != os.getpid():
            return False
        if self._writer is None:
            self._writer = threading.Thread(target=self._run, name="log-writer", daemon=True)
            self._writer.start()
        if not self._is_waited_for.is_set():
            self._is_waited_for.set()
        return True

    def _run(self) -> None:
        while not self._ended.is_set():
            self._is_waited_for.wait()
            self._ended.wait(LINGER)
            self._is_waited_for.clear()
            self.flush()

    def _forget_parents_lines(self) -> None:
        # A fork copies what waits, and the parent writes it.
        if self._made_in != os.getpid() and not self._ended.is_set():
            self._ended.set()
            self._lines = []
