"""The directory of a stack: its data, its logs, and the locks that prevent a second stack."""

import fcntl
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devstack.errors import StackError
from devstack.waiting import wait_until
from sqs_broker.machine import files

#: Seconds in which the processes of a killed stack end: longer than the longest grace period.
REMAINS_SECONDS = 40


@dataclass(frozen=True)
class Directory:
    """The directory in which a stack stores everything, `.local` by default."""

    path: Path

    @property
    def queues(self) -> Path:
        return self.path / "sqs"

    @property
    def database(self) -> Path:
        return self.path / "mongo"

    @property
    def environment_file(self) -> Path:
        return self.path / "stack.env"

    def log(self, name: str) -> Path:
        """The log file of this start. The previous one is kept as `<name>.log.1`."""
        log = self.path / f"{name}.log"
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        return log

    @contextmanager
    def occupied(self) -> Iterator[int]:
        """Prevent other stacks in this directory until the end of the block.

        Yields a descriptor that every process of the stack must inherit. The directory stays locked
        until the last of them has ended, even if this process is killed. The block ends when all
        have ended. Raises StackError if another stack runs here, or if nothing can be stored here.
        """
        with _writing(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self.path / "stack.lock") as stack:
            if stack is None:
                raise StackError(
                    f"Another stack already runs in {self.path}: use it, or stop it first."
                )
            with self._processes() as processes:
                try:
                    yield processes
                finally:
                    self.environment_file.unlink(missing_ok=True)
            # Processes that still start or stop have inherited the lock that was just closed.
            with self._processes():
                pass

    @contextmanager
    def _processes(self) -> Iterator[int]:
        path = self.path / "processes.lock"
        descriptor = _open_lock(path)
        try:
            wait_until(
                lambda: _lock(descriptor), REMAINS_SECONDS, "the end of the last stack's processes"
            )
            yield descriptor
        except TimeoutError as exc:
            raise StackError(f"{exc}; `fuser {path}` lists them.") from None
        finally:
            os.close(descriptor)

    def publish(self, environment: Mapping[str, str]) -> None:
        """Write a client's environment, for `set -a; . stack.env`. Only this user can read it.
        Raises StackError if it cannot be written."""
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in environment.items()]
        with _writing(self.environment_file):
            files.replace(self.environment_file, "".join(lines), files.PRIVATE)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StackError(f"Cannot write {path} ({exc.strerror or exc}).") from None


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """The descriptor of the locked file; None if another process has the lock."""
    descriptor = _open_lock(path)
    try:
        yield descriptor if _lock(descriptor) else None
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    try:
        return files.open_lock(path)
    except OSError as exc:
        raise StackError(f"Cannot lock {path} ({exc.strerror}). Remove it.") from None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
