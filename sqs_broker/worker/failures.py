"""Reads an exception that came from the pool, where it was pickled, wrapped or replaced, and shows
only its parts that hold no personal data.
"""

import re
from collections.abc import Iterator
from traceback import walk_tb
from types import TracebackType
from typing import Any

from billiard.einfo import ExceptionWithTraceback

from sqs_broker.errors import label
from sqs_broker.rules.happened import Rejected, Suspected, reason_of

#: A frame of a formatted traceback. Any other line can hold the text of an exception.
_FRAME = re.compile(r'^  File "[^"]*", line \d+, in \S+$')

#: Most frames of the traceback of an exception, of which Celery makes a text several times, and of
#: an exception that ten messages share thirty times.
MOST_FRAMES = 200

#: Most exceptions of a chain whose tracebacks are shortened.
MOST_CAUSES = 100


def shorten(exc: BaseException) -> None:
    """Leave out the middle of long tracebacks: of this exception, of its cause, and so on.

    A library that repeats a call in a loop, and raises the same exception each time, adds its
    frames each time. While MongoDB is not the primary, pymongo 4.20 adds 10,000 in a second, and
    their text takes longer than the time limits of a task.
    """
    each: BaseException | None = exc
    for _ in range(MOST_CAUSES):
        if each is None:
            return
        _shorten_traceback(each.__traceback__)
        each = each.__cause__ or each.__context__


def _shorten_traceback(traceback: TracebackType | None) -> None:
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    if len(frames) > MOST_FRAMES:
        frames[MOST_FRAMES // 2 - 1].tb_next = frames[-MOST_FRAMES // 2]


def unwrapped(exc_info: Any) -> Any:
    """The exception itself. Until it is pickled, it is in a wrapper (billiard 4.3 einfo.py)."""
    exc = exc_info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def give_verdict(request: Any, exc_info: Any) -> None:
    """Write on the failure that goes to the main process that no retry can follow, if the run of
    this request found that out. An attribute of an ExceptionInfo is pickled with it."""
    verdict = getattr(request, "verdict", None)
    if verdict is not None:
        exc_info.verdict = verdict


def verdict_of(exc_info: Any) -> Rejected | None:
    """What `give_verdict` wrote on this failure."""
    return getattr(exc_info, "verdict", None)


def decisive(exc_info: Any) -> Any:
    """The exception that says what happened: the verdict of the pool process, if there is one, or
    the exception itself."""
    return verdict_of(exc_info) or unwrapped(exc_info)


def error_of(exc: Any) -> str:
    """The class of the exception that ended a run."""
    return exc.error if isinstance(exc, Rejected | Suspected) else label(exc)


def shown(exc: Any) -> str:
    """The exception as an event shows it: like its `repr`, without its text. For a permanent error
    with the reason, as on the dead letter."""
    if isinstance(exc, Rejected) and not exc.requeue:
        return f"{exc.error}({reason_of(exc)!r})"
    return f"{error_of(exc)}(...)"


def invalid_arguments(exc: BaseException) -> str | None:
    """Why a task with `pydantic=True` refused its arguments; None if `exc` means something else.

    The wrapper that Celery puts around such a task validates them before it calls the function
    (celery 5.7 app/base.py, `pydantic_wrapper`). A ValidationError of the function itself may be
    temporary, for example if another service answered badly.
    """
    errors = getattr(exc, "errors", None)
    if type(exc).__name__ != "ValidationError" or not callable(errors):
        return None
    modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(exc.__traceback__)]
    while modules and modules[-1].partition(".")[0] == "pydantic":
        modules.pop()
    if not modules or modules[-1] != "celery.app.base":
        return None
    kinds = sorted({str(error["type"]) for error in errors(include_input=False)})
    return f"the arguments are invalid ({', '.join(kinds)})"


def frames_of(traceback: str | None) -> Iterator[str]:
    """The code locations in a formatted traceback, without the texts of its exceptions."""
    return (line for line in (traceback or "").splitlines() if _FRAME.match(line))
