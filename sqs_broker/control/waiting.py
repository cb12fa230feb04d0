"""The messages of the control plane that were read, and wait until their consumer takes them."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

logger = logging.getLogger(__name__)

#: Most commands and replies that wait. Then the reader waits, too.
MOST_MESSAGES = 10_000

#: Most events that wait, about 130 MB. Further ones are dropped, so the reader never waits for the
#: consumer of events, and MongoDB does not overwrite what it has not read.
MOST_EVENTS = 100_000

#: Seconds after which an event that waits is dropped. A consumer that is slower than the events
#: shows what happened at most so long ago.
OLDEST = 10.0

#: Seconds from the first event that was dropped to the log line, so that others are in it, and
#: seconds between two such lines.
GATHER, SELDOM = 5.0, 60.0


@dataclass(frozen=True, slots=True)
class Read:
    """A message that waits."""

    message: Any
    """kombu's message."""
    events: int
    """The number of events in it; 0 for commands and replies."""
    at: float
    """When it was read, in seconds of the clock."""


class Waiting:
    """Bounds what waits for one connection. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._messages = 0
        self._events = 0
        self._dropped = 0
        self._report_at = self._reported_at = float("-inf")

    def enter(self, message: Any, events: int, is_wanted: Callable[[], bool]) -> Read | None:
        """The message, which waits from now on; None if it is dropped, or not wanted any more.

        A command or reply may have to wait for room. `is_wanted` is called with a lock held.
        """
        with self._changed:
            if events:
                return self._enter(message, events) if is_wanted() else None
            self._changed.wait_for(lambda: self._messages < MOST_MESSAGES or not is_wanted())
            if not is_wanted():
                return None
            self._messages += 1
            return Read(message, 0, self._clock())

    def leave(self, read: Read) -> bool:
        """A message no longer waits. Return whether its consumer is to get it."""
        now = self._clock()
        with self._changed:
            self._messages -= not read.events
            self._events -= read.events
            is_late = bool(read.events) and now - read.at > OLDEST
            if is_late:
                self._drop(read.events, now)
            self._changed.notify_all()
        self._report(now)
        return not is_late

    def unwanted(self) -> None:
        """A consumer was cancelled: a reader that waits for it looks again."""
        with self._changed:
            self._changed.notify_all()
        self._report(self._clock(), is_last=True)

    def _enter(self, message: Any, events: int) -> Read | None:
        now = self._clock()
        if self._events and self._events + events > MOST_EVENTS:
            self._drop(events, now)
            return None
        self._events += events
        return Read(message, events, now)

    def _drop(self, events: int, now: float) -> None:
        if not self._dropped:
            self._report_at = max(now + GATHER, self._reported_at + SELDOM)
        self._dropped += events

    def _report(self, now: float, is_last: bool = False) -> None:
        with self._changed:
            if not self._dropped or (now < self._report_at and not is_last):
                return
            dropped, self._dropped = self._dropped, 0
            self._reported_at = now
        logger.warning(
            "Control plane: this process takes events more slowly than they come; %s were dropped "
            "that had waited for more than %g s, or for which there was no room.",
            dropped,
            OLDEST,
            extra={"event": "control.late", "count": dropped},
        )
