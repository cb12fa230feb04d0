"""Reads an exception that came from the pool, where it was pickled, wrapped or replaced, and shows
only its parts that hold no personal data.
"""

import re
from collections.abc import Iterator
from typing import Any

from billiard.einfo import ExceptionWithTraceback

from sqs_broker.errors import label
from sqs_broker.rules.happened import Rejected, Suspected, reason_of

#: A frame of a formatted traceback. Any other line can hold the text of an exception.
_FRAME = re.compile(r'^  File "[^"]*", line \d+, in \S+$')


def unwrapped(exc_info: Any) -> Any:
    """The exception itself. Until it is pickled, it is in a wrapper (billiard 4.3 einfo.py)."""
    exc = exc_info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def shown(exc: Any) -> str:
    """The exception as an event shows it: its class; for a permanent error also the reason, as on
    the dead letter."""
    if isinstance(exc, Rejected) and not exc.requeue:
        return f"{exc.error}: {reason_of(exc)}"
    return exc.error if isinstance(exc, Suspected) else label(exc)


def frames_of(traceback: str | None) -> Iterator[str]:
    """The code locations in a formatted traceback, without the texts of its exceptions."""
    return (line for line in (traceback or "").splitlines() if _FRAME.match(line))
