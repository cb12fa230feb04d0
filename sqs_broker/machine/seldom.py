"""How often something that fails again and again is logged."""

from collections.abc import Hashable

#: Seconds between two log lines of one kind.
QUIET = 60.0


class Seldom:
    """Allows one log line a minute for each kind."""

    def __init__(self) -> None:
        self._last: dict[Hashable, float] = {}

    def allows(self, kind: Hashable, now: float) -> bool:
        """Whether a line of this kind is due at `now`, in monotonic seconds. If so, it counts as
        logged."""
        if now - self._last.get(kind, -QUIET) < QUIET:
            return False
        self._last[kind] = now
        return True
