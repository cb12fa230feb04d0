"""The outcome of a registration, and the update that merges it into what is stored.

Updates of one id may reach MongoDB in any order, from several workers. So each update says when it
applies: `registered` always, and stays. Of all other states the newest counts, by the clock of the
program that saw it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from app.registration_ids import REGISTRATION, is_registration_id
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import DeadLetter, Discarded, Happened, Outcome, Succeeded

#: Most entries of `conflicts`. Later ones are not kept.
MOST_CONFLICTS = 10

#: How far the clocks of a worker and of another program (the API, a redrive) may differ. An outcome
#: that is older by more than this belongs to an earlier message with the same id, or to an earlier
#: delivery.
CLOCKS = timedelta(seconds=5)

#: The class of the error that dead-letters a message because another payload came first.
CONFLICT = "Conflict"

#: The reasons of discarded messages, which have no dead letter.
DISCARDED: Mapping[str, str] = {
    "expired": "the message expired before it ran",
    "revoked": "an operator revoked the message before it ran",
    "terminated": "an operator revoked the message while it ran",
}


class State(StrEnum):
    """What became of a registration."""

    PENDING = "pending"
    """It waits, runs, or waits for its next attempt."""
    REGISTERED = "registered"
    """The user is stored. This state is final."""
    CONFLICT = "conflict"
    """Another payload has registered the user. Final, unless the message is redriven."""
    FAILED = "failed"
    """It is a dead letter, or was revoked. Final, unless it is redriven or sent again."""
    EXPIRED = "expired"
    """It expired before it ran. Final, unless it is sent again."""


#: The states that a new attempt replaces.
NOT_FOR_EVER = (State.CONFLICT, State.FAILED, State.EXPIRED)
_NOT_FOR_EVER = [state.value for state in NOT_FOR_EVER]


@dataclass(frozen=True)
class Seen:
    """A state that a registration reached."""

    id: str
    state: State
    at: datetime
    reason: str | None = None
    user: tuple[str, str] | None = None
    """stock_id and user_id, if they are known."""
    message: str | None = None
    """SQS's MessageId. It tells the deliveries of one message from a second message."""
    margin: timedelta = timedelta(0)
    """A state that is not older than this is kept: for `pending`, if two clocks are compared."""

    def update(self, forget_at: datetime) -> list[dict[str, Any]]:
        """The pipeline that merges it into the stored document of its id, which may be missing."""
        applies = self._applies()
        fields: dict[str, Any] = {
            "state": _if(applies, self.state.value, "$state"),
            "at": _if(applies, self.at, "$at"),
            "reason": _if(applies, self.reason, "$reason"),
            "forget_at": {"$max": ["$forget_at", forget_at]},
        }
        if self.user is not None:
            stock_id, user_id = self.user
            known = {"$literal": {"stock_id": stock_id, "user_id": user_id}}
            fields["user"] = {"$ifNull": ["$user", known]}
        if self.state is State.CONFLICT:
            fields["conflicts"] = self._conflicts()
        return [{"$set": fields}]

    def document(self, forget_at: datetime) -> dict[str, Any]:
        """What `update` makes of an id that is not stored yet. Costs a fifth of it."""
        made: dict[str, Any] = {
            "_id": self.id,
            "state": self.state.value,
            "at": self.at,
            "forget_at": forget_at,
        }
        if self.reason is not None:
            made["reason"] = self.reason
        if self.user is not None:
            made["user"] = dict(zip(("stock_id", "user_id"), self.user, strict=True))
        return made

    def _applies(self) -> dict[str, Any]:
        current = {"$ifNull": ["$state", ""]}
        if self.state is State.REGISTERED:
            return {"$ne": [current, State.REGISTERED.value]}
        older = {"$lt": ["$at", self.at - self.margin]}
        replaced = {"$and": [{"$in": [current, _NOT_FOR_EVER]}, older]}
        absent_or_waiting = ["", State.PENDING.value] if self.state is not State.PENDING else [""]
        return {"$or": [{"$in": [current, absent_or_waiting]}, replaced]}

    def _conflicts(self) -> dict[str, Any]:
        """The listed conflicts: with this one, if the id is registered and it is not listed yet."""
        listed = {"$ifNull": ["$conflicts", []]}
        is_new = {
            "$and": [
                {"$eq": ["$state", State.REGISTERED.value]},
                {"$not": {"$in": [self.message, {"$ifNull": ["$conflicts.message", []]}]}},
                {"$lt": [{"$size": listed}, MOST_CONFLICTS]},
            ]
        }
        entry = {"at": self.at, "reason": self.reason, "message": self.message}
        added = {"$concatArrays": [listed, [{"$literal": entry}]]}
        return {"$cond": [is_new, added, {"$ifNull": ["$conflicts", "$$REMOVE"]}]}


def _if(condition: dict[str, Any], new: Any, old: str) -> dict[str, Any]:
    # A reason may begin with a dollar sign, so it must not be read as an expression.
    value = "$$REMOVE" if new is None else {"$literal": new}
    return {"$cond": [condition, value, {"$ifNull": [old, "$$REMOVE"]}]}


def concerns(message: Facts) -> bool:
    """Whether the outcome of this message is kept: a registration with an id of the API's form."""
    return message.task == REGISTRATION and is_registration_id(message.id)


def outcome_of(
    message: Facts, happened: Happened | None, outcome: Outcome, at: datetime
) -> Seen | None:
    """What the end of a delivery says about its registration; None if it says nothing new.

    A dead letter counts once SQS has accepted it; what happened is then of no importance. All else
    counts at the end of the run: after a success the user is on the disks of a majority.
    """
    reason: str | None = None
    match happened, outcome:
        case _, DeadLetter(reason, error):
            state = State.CONFLICT if error == CONFLICT else State.FAILED
        case Discarded("expired" as why), _:
            state, reason = State.EXPIRED, DISCARDED[why]
        case Discarded(why), _:
            state, reason = State.FAILED, DISCARDED.get(why, DISCARDED["revoked"])
        case Succeeded(), _:
            state = State.REGISTERED
        case _:
            return None
    delivery = message.delivery
    return Seen(message.id, state, at, reason, user_in(delivery.body), delivery.message_id)


def user_in(body: str) -> tuple[str, str] | None:
    """stock_id and user_id in a plain JSON message; None for any other body."""
    try:
        data = json.loads(body)["data"]
        stock_id = data["stockId"] if "stockId" in data else data["stock_id"]
        user_id = data["userId"] if "userId" in data else data["user_id"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return (stock_id, user_id) if isinstance(stock_id, str) and isinstance(user_id, str) else None
