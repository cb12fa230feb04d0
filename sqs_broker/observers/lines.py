"""Writes lines of the log that have the same sentence, all at once, if whoever gets them can take
them so. A record of `logging` takes longer than the line that is made of it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast


class TakesLines(Protocol):
    """A handler that can write lines without a record for each."""

    level: int

    def can_take_lines(self) -> bool:
        """Whether it would write every line of this broker, and as `take_lines` does."""

    def take_lines(
        self, logger: str, level: int, sentence: str, lines: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write a line for each of these facts, as for a record whose `extra` they are. All have
        the same names, in the same order. Never raises."""


def write(
    logger: logging.Logger, level: int, sentence: str, lines: Sequence[Mapping[str, Any]]
) -> None:
    """Log a line for each of these facts. All have the same names, in the same order, and the same
    event."""
    if not lines or not logger.isEnabledFor(level):
        return
    handlers = _handlers(logger)
    if handlers is None:
        for facts in lines:
            logger.log(level, sentence, extra=facts)
        return
    for handler in handlers:
        if level >= handler.level:
            handler.take_lines(logger.name, level, sentence, lines)


def _handlers(logger: logging.Logger) -> list[TakesLines] | None:
    """Those that get the records of a logger; None if one of them, or anybody else, needs the
    records themselves."""
    if logger.filters or not _is_plain(type(logger)):
        return None
    found: list[TakesLines] = []
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            can_take = getattr(handler, "can_take_lines", None)
            if can_take is None or not can_take():
                return None
            found.append(cast(TakesLines, handler))
        at = at.parent if at.propagate else None
    return found or None


def _is_plain(kind: type[logging.Logger]) -> bool:
    """Whether nobody has replaced what makes records and passes them on: libraries do so to add
    facts to them, or to see them (OpenTelemetry, Sentry, New Relic)."""
    return (
        kind is logging.Logger
        and logging.getLogRecordFactory() is logging.LogRecord
        and all(map(_is_its_own, (kind.makeRecord, kind.handle, kind.callHandlers)))
    )


def _is_its_own(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == _FILE


#: The file of `logging`. A wrapper may have taken over a function's name, but not its code.
_FILE = logging.Logger.isEnabledFor.__code__.co_filename
