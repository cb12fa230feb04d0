"""The workers, each started again by its supervisor whenever it ends, as in real life."""

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from sqs_broker.machine import files
from tests.acceptance.worker import living

#: Seconds that a supervisor waits before it starts a worker again.
PAUSE = 1.0

#: The variable by which a process of a run is known.
MARK = "CHAOS_RUN"


class Release(StrEnum):
    """What a worker is started from."""

    OLD = "old"
    """The older commit."""
    NOW = "now"
    """This commit."""
    NEXT = "next"
    """This commit, and one more task."""


#: Gives the command and the environment of a worker: of this slot, and of this release.
Command = Callable[[int, Release], tuple[list[str], Mapping[str, str]]]


@dataclass
class Slot:
    """The place of one worker."""

    number: int
    pool: str
    process: "subprocess.Popen[bytes] | None" = None
    log: Path | None = None
    starts: int = 0
    release: Release = Release.NOW
    """Of its next start."""
    runs: Release = Release.NOW
    """Of its last start."""
    is_expected_to_end: bool = False
    """Whether it was asked to stop, or killed. Nobody asks twice: that would end what runs."""

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def is_ready(self) -> bool:
        """Whether it came as far as taking messages."""
        return self.log is not None and b" ready." in self.log.read_bytes()

    def children(self) -> list[int]:
        """The processes of its pool."""
        return [pid for pid, parent, _ in living() if parent == self.pid]


@dataclass
class Fleet:
    """All workers of a run."""

    pools: tuple[str, ...]
    command: Command
    directory: Path
    mark: str
    releases: tuple[Release, ...]
    """Of each slot, at the start."""
    slots: list[Slot] = field(init=False)
    #: How workers ended: asked to, killed, by itself, or before they were ready.
    ends: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.slots = [
            Slot(number, pool, release=release)
            for number, (pool, release) in enumerate(zip(self.pools, self.releases, strict=True))
        ]
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start every worker, and their supervisor."""
        for slot in self.slots:
            self._start(slot)
        self._thread.start()

    def tell(self, slot: Slot, number: signal.Signals, *, group: bool = False) -> bool:
        """Send a signal to a worker, or to it and its pool; whether it was there, and was not asked
        to stop before."""
        with self._lock:
            if not slot.is_running or (number == signal.SIGTERM and slot.is_expected_to_end):
                return False
            if number in (signal.SIGTERM, signal.SIGKILL):
                slot.is_expected_to_end = True
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(slot.pid, number)
                return True
            return False

    def ask_each(self, slot: Slot) -> bool:
        """Send SIGTERM to each process of a worker, one after the other, those of its pool first;
        whether it was there, and was not asked before."""
        with self._lock:
            if not slot.is_running or slot.is_expected_to_end:
                return False
            slot.is_expected_to_end = True
            group = [pid for pid, _, group in living() if group == slot.pid]
            for pid in sorted(group, reverse=True):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            return bool(group)

    def replace(self, slot: Slot, release: Release | None = None) -> int:
        """Ask a worker to stop, so that another one is started in its place, of this release or of
        the same; the number of starts before that."""
        with self._lock:  # So that none is being started meanwhile.
            slot.release = release or slot.release
            if slot.is_running and not slot.is_expected_to_end:
                slot.is_expected_to_end = True
                with suppress(ProcessLookupError):
                    os.kill(slot.pid, signal.SIGTERM)
            return slot.starts

    def has_new_task(self) -> bool:
        """Whether every worker has the task of the next release."""
        return all(slot.runs == Release.NEXT for slot in self.slots)

    def stop(self, seconds: float) -> None:
        """Ask every worker to stop; kill who has not after so many seconds."""
        self._closing.set()
        self._thread.join()
        for slot in self.slots:
            self.tell(slot, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        for slot in self.slots:
            if slot.process is None:
                continue
            try:
                status = slot.process.wait(max(0.1, deadline - time.monotonic()))
                self.statuses[str(status)] += 1
            except subprocess.TimeoutExpired:
                self.statuses["had to be killed"] += 1
                self.tell(slot, signal.SIGKILL, group=True)
                slot.process.wait()

    def strays(self) -> list[int]:
        """Processes of this run that are left."""
        found = []
        for pid, _, _ in living():
            with suppress(OSError):
                if f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(pid)
        return found

    def has_met_unknown_task(self) -> bool:
        """Whether a worker has said that it received a task which it does not have."""
        return any(b'"task.unknown"' in log.read_bytes() for log in self.logs())

    def logs(self) -> list[Path]:
        """The log of each start of each worker."""
        return sorted(self.directory.glob("worker-*.log"))

    def _start(self, slot: Slot) -> None:
        command, environment = self.command(slot.number, slot.release)
        slot.runs = slot.release
        slot.log = self.directory / f"worker-{slot.number}-{slot.starts + 1}.log"
        home = self.directory / f"home-{slot.number}"
        home.mkdir(exist_ok=True)
        with files.create(slot.log, files.PRIVATE) as output:
            slot.process = subprocess.Popen(
                command,
                env={**environment, MARK: self.mark, "TMPDIR": str(home)},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        slot.is_expected_to_end = False
        # Last, because others wait for it and then look at the rest.
        slot.starts += 1

    def _supervise(self) -> None:
        again: dict[int, float] = {}
        while not self._closing.wait(0.1):
            for slot in self.slots:
                if slot.is_running:
                    continue
                if slot.number not in again:
                    self._note_end(slot)
                    again[slot.number] = time.monotonic() + PAUSE
                elif time.monotonic() >= again[slot.number]:
                    del again[slot.number]
                    with self._lock:
                        self._start(slot)

    def _note_end(self, slot: Slot) -> None:
        if slot.is_expected_to_end:
            self.ends["asked or killed"] += 1
        elif slot.is_ready():
            self.ends["by itself"] += 1
        else:
            self.ends["before it was ready"] += 1
