"""Marks receivers of Celery's signal `task_postrun` that need one call for each job, however many
messages share it."""

from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R", bound=Callable[..., Any])

_MARK = "__once_a_job__"


def once_a_job(receiver: R) -> R:
    """Mark a receiver. Any other one is called for each message, with the work inside the trace of
    that message, which takes several times as long."""
    setattr(receiver, _MARK, True)
    return receiver


def is_once_a_job(receiver: Any) -> bool:
    """Whether a receiver is marked."""
    return getattr(receiver, _MARK, False) is True
