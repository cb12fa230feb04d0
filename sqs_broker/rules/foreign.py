"""A message of a program that is not Celery, and who reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ForeignMessage:
    """What a program that is not Celery asked for."""

    task: str
    kwargs: dict[str, Any]
    id: str | None
    """The producer's id of the message; None if it gave none."""


#: Reads the object of a plain JSON body. Raises Undecodable for what is no message.
DecodeJson = Callable[[dict[str, Any]], ForeignMessage]
