"""One mongod, started again where its data is."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from devstack import mongo, ports
from devstack.mongo import START_SECONDS, STOP_SECONDS
from devstack.process import Process
from tests.services import wait_until


class Member:
    """A member of a replica set, or what is left of it."""

    def __init__(
        self,
        number: int,
        directory: Path,
        port: int,
        arguments: Sequence[str | Path] = (),
        *,
        is_arbiter: bool = False,
    ) -> None:
        """`arguments` are mongod's own, beside those of every server of this machine."""
        self.number = number
        self.name = ports.HOST
        self.port = port
        self.is_arbiter = is_arbiter
        #: Where clients find it that do not come directly; "" where all do.
        self.front = ""
        self._binary = mongo.find_binary()
        self._directory = directory
        self._data = directory / f"data-{number}"
        self._data.mkdir()
        self._lock = self._data / "mongod.lock"
        self._arguments = arguments
        self.is_frozen = False
        self._starts = 0
        self._process: Process | None = None

    @property
    def host(self) -> str:
        return f"{self.name}:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.exit_status is None

    def launch(self, *, as_standalone: bool = False) -> None:
        """Start it at its port, and do not wait for it."""
        assert not self.is_running, f"member {self.number} runs already"
        words = mongo.command(
            self._binary,
            self._data,
            self.port,
            replica_set=None if as_standalone else mongo.REPLICA_SET,
            test_commands=True,
        )
        if as_standalone:
            # Else it makes a collection of sessions that the others do not know.
            words += ["--setParameter", "disableLogicalSessionCacheRefresh=true"]
        self._starts += 1
        self._process = Process(
            f"member {self.number}",
            [*words, *self._arguments],
            log=self._directory / f"mongod-{self.number}-{self._starts}.log",
            grace=STOP_SECONDS,
        )

    def wait_until_listening(self) -> None:
        """Returns once it takes connections. Raises StackError if it ended."""

        def listens() -> bool:
            assert self._process is not None
            self._process.check()
            return ports.is_listening(self.port)

        wait_until(listens, START_SECONDS, f"member {self.number} that listens")

    def stop(self) -> None:
        """Shut it down; returns when it is gone."""
        self.thaw()
        self._collect()

    def kill(self) -> None:
        """End it as a machine that loses power; returns when it is gone."""
        self._tell(signal.SIGKILL)
        self.is_frozen = False
        self._collect()

    def freeze(self) -> None:
        """Keep it from doing anything: its connections stay open, and nothing answers."""
        self.is_frozen = True
        self._tell(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._tell(signal.SIGCONT)
        self.is_frozen = False

    def _tell(self, number: signal.Signals) -> None:
        if not self.is_running:
            return
        # Its own, for the process that was started is its guard.
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int(self._lock.read_text()), number)

    def _collect(self) -> None:
        if self._process is not None:
            self._process.stop()
            # The id of a process that was killed may come to be another one's.
            self._lock.write_text("")
        self._process = None
