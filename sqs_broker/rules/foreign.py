"""A message from a program that is not Celery, and the function that reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ForeignMessage:
    """The call that a program other than Celery asks for."""

    task: str
    kwargs: dict[str, Any]
    id: str | None
    """The producer's id of the message; None if it gave none."""


#: Reads the object of a plain JSON body. Raises Undecodable if it is not a message.
DecodeJson = Callable[[dict[str, Any]], ForeignMessage]
