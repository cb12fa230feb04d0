"""Brackets: context managers around each run of a task, in the process that runs it.

`broker_transport_options["brackets"]` lists them. Each is a callable that takes the task and its
request and returns a context manager. The manager is entered right before the task's function and
exited right after it, with the exception that the function raised. Messages that share a job have
one run: the brackets of all messages are entered before the work and exited in reverse order. The
first message's brackets are the innermost.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from time import monotonic
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from sqs_broker.errors import label
from sqs_broker.machine.seldom import Seldom

logger = logging.getLogger(__name__)

_seldom = Seldom()

#: Takes a task and its request, and returns a context manager.
Bracket = Callable[[Any, Any], AbstractContextManager[Any]]


@contextmanager
def around(brackets: Sequence[Bracket], task: Any, request: Any) -> Iterator[None]:
    """Run a block inside all brackets. A failure of a bracket is logged; it does not stop the block
    or change its result. A bracket cannot suppress the block's exception."""
    entered: list[AbstractContextManager[Any]] = []
    try:
        for bracket in brackets:
            _enter(bracket, task, request, entered)
        yield
    except BaseException as exc:
        _exit(entered, task, exc)
        raise
    _exit(entered, task, None)


def _enter(
    bracket: Bracket, task: Any, request: Any, entered: list[AbstractContextManager[Any]]
) -> None:
    try:
        manager = bracket(task, request)
        manager.__enter__()
    except SoftTimeLimitExceeded:
        raise  # The time limit is that of the run, not of the bracket.
    except Exception as exc:
        # Broad on purpose, here and below: a bracket is foreign code. SystemExit is let through: by
        # it billiard ends a process that received SIGQUIT (billiard 4.3 common.py).
        _log_failure(bracket, task, exc)
    else:
        entered.append(manager)


def _exit(entered: list[AbstractContextManager[Any]], task: Any, exc: BaseException | None) -> None:
    limit: SoftTimeLimitExceeded | None = None
    for manager in reversed(entered):
        try:
            manager.__exit__(type(exc) if exc else None, exc, exc.__traceback__ if exc else None)
        except SoftTimeLimitExceeded as passed:
            limit = passed  # The other brackets must still be exited.
        except Exception as failure:
            if failure is not exc:
                _log_failure(manager, task, failure)
    if limit is not None and limit is not exc:
        raise limit


def _log_failure(bracket: object, task: Any, exc: Exception) -> None:
    name = getattr(bracket, "__qualname__", type(bracket).__qualname__)
    if not _seldom.allows((name, type(exc)), monotonic()):
        return
    logger.error(
        "A bracket around the run of a task failed (%s, %s). The task is not affected.",
        name,
        label(exc),
        extra={
            "event": "bracket.failed",
            "task": getattr(task, "name", None),
            "error": label(exc),
        },
    )
