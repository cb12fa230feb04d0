"""A clock that only a test moves."""

import threading
from collections.abc import Callable


class Clock:
    """A clock that only a test moves. Thread-safe."""

    def __init__(self, now: float = 1_000.0) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    def __call__(self) -> float:
        """The time, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock, and call the listeners. Raises ValueError if `seconds` is negative."""
        if seconds < 0:
            raise ValueError("A clock cannot move backwards.")
        with self._lock:
            self._now += seconds
        for listener in self._listeners:
            listener()

    def on_advance(self, listener: Callable[[], None]) -> None:
        """Call this function after each `advance`."""
        self._listeners.append(listener)
