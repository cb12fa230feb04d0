"""Logs an outage of MongoDB for one thread: once when it begins, once when it ends."""

import logging
from time import monotonic

from sqs_broker.control.faults import reason_of
from sqs_broker.errors import label
from sqs_broker.rules.backoff import half_jitter

logger = logging.getLogger(__name__)

#: Longest first pause, which doubles with each failure, and longest pause at all, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0

#: Seconds between two lines about the beginning of an outage. A call that MongoDB sometimes refuses
#: would otherwise fill the log.
QUIET = 60.0


class Outage:
    """Counts consecutive failures. For one thread."""

    def __init__(self, what: str, first_pause: float = FIRST_PAUSE) -> None:
        self._what = what
        self._first_pause = first_pause
        self._failures = 0
        self._logged_at = float("-inf")
        self._is_logged = False
        self._lost = 0

    @property
    def lasts(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def failed(self, exc: Exception) -> float:
        """Record a failure. Return the seconds to wait before the next try."""
        if not self._is_logged and self._may_log():
            self._is_logged = True
            logger.warning(
                "Control plane: tasks run, but %s do not get through: %s",
                self._what,
                reason_of(exc),
                extra={"event": "control.down", "error": label(exc), "reason": reason_of(exc)},
            )
        self._failures += 1
        return half_jitter(self._first_pause, self._failures, LONGEST_PAUSE)

    def is_over(self, lost: int = 0) -> None:
        """Record a success. `lost` events were dropped in the meantime."""
        self._failures = 0
        self._lost += lost
        if not self._is_logged and not (self._lost and self._may_log()):
            return
        self._is_logged = False
        logger.warning(
            "Control plane: %s continue%s.",
            self._what,
            f"; {self._lost} were never written" if self._lost else "",
            extra={"event": "control.up", "count": self._lost},
        )
        self._lost = 0

    def _may_log(self) -> bool:
        now = monotonic()
        if now - self._logged_at < QUIET:
            return False
        self._logged_at = now
        return True
