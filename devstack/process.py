"""A process that ends with the one that started it, whatever way that one ends."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from devstack import guard
from devstack.errors import StackError
from sqs_broker.machine import files

#: Seconds beyond its grace that a guard may take to kill and collect what is left.
GUARD_MARGIN = 10


class Process:
    """A command under its guard (see guard.py), with its output in a log file.

    As a context manager it stops at the end. `keep_open` are descriptors the command inherits;
    a lock among them is held until the last of its processes is gone.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        grace: float,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = log
        self._grace = grace
        with _create(log) as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, "--grace", str(grace), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=directory,
                # Ctrl+C in the terminal reaches the parent alone, which stops things in order.
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def guard_pid(self) -> int:
        return self._guard.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._guard.poll()

    def check(self) -> None:
        """Raises StackError with the end of the log if it ended by itself."""
        if self.exit_status is not None:
            raise StackError(
                f"{self.name} ended with status {self.exit_status}: {self.last_words()} "
                f"(log: {self.log})"
            )

    def last_words(self) -> str:
        """The last line it logged."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def wait(self, seconds: float) -> int:
        """The exit status. Raises StackError if it is not there after so many seconds."""
        try:
            return self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            raise StackError(f"{self.name} is not done after {seconds:g} s.") from None

    def stop(self) -> None:
        """Stop it and everything it started; returns when all of it is gone."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(self._grace + GUARD_MARGIN)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()


def _create(log: Path) -> IO[bytes]:
    try:
        return files.create(log, files.PRIVATE)
    except OSError as exc:
        raise StackError(f"{log} cannot be written ({exc.strerror or exc}).") from None
