"""The tasks. Each only calls the domain: the model has already checked the message, and the error
that the domain raises decides between retry and dead letter (app/errors.py).

The name of a task is also the type of its messages, so a new task adds a new message type.

A producer imports this module too. So what only a worker needs is imported where a task uses it:
MongoDB's driver, and the domain, which loads it. A worker imports the domain before it forks
(app/startup.py).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from app.celery import app
from app.messages import Increment, Provenance, Registration
from sqs_broker import preload

if TYPE_CHECKING:
    from app.registration import Registered

# Otherwise the first request of a web server would wait for it.
preload()


def _register_many(pairs: Sequence[tuple[Registration, Provenance]]) -> list[Any]:
    from app import registration

    return [
        _result_of(outcome) if isinstance(outcome, registration.Registered) else outcome
        for outcome in registration.register_many(pairs)
    ]


@app.task(name="registerUser", model=Registration, many=_register_many)
def register_user(message: Registration, provenance: Provenance) -> dict[str, str]:
    """Register a user for a session of the game."""
    from app import registration

    return _result_of(registration.register(message, provenance))


def _result_of(registered: "Registered") -> dict[str, str]:
    return {
        "result": registered.result.value,
        "stock_id": registered.stock_id,
        "user_id": registered.user_id,
    }


@app.task(name="increment", model=Increment)
def increment(message: Increment, provenance: Provenance) -> dict[str, Any]:
    """Add one to the running count, once for each message id."""
    from app import counter

    return counter.increment(message, provenance)
