"""What the API needs to know about registrations that were sent: the interface of a store."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from app.outcomes.reader import Outcome, Page


class OutcomeStore(Protocol):
    """Stores that registrations were accepted, and reads what became of them. For one event
    loop."""

    async def accepted(self, ids: Sequence[str], users: Sequence[tuple[str, str]]) -> None:
        """Store that SQS took these registrations. `users`: stock_id and user_id of each. Best
        effort: never raises, and takes a bounded time."""

    async def state(self, id: str) -> Outcome | None:
        """The present state; None if no message with this id was sent. Raises Unavailable if
        MongoDB does not answer."""

    async def wait(self, id: str, seconds: float) -> Outcome | None:
        """The final state, or the present one after `seconds`. Returns the present one at once if
        too many wait. Raises Unavailable."""

    async def users(self, stock_id: str, after: str | None, limit: int) -> Page:
        """At most `limit` users after a user id. Raises Unavailable."""

    async def user(self, stock_id: str, user_id: str) -> Mapping[str, Any] | None:
        """One user; None if there is none. Raises Unavailable."""

    async def count(self) -> int | float:
        """The running count of the task `increment`. Raises Unavailable."""

    async def close(self) -> None:
        """Close the connections."""
