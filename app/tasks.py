"""The tasks. Each is thin: the model has checked the message, the domain does the work, and the
error it raises says whether to retry or to dead-letter (app/errors.py).

The name of a task is the type of its messages, so a new task here is a new type on the wire.
"""

from typing import Any

from app import counter, registration
from app.celery import app
from app.messages import Increment, Provenance, Registration


@app.task(name="registerUser", model=Registration)
def register_user(message: Registration, provenance: Provenance) -> dict[str, str]:
    """Register a user for a session of the game."""
    registered = registration.register(message, provenance)
    return {
        "result": registered.result.value,
        "stock_id": registered.stock_id,
        "user_id": registered.user_id,
    }


@app.task(name="increment", model=Increment)
def increment(message: Increment, provenance: Provenance) -> dict[str, Any]:
    """Add one to the running count, once for each message id."""
    return counter.increment(message, provenance)
