"""An exception as the worker's main process sees it, pickled, wrapped or replaced on its way from
the pool; and no more of it than may be shown.
"""

import re
from collections.abc import Iterator
from typing import Any

from billiard.einfo import ExceptionWithTraceback

from sqs_broker.errors import label
from sqs_broker.rules.happened import Rejected, Suspected, reason_of

#: A frame of a formatted traceback; all other lines can hold the text of an exception.
_FRAME = re.compile(r'^  File "[^"]*", line \d+, in \S+$')


def unwrapped(exc_info: Any) -> Any:
    """The exception itself: until it was pickled it wears a wrapper (billiard 4.3 einfo.py)."""
    exc = exc_info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def shown(exc: Any) -> str:
    """What an event shows of it: its class; of a permanent error the reason too, as on the dead
    letter."""
    if isinstance(exc, Rejected) and not exc.requeue:
        return f"{exc.error}: {reason_of(exc)}"
    return exc.error if isinstance(exc, Suspected) else label(exc)


def frames_of(traceback: str | None) -> Iterator[str]:
    """The places in the code of a formatted traceback, without any text of its exceptions."""
    return (line for line in (traceback or "").splitlines() if _FRAME.match(line))
