"""A process that ends when the process that started it ends, however that happens."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from devstack import guard, ports
from devstack.errors import StackError
from devstack.waiting import wait_until
from sqs_broker.machine import files

#: Seconds after the grace period in which a guard kills and reaps the remaining processes.
GUARD_MARGIN = 10

#: The exit status of a command that SIGKILL has ended.
KILLED = 128 + signal.SIGKILL


class Process:
    """A command under its guard (see guard.py), with its output in a log file.

    As a context manager, it stops at the end of the block. The command inherits the descriptors
    `keep_open`. If one of them is a lock, it is held until the last process of the command has
    ended.
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
                # Ctrl+C in the terminal reaches only the parent, which stops everything in order.
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
        """The exit status of the command; None while it runs."""
        return self._guard.poll()

    def check(self) -> None:
        """Raise StackError if the command has ended, with the last line of the log. A command that
        was killed could write no last line."""
        status = self.exit_status
        if status is not None:
            is_killed = status == KILLED
            why = "something killed it, or memory ran out" if is_killed else self.last_words()
            raise StackError(f"{self.name} ended with status {status}: {why} (log: {self.log})")

    def wait_until_listening(self, port: int, seconds: float) -> None:
        """Wait until a server accepts connections on this port. Raises StackError if the command
        ends, or does not listen within `seconds`."""

        def listens() -> bool:
            self.check()
            return ports.is_listening(port)

        try:
            wait_until(listens, seconds, f"{self.name}, listening")
        except TimeoutError as exc:
            raise StackError(f"{exc} (log: {self.log})") from None

    def last_words(self) -> str:
        """The last line of the log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its log is empty"

    def wait(self, seconds: float) -> int:
        """Wait for the exit status. Raises StackError if the command still runs after `seconds`."""
        try:
            return self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            raise StackError(f"{self.name} still runs after {seconds:g} s.") from None

    def stop(self) -> None:
        """Stop the command and all its descendants. Returns when they have ended."""
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
        raise StackError(f"Cannot write {log} ({exc.strerror or exc}).") from None
