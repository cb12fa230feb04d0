"""Brackets: context managers around each run of a task, in the process that runs it.

`broker_transport_options["brackets"]` names them: callables that are given the task and its request
and return a context manager. It is entered right before the task's function and left right after
it, with the exception that the function raised. Messages that share a job have one run: then all
brackets are entered before the work and left in reverse order, and the first message's are the
innermost.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from sqs_broker.errors import label

logger = logging.getLogger(__name__)

#: Makes a context manager of a task and its request.
Bracket = Callable[[Any, Any], AbstractContextManager[Any]]


@contextmanager
def around(brackets: Sequence[Bracket], task: Any, request: Any) -> Iterator[None]:
    """Run a block inside of all brackets. One that fails is logged, and neither stops the block nor
    changes its result; nor can one suppress the block's exception."""
    entered: list[AbstractContextManager[Any]] = []
    try:
        for bracket in brackets:
            _enter(bracket, task, request, entered)
        yield
    except BaseException as exc:
        _leave(entered, exc)
        raise
    _leave(entered, None)


def _enter(
    bracket: Bracket, task: Any, request: Any, entered: list[AbstractContextManager[Any]]
) -> None:
    try:
        manager = bracket(task, request)
        manager.__enter__()
    except SoftTimeLimitExceeded:
        raise  # It is the run's, not the bracket's.
    except Exception as exc:
        # Broad on purpose, here and below: a bracket is anybody's code.
        _say(exc)
    else:
        entered.append(manager)


def _leave(entered: list[AbstractContextManager[Any]], exc: BaseException | None) -> None:
    limit: SoftTimeLimitExceeded | None = None
    for manager in reversed(entered):
        try:
            manager.__exit__(type(exc) if exc else None, exc, exc.__traceback__ if exc else None)
        except SoftTimeLimitExceeded as passed:
            limit = passed  # The others are left all the same.
        except Exception as failure:
            if failure is not exc:
                _say(failure)
    if limit is not None and limit is not exc:
        raise limit


def _say(exc: Exception) -> None:
    logger.error(
        "A bracket around the run of a task failed (%s). The task is not affected.",
        label(exc),
        extra={"event": "bracket.failed", "error": label(exc)},
    )
