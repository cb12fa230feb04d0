"""A registration becomes a user, once. No Celery, no SQS, no web."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from mongoengine.errors import NotUniqueError
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from app.errors import AppError, Conflict, TransientError
from app.messages import Provenance, Registration
from app.models import RegistrationRecord, User, UserInfo, connect
from app.settings import get_settings

#: A registration and where it came from.
Pair = tuple[Registration, Provenance]

#: MongoDB's code of a write that a unique index refuses.
DUPLICATE_KEY = 11_000


class Result(StrEnum):
    """What a registration led to. A conflict is not a result: it raises."""

    REGISTERED = "registered"
    """The user is new."""
    ALREADY_REGISTERED = "already registered"
    """The same registration came before: nothing was changed."""


@dataclass(frozen=True)
class Registered:
    """The user is stored, by this message or by an equal one before it."""

    result: Result
    stock_id: str
    user_id: str


def register(registration: Registration, provenance: Provenance) -> Registered:
    """Store the user of this registration exactly once, in one round trip to MongoDB.

    The unique index on (stock_id, user_id) is the idempotency key: the upsert writes where there
    is nobody and reads where there is somebody, whatever runs at the same instant. Raises
    Conflict where another payload has registered this user; the first one stays.
    """
    connect()
    return _registered(registration, _insert_or_find(registration, provenance))


def register_many(pairs: Sequence[Pair]) -> list[Registered | AppError]:
    """Store the users of many registrations as `register` does, in one round trip; a second one
    where any of them was there before. In order, for each its result or its own error.

    Raises what pymongo raises where none can be known: then each may be tried again.
    """
    connect()
    new, failed = _insert_new(pairs)
    old = [pair for place, pair in enumerate(pairs) if place not in new and place not in failed]
    before = _find(old) if old else {}
    outcomes: list[Registered | AppError] = []
    for place, (registration, _) in enumerate(pairs):
        try:
            if place in failed:
                raise TransientError("MongoDB refused the write")
            found = None if place in new else _required(before.get(_key(registration)))
            outcomes.append(_registered(registration, found))
        except AppError as exc:
            outcomes.append(exc)
    return outcomes


def _registered(registration: Registration, before: User | None) -> Registered:
    if before is None:
        result = Result.REGISTERED
    elif before.registration.payload_hash == registration.payload_hash():
        result = Result.ALREADY_REGISTERED
    else:
        raise Conflict("the user is registered already, with another payload")
    return Registered(result, registration.stock_id, registration.user_id)


def _insert_or_find(registration: Registration, provenance: Provenance) -> User | None:
    stock_id, user_id = _key(registration)
    values = _on_insert(registration, provenance)
    try:
        found: User | None = User.objects(stock_id=stock_id, user_id=user_id).modify(
            upsert=True, new=False, **{f"set_on_insert__{name}": v for name, v in values.items()}
        )
    except NotUniqueError:
        # Two upserts of one key at one instant: MongoDB lets one insert and may refuse the other.
        found = _required(User.objects(stock_id=stock_id, user_id=user_id).first())
    return found


def _insert_new(pairs: Sequence[Pair]) -> tuple[set[int], set[int]]:
    """Upsert all at once: the places of those that were new, and of those that failed."""
    upserts = []
    for registration, provenance in pairs:
        stock_id, user_id = _key(registration)
        user = User(**_on_insert(registration, provenance))
        upserts.append(
            UpdateOne(
                {"stock_id": stock_id, "user_id": user_id},
                {"$setOnInsert": user.to_mongo().to_dict()},
                upsert=True,
            )
        )
    try:
        # Not in order: one that is refused does not keep back those after it.
        answer = User._get_collection().bulk_write(upserts, ordered=False)
    except BulkWriteError as exc:
        errors = exc.details["writeErrors"]
        failed = {e["index"] for e in errors if e["code"] != DUPLICATE_KEY}
        return {upserted["index"] for upserted in exc.details["upserted"]}, failed
    return set(answer.upserted_ids or ()), set()


def _find(pairs: Sequence[Pair]) -> dict[tuple[str, str], User]:
    keys = [
        {"stock_id": registration.stock_id, "user_id": registration.user_id}
        for registration, _ in pairs
    ]
    return {(user.stock_id, user.user_id): user for user in User.objects(__raw__={"$or": keys})}


def _required(user: User | None) -> User:
    if user is None:
        raise TransientError("the user vanished between two reads")
    return user


def _key(registration: Registration) -> tuple[str, str]:
    return registration.stock_id, registration.user_id


def _on_insert(registration: Registration, provenance: Provenance) -> dict[str, Any]:
    """What a new user starts with, beside its key."""
    now = datetime.now(UTC)
    money = registration.money
    return {
        "user_info": UserInfo(**registration.user_info.model_dump()),
        "index": registration.index,
        "money": get_settings().starting_money if money is None else money,
        "loan_count": registration.loan_count,
        "last_activity_time": now,
        "registration": RegistrationRecord(
            message_id=provenance.message_id,
            source=provenance.source,
            deliveries=provenance.deliveries,
            enqueued_at=provenance.enqueued_at,
            registered_at=now,
            payload_hash=registration.payload_hash(),
        ),
    }
