"""Logs an outage of MongoDB for one thread: once when it begins, once when it ends."""

import logging

from sqs_broker.rules.backoff import half_jitter

logger = logging.getLogger(__name__)

#: Longest first pause, which doubles with each failure, and longest pause at all, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0


class Outage:
    """Counts consecutive failures. For one thread."""

    def __init__(self, what: str, first_pause: float = FIRST_PAUSE) -> None:
        self._what = what
        self._first_pause = first_pause
        self._failures = 0

    @property
    def lasts(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def failed(self, exc: Exception) -> float:
        """Record a failure. Return the seconds to wait before the next try."""
        if not self._failures:
            logger.warning(
                "Control plane: MongoDB is unavailable (%s); %s wait until it is back, and tasks "
                "still run.",
                type(exc).__name__,
                self._what,
                extra={"event": "control.down", "error": type(exc).__name__},
            )
        self._failures += 1
        return half_jitter(self._first_pause, self._failures, LONGEST_PAUSE)

    def is_over(self, lost: int = 0) -> None:
        """Record a success. `lost` events were dropped in the meantime."""
        if not self._failures and not lost:
            return
        logger.warning(
            "Control plane: MongoDB is available again; %s continue, and %s events were lost.",
            self._what,
            lost,
            extra={"event": "control.up", "count": lost},
        )
        self._failures = 0
