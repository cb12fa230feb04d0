"""The task that only the next release has. It does what `increment` does."""

from typing import Any

from app.celery import app
from app.messages import Increment, Provenance


@app.task(name="later", model=Increment)
def later(message: Increment, provenance: Provenance) -> dict[str, Any]:
    """Add one to the running count, once for each message id."""
    from app import counter

    return counter.increment(message, provenance)
