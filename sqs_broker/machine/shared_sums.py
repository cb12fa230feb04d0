"""Sums in memory that a process shares with those that it forks.

Each forked process adds to a row of its own, so no lock is used on both sides of a fork, and a
process that is killed while it adds holds up no other one.
"""

import mmap
import os
import threading
from collections.abc import Mapping, Sequence

#: Most rows. A row that no process takes needs no memory of its own.
MOST_ROWS = 1024

#: Bytes of a sum. A number of this size at a multiple of it is written in one step.
SIZE = 8


class SharedSums:
    """A sum for each name and row. Made before the fork; thread-safe."""

    def __init__(self, names: Sequence[str], rows: int = MOST_ROWS) -> None:
        self._names = tuple(names)
        self._rows = rows
        memory = mmap.mmap(-1, max(rows * len(self._names) * SIZE, SIZE))
        self._numbers = memoryview(memory).cast("Q")
        #: By name, the place of its sum in the row of this process.
        self._places: Mapping[str, int] = {}
        self._owner: int | None = None
        self._lock = threading.Lock()

    def take(self, row: int) -> None:
        """Let this process, but none that it forks, add to a row. A row is for one process at a
        time. The next one goes on with its sums. Beyond the last row nothing is added."""
        self._owner = os.getpid()
        self._lock = threading.Lock()  # Another thread may have held it during the fork.
        if 0 <= row < self._rows:
            first = row * len(self._names)
            self._places = {name: first + place for place, name in enumerate(self._names)}

    def add(self, name: str, number: int) -> None:
        """Add to the sum of a name in the row of this process. Does nothing for another name, and
        in a process that has no row."""
        place = self._places.get(name)
        if place is None or os.getpid() != self._owner:
            return
        with self._lock:
            self._numbers[place] += number

    def totals(self) -> dict[str, int]:
        """The sum of each name over all rows."""
        width = len(self._names)
        end = self._rows * width
        return {name: sum(self._numbers[at:end:width]) for at, name in enumerate(self._names)}
