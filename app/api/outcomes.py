"""What the API needs to know about registrations that were sent: the interface of a store."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol


class State(Protocol):
    """What became of one registration."""

    @property
    def id(self) -> str:
        """The id of its message."""

    @property
    def state(self) -> str:
        """One of pending, registered, conflict, failed, expired."""

    @property
    def at(self) -> datetime:
        """Since when."""

    @property
    def reason(self) -> str | None:
        """Why it failed: the reason on the dead letter. No personal data."""

    @property
    def user(self) -> Mapping[str, Any] | None:
        """The user, if it is registered. Personal data."""

    @property
    def conflicts(self) -> Sequence[Any]:
        """Later messages with the same id and another payload."""


class Page(Protocol):
    """Some users of a stock, in a stable order."""

    @property
    def users(self) -> Sequence[Mapping[str, Any]]:
        """The users."""

    @property
    def next(self) -> str | None:
        """The cursor of the next page; None if this is the last one."""


class Outcomes(Protocol):
    """Stores that registrations were accepted, and reads what became of them. For one event
    loop."""

    async def accepted(self, ids: Sequence[str], users: Sequence[tuple[str, str]]) -> None:
        """Store that SQS took these registrations. `users`: stock_id and user_id of each. Best
        effort: never raises, and takes a bounded time."""

    async def state(self, id: str) -> State | None:
        """The present state; None if no message with this id was sent. Raises Unavailable if
        MongoDB does not answer."""

    async def wait(self, id: str, seconds: float) -> State | None:
        """The final state, or the present one after `seconds`. Returns the present one at once if
        too many wait. Raises Unavailable."""

    async def users(self, stock_id: str, after: str | None, limit: int) -> Page:
        """At most `limit` users after a cursor. Raises Unavailable, and ValueError if the cursor is
        none."""

    async def user(self, stock_id: str, user_id: str) -> Mapping[str, Any] | None:
        """One user; None if there is none. Raises Unavailable."""

    async def count(self) -> int | float:
        """The running count of the task `increment`. Raises Unavailable."""

    async def close(self) -> None:
        """Close the connections."""
