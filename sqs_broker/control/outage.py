"""What a thread says of a MongoDB that is away: once when it goes, once when it is back."""

import logging
import random

logger = logging.getLogger(__name__)

#: Seconds: the ceiling of the first pause, doubled by each failure that follows, and of the last.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0


class Outage:
    """Counts failures that follow each other. For one thread."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0

    @property
    def lasts(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def failed(self, exc: Exception) -> float:
        """Note a failure; seconds to wait before the next try."""
        if not self._failures:
            logger.warning(
                "MongoDB fails for the control plane (%s): %s wait until it is back; tasks go on.",
                type(exc).__name__,
                self._what,
                extra={"event": "control.down", "error": type(exc).__name__},
            )
        self._failures += 1
        ceiling = min(FIRST_PAUSE * 2.0 ** min(self._failures - 1, 16), LONGEST_PAUSE)
        return random.uniform(ceiling / 2, ceiling)

    def is_over(self, lost: int = 0) -> None:
        """Note a success; `lost` events have been dropped in the meantime."""
        if not self._failures and not lost:
            return
        logger.warning(
            "The control plane's %s go on; %s events were lost.",
            self._what,
            lost,
            extra={"event": "control.up", "count": lost},
        )
        self._failures = 0
