"""The queue in memory from the receivers' threads to the event loop."""

import os
import threading
from collections import deque
from contextlib import suppress
from typing import Any

#: The name of a queue, and a message for it: a payload of SQS, or a `Read` of the control plane.
Arrived = tuple[str, Any]


class Inbox:
    """Messages on their way to their consumer, each with the name of its queue. Thread-safe.

    `put` wakes an event loop that watches `fileno()`, and each thread in `wait`.
    """

    def __init__(self) -> None:
        self._arrived: deque[Arrived] = deque()
        self._changed = threading.Condition()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)

    def fileno(self) -> int:
        """The file descriptor that is readable while there are messages."""
        return self._read_end

    def put(self, arrived: list[Arrived]) -> None:
        """Add messages and wake the loop."""
        with self._changed:
            self._arrived.extend(arrived)
            self._changed.notify_all()
            if self._write_end >= 0:
                # A full pipe already holds unread wake-ups, so another one is not needed.
                with suppress(BlockingIOError):
                    os.write(self._write_end, b"\0")

    def wake(self) -> None:
        """Wake the loop without a message. Takes no lock, so a signal handler may call it."""
        with suppress(OSError):
            os.write(self._write_end, b"\0")

    def take_all(self) -> list[Arrived]:
        """Remove and return all messages."""
        with self._changed:
            arrived = list(self._arrived)
            self._arrived.clear()
            if self._read_end >= 0:
                # The pipe is empty if nothing was written since the last call.
                with suppress(BlockingIOError):
                    os.read(self._read_end, 65_536)
        return arrived

    def take_one(self) -> Arrived | None:
        """Remove and return the oldest message. For callers of `wait`, not of `fileno()`."""
        with self._changed:
            return self._arrived.popleft() if self._arrived else None

    def wait(self, timeout: float | None) -> bool:
        """Wait until there is a message; return False if `timeout` seconds pass first."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._arrived), timeout)

    def close(self) -> None:
        """Close the descriptors. Messages may still be put and taken."""
        with self._changed:
            if self._read_end >= 0:
                os.close(self._read_end)
                os.close(self._write_end)
                self._read_end = self._write_end = -1
