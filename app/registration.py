"""A registration becomes a user, once. No Celery, no SQS, no web."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pymongo import UpdateOne
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import (
    BulkWriteError,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
    WriteError,
)

from app import payload
from app.errors import AppError, Conflict, PermanentError, TransientError
from app.messages import Provenance, Registration
from app.models import RegistrationRecord, StoredPayload, User, UserInfo, connect, id_of, make_index
from app.payload import Comparison
from app.settings import get_settings

#: A registration and where it came from.
Pair = tuple[Registration, Provenance]

#: MongoDB's code of a write that a unique index refuses.
DUPLICATE_KEY = 11_000


#: Its code of an index that a write names and that is not there, among other things.
BAD_VALUE = 2

#: Named by each write: without it MongoDB refuses the write, instead of looking through all users.
INDEX = [("stock_id", 1), ("user_id", 1)]

#: The fields of the indexes that refuse a second user of one key. Any other unique index is not
#: this program's.
OUR_KEYS = ({"_id"}, {"stock_id", "user_id"})


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
    """Store the user of this registration exactly once, in one round trip to MongoDB; a second one
    if it was there before.

    It returns once a majority of MongoDB's members has the user on disk. The unique index on
    (stock_id, user_id) is the idempotency key: the upsert writes if there is nobody and changes
    nothing if there is somebody, whatever runs at the same instant. Raises Conflict if another
    payload has registered this user; the first one stays. Raises PermanentError for a user that
    somebody has changed by hand so that this cannot be told, and what pymongo raises.
    """
    connect()
    users = User._get_collection()
    try:
        is_new = _insert(users, registration, provenance)
    except DuplicateKeyError:
        # Another upsert of this key at one instant; or another index refuses it, which is said.
        return _only(register_many([(registration, provenance)]))
    except OperationFailure as exc:
        if exc.code != BAD_VALUE:
            raise
        # For want of the index, maybe.
        return _only(register_many([(registration, provenance)]))
    if is_new:
        return Registered(Result.REGISTERED, *_key(registration))
    return _outcome(0, registration, Written(), _find(users, [registration]))


def _only(outcomes: Sequence[Registered | AppError | PyMongoError]) -> Registered:
    (outcome,) = outcomes
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _insert(
    users: Collection[dict[str, Any]], registration: Registration, provenance: Provenance
) -> bool:
    """Upsert one; whether there was none. What was there is read again, as a majority has it."""
    key, new = _new_user(registration, provenance)
    before = users.find_one_and_update(
        key, {"$setOnInsert": new}, projection={"_id": 1}, upsert=True, hint=INDEX
    )
    return before is None


def register_many(pairs: Sequence[Pair]) -> list[Registered | AppError | PyMongoError]:
    """Store the users of many registrations as `register` does, in one round trip; a second one
    if any of them was there before. In order, for each its result or its own error.

    Raises what pymongo raises if none can be known: then each may be tried again.
    """
    connect()
    users = User._get_collection()
    written = write(users, pairs)
    if written.lacks_the_index and users.find_one({}, {"_id": 1}) is None:
        # No worker has started here yet, or somebody has begun anew.
        for declared in User._meta["indexes"]:
            make_index(users, declared)
        written = write(users, pairs)
    before = _find(users, [pairs[place][0] for place in written.places_before(len(pairs))])
    outcomes: list[Registered | AppError | PyMongoError] = []
    for place, (registration, _) in enumerate(pairs):
        try:
            outcomes.append(_outcome(place, registration, written, before))
        except (AppError, PyMongoError) as exc:
            outcomes.append(exc)
    return outcomes


@dataclass
class Written:
    """MongoDB's answer to many upserts, by their places."""

    new: set[int] = field(default_factory=set)
    refused: dict[int, PyMongoError] = field(default_factory=dict)

    @property
    def lacks_the_index(self) -> bool:
        """Whether MongoDB may have refused all for want of the index that each write names."""
        return bool(self.refused) and all(
            getattr(exc, "code", None) == BAD_VALUE for exc in self.refused.values()
        )

    def places_before(self, total: int) -> list[int]:
        """The places of those that were there before."""
        return [p for p in range(total) if p not in self.new and p not in self.refused]


def write(
    users: Collection[dict[str, Any]], pairs: Sequence[Pair], session: ClientSession | None = None
) -> Written:
    """Upsert all at once; what MongoDB says of each. Raises what pymongo raises if it says
    nothing."""
    upserts = [_upsert(registration, provenance) for registration, provenance in pairs]
    try:
        # Not in order: one that is refused does not keep back those after it.
        answer = users.bulk_write(upserts, ordered=False, session=session)
    except BulkWriteError as exc:
        return _partly_written(exc.details, len(pairs))
    return Written(new=set(answer.upserted_ids or ()))


def _upsert(registration: Registration, provenance: Provenance) -> UpdateOne:
    key, new = _new_user(registration, provenance)
    return UpdateOne(key, {"$setOnInsert": new}, upsert=True, hint=INDEX)


def _new_user(
    registration: Registration, provenance: Provenance
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The key of a user, and the document that it is if there is none."""
    stock_id, user_id = _key(registration)
    user = User(id=id_of(stock_id, user_id), **_on_insert(registration, provenance))
    return {"stock_id": stock_id, "user_id": user_id}, user.to_mongo().to_dict()


def _partly_written(details: Mapping[str, Any], total: int) -> Written:
    for error in details["writeConcernErrors"]:
        # Of what is written nobody knows whether it lasts.
        lost = WriteConcernError("no majority has acknowledged the write", error["code"])
        return Written(refused=dict.fromkeys(range(total), lost))
    written = Written(new={upserted["index"] for upserted in details["upserted"]})
    for error in details["writeErrors"]:
        if not _is_there(error):
            refused = WriteError("MongoDB refused the write", error["code"])
            written.refused[error["index"]] = refused
    return written


def _is_there(error: Mapping[str, Any]) -> bool:
    """Whether a user of this key is stored: of two upserts at one instant MongoDB lets one insert,
    and may refuse the other."""
    return error["code"] == DUPLICATE_KEY and set(error["keyPattern"]) in OUR_KEYS


@dataclass
class _Before:
    """The users that were there before, as MongoDB has them: what somebody has changed by hand may
    be no document of MongoEngine's."""

    by_key: dict[tuple[Any, Any], Mapping[str, Any]]
    by_id: dict[Any, Mapping[str, Any]]


def _find(users: Collection[dict[str, Any]], registrations: Sequence[Registration]) -> _Before:
    keys = [_key(registration) for registration in registrations]
    wanted: list[dict[str, Any]] = [{"stock_id": stock, "user_id": user} for stock, user in keys]
    wanted += [{"_id": id_of(*key)} for key in keys]
    found = list(users.find({"$or": wanted}, {"user_info": 0})) if keys else []
    return _Before(
        {(user.get("stock_id"), user.get("user_id")): user for user in found},
        {user["_id"]: user for user in found},
    )


def _outcome(
    place: int,
    registration: Registration,
    written: Written,
    before: _Before,
) -> Registered:
    key = _key(registration)
    if refused := written.refused.get(place):
        raise refused
    if place in written.new:
        return Registered(Result.REGISTERED, *key)
    if (user := before.by_key.get(key)) is not None:
        return _registered_before(registration, user)
    if id_of(*key) in before.by_id:
        raise PermanentError(
            "this user is stored under another key: its document in `users` was changed by hand"
        )
    raise TransientError("the user vanished between two calls of MongoDB")


def _registered_before(registration: Registration, user: Mapping[str, Any]) -> Registered:
    match payload.compare(user, registration):
        case Comparison.SAME:
            return Registered(Result.ALREADY_REGISTERED, *_key(registration))
        case Comparison.DIFFERENT:
            raise Conflict("the user is registered already, with another payload")
        case Comparison.UNREADABLE:
            raise PermanentError(
                "a user of this key is there, and with which payload it was registered cannot be "
                "read: registration.payload_hash is missing, or not as a worker writes it. The "
                "document in `users` was not made by a registration, or was changed by hand"
            )


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
        "payload": StoredPayload(**payload.record(registration)),
    }
