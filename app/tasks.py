"""The tasks. Each is thin: the model has checked the message, the domain does the work, and the
error it raises says whether to retry or to dead-letter (app/errors.py).

The name of a task is the type of its messages, so a new task here is a new type on the wire.
"""

from collections.abc import Sequence
from typing import Any

from app import counter, registration
from app.celery import app
from app.messages import Increment, Provenance, Registration
from app.registration import Registered


def _register_many(pairs: Sequence[tuple[Registration, Provenance]]) -> list[Any]:
    return [
        _told(outcome) if isinstance(outcome, Registered) else outcome
        for outcome in registration.register_many(pairs)
    ]


@app.task(name="registerUser", model=Registration, many=_register_many)
def register_user(message: Registration, provenance: Provenance) -> dict[str, str]:
    """Register a user for a session of the game."""
    return _told(registration.register(message, provenance))


def _told(registered: Registered) -> dict[str, str]:
    return {
        "result": registered.result.value,
        "stock_id": registered.stock_id,
        "user_id": registered.user_id,
    }


@app.task(name="increment", model=Increment)
def increment(message: Increment, provenance: Provenance) -> dict[str, Any]:
    """Add one to the running count, once for each message id."""
    return counter.increment(message, provenance)
