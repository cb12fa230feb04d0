"""Stores the user of a registration exactly once. Knows no Celery, no SQS and no web."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from app.indexes import Sight
from app.messages import Provenance, Registration
from app.models import User, connect, id_of, make_index
from app.new_user import document, key_of
from app.payload import Comparison

#: A registration, and where it came from.
Pair = tuple[Registration, Provenance]

#: MongoDB's error code if a unique index refuses a write.
DUPLICATE_KEY = 11_000


#: MongoDB's error code if, among other things, a write names an index that does not exist.
BAD_VALUE = 2

#: Each upsert names this index as a hint. If the index is missing, MongoDB refuses the upsert,
#: instead of scanning all users.
INDEX = [("stock_id", 1), ("user_id", 1)]

#: The fields of the indexes that refuse a second user with the same key. Any other unique index was
#: not created by this program.
OUR_KEYS = ({"_id"}, {"stock_id", "user_id"})


#: Whether this process has seen the unique index. Only then it inserts.
_sight = Sight(User._meta["indexes"])


class Result(StrEnum):
    """The result of a registration. A conflict is not a result: it raises."""

    REGISTERED = "registered"
    """The user is new."""
    ALREADY_REGISTERED = "already registered"
    """The same registration came before, and nothing was changed."""


@dataclass(frozen=True)
class Registered:
    """The user is stored, by this message or by an equal earlier one."""

    result: Result
    stock_id: str
    user_id: str


def register(registration: Registration, provenance: Provenance) -> Registered:
    """Store the user of this registration exactly once.

    It takes one round trip to MongoDB, and a second one if the user existed before. It returns once
    a majority of MongoDB's members has the user on disk. The unique index on (stock_id, user_id) is
    the idempotency key: the upsert writes a new user and never changes an existing one, whatever
    runs at the same time. Raises Conflict if another payload has registered this user, who then
    stays as stored. Raises PermanentError if the stored user was edited so that its payload cannot
    be compared. Raises pymongo's errors.
    """
    connect()
    users = User._get_collection()
    try:
        is_new = _insert(users, registration, provenance)
    except DuplicateKeyError:
        # Another upsert of this key ran at the same time. Or another index refuses the user, and
        # `register_many` returns that error.
        return _only(register_many([(registration, provenance)]))
    except OperationFailure as exc:
        if exc.code != BAD_VALUE:
            raise
        # The index may be missing, and `register_many` creates it.
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
    """Upsert one user. Return whether the user is new. An existing user must be read again, with
    read concern majority."""
    change = {"$setOnInsert": document(registration, provenance)}
    before = users.find_one_and_update(
        key_of(registration), change, projection={"_id": 1}, upsert=True, hint=INDEX
    )
    return before is None


def register_many(pairs: Sequence[Pair]) -> list[Registered | AppError | PyMongoError]:
    """Store the users of many registrations as `register` does, in one round trip, or two if any of
    the users existed before. Return the result or the error of each, in order.

    If this process has seen the unique index within the last seconds, it inserts the users, and
    the index refuses those that exist. Otherwise it upserts them, with the index as a hint.

    Raises pymongo's errors if no outcome is known. Then each registration may be tried again.
    """
    connect()
    users = User._get_collection()
    written = insert(users, pairs) if _sight.has_all(users) else upsert(users, pairs)
    if len(written.new) == len(pairs):
        return [Registered(Result.REGISTERED, *_key(registration)) for registration, _ in pairs]
    if written.lacks_the_index and users.find_one({}, {"_id": 1}) is None:
        # No worker has used this database yet, or the collection was dropped.
        for declared in User._meta["indexes"]:
            make_index(users, declared)
        written = upsert(users, pairs)
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
    """MongoDB's answer to many inserts or upserts, by their positions."""

    new: set[int] = field(default_factory=set)
    refused: dict[int, PyMongoError] = field(default_factory=dict)

    @property
    def lacks_the_index(self) -> bool:
        """Whether MongoDB may have refused all of them because the index of the hint is missing."""
        return bool(self.refused) and all(
            getattr(exc, "code", None) == BAD_VALUE for exc in self.refused.values()
        )

    def places_before(self, total: int) -> list[int]:
        """The positions of the users that existed before."""
        return [p for p in range(total) if p not in self.new and p not in self.refused]


def insert(
    users: Collection[dict[str, Any]], pairs: Sequence[Pair], session: ClientSession | None = None
) -> Written:
    """Insert all users in one call. Users that exist are refused by the unique indexes, so these
    must be there. Raises what `upsert` raises.

    An insert takes less than half of the CPU that an upsert takes on the server.
    """
    documents = [document(registration, provenance) for registration, provenance in pairs]
    try:
        users.insert_many(documents, ordered=False, session=session)
    except BulkWriteError as exc:
        failed = {error["index"] for error in exc.details["writeErrors"]}
        return _partly_written(exc.details, len(pairs), set(range(len(pairs))) - failed)
    return Written(new=set(range(len(pairs))))


def upsert(
    users: Collection[dict[str, Any]], pairs: Sequence[Pair], session: ClientSession | None = None
) -> Written:
    """Upsert all users in one call. MongoDB refuses all of them if the index of the hint is
    missing. Raises pymongo's errors if MongoDB reports nothing about the single users."""
    upserts = [_upsert(registration, provenance) for registration, provenance in pairs]
    try:
        # Unordered, so that a refused upsert does not stop those after it.
        answer = users.bulk_write(upserts, ordered=False, session=session)
    except BulkWriteError as exc:
        new = {upserted["index"] for upserted in exc.details["upserted"]}
        return _partly_written(exc.details, len(pairs), new)
    return Written(new=set(answer.upserted_ids or ()))


def _upsert(registration: Registration, provenance: Provenance) -> UpdateOne:
    change = {"$setOnInsert": document(registration, provenance)}
    return UpdateOne(key_of(registration), change, upsert=True, hint=INDEX)


def _partly_written(details: Mapping[str, Any], total: int, new: set[int]) -> Written:
    for error in details["writeConcernErrors"]:
        # The writes may still be rolled back, so none of them counts.
        lost = WriteConcernError("no majority has acknowledged the write", error["code"])
        return Written(refused=dict.fromkeys(range(total), lost))
    written = Written(new=new)
    for error in details["writeErrors"]:
        if not _is_stored(error):
            refused = WriteError("MongoDB refused the write", error["code"])
            written.refused[error["index"]] = refused
    return written


def _is_stored(error: Mapping[str, Any]) -> bool:
    """Whether a user with this key is stored: MongoDB refuses to insert it again, and may refuse
    one of two upserts at the same time."""
    return error["code"] == DUPLICATE_KEY and set(error["keyPattern"]) in OUR_KEYS


@dataclass
class _Before:
    """The users that existed before, as plain documents: MongoEngine may not be able to read a user
    that was edited by hand."""

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
            "this user is stored under another key: the document in `users` was edited by hand"
        )
    raise TransientError("the user was deleted between two calls to MongoDB")


def _registered_before(registration: Registration, user: Mapping[str, Any]) -> Registered:
    match payload.compare(user, registration):
        case Comparison.SAME:
            return Registered(Result.ALREADY_REGISTERED, *_key(registration))
        case Comparison.DIFFERENT:
            raise Conflict("the user is registered already, with another payload")
        case Comparison.UNREADABLE:
            raise PermanentError(
                "the user is registered already, but the payloads cannot be compared: "
                "registration.payload_hash is missing, or not as a worker writes it. The document "
                "in `users` was not created by a registration, or was edited by hand"
            )


def _key(registration: Registration) -> tuple[str, str]:
    return registration.stock_id, registration.user_id
