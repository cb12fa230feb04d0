"""The pause of a queue: who began it, why, and until when it lasts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

#: Most characters of a reason. It is shown in one line.
LONGEST_REASON = 200


@dataclass(frozen=True)
class Pause:
    """No worker receives from a queue while its pause lasts."""

    queue: str
    """The configured name of the queue."""
    reason: str
    by: str
    at: datetime
    """When it began, in UTC."""
    until: datetime | None = None
    """When it ends by itself, in UTC; None if a person must end it."""
    mappings: tuple[str, ...] = ()
    """The event source mappings that it has disabled, by their UUIDs."""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self | None:
        """The pause that a document says; None if it says none, because somebody else wrote it."""
        queue, at, until = document.get("_id"), document.get("at"), document.get("until")
        if not isinstance(queue, str) or not isinstance(at, datetime):
            return None
        if until is not None and not isinstance(until, datetime):
            return None
        reason, by = str(document.get("reason", "")), str(document.get("by", ""))
        mappings = document.get("mappings")
        return cls(
            queue,
            reason,
            by,
            _utc(at),
            None if until is None else _utc(until),
            tuple(map(str, mappings)) if isinstance(mappings, list) else (),
        )

    def lasts(self, now: datetime) -> bool:
        """Whether the queue is paused at this time."""
        return self.until is None or now < self.until

    @property
    def text(self) -> str:
        """The reason, who began the pause, and when it ends. In one line."""
        ends = f"until {self.until:%Y-%m-%d %H:%M:%S} UTC" if self.until else "until it is resumed"
        return f"{self.reason} ({self.by}, {ends})"

    def shown(self, now: datetime) -> str | None:
        """What an operator reads about it; None if it is over. A mapping has no end of its own: it
        stays disabled until somebody resumes the queue."""
        if self.lasts(now):
            return self.text
        if self.mappings and self.until is not None:
            over = f"over since {self.until:%Y-%m-%d %H:%M:%S} UTC"
            return f"{self.reason} ({self.by}, {over}, but functions wait until it is resumed)"
        return None


def pause_text(queue: str, why: str) -> str:
    """What observers get while a queue is paused."""
    return f"{queue}: {why}"


def is_paused(queue: str, reasons: Iterable[str]) -> bool:
    """Whether a queue is paused, by what observers get."""
    return any(reason.startswith(pause_text(queue, "")) for reason in reasons)


def _utc(time: datetime) -> datetime:
    # MongoDB's times are UTC, and pymongo returns them without a time zone.
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
