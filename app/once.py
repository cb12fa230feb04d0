"""Exactly-once effects: the effect and the record of the message id commit in one transaction.

Guaranteed: the effect on MongoDB exists once, or not yet. This holds however often SQS delivers the
message, even at the same time, and wherever a process is killed. A duplicate gets the first result.
Not guaranteed: an effect outside this MongoDB (an e-mail, a call to another service) is not rolled
back. The function may start more than once, because a transaction that conflicts with another one
is tried again. Message ids are deleted after ONCE_RETENTION_DAYS.

If a process is killed in a transaction, MongoDB keeps its locks until it ends the transaction
(`transactionLifetimeLimitSeconds`, 60 s by default). A message that needs these locks is retried
after that time. So do not write the same document in every message: use several documents.

    @once
    def increment(message: Increment, provenance: Provenance, session: ClientSession) -> ...:
        counters.update_one(..., session=session)    # every read and write takes the session
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from time import monotonic
from typing import Any, ClassVar, TypeVar

import mongoengine as me
import pymongo
from pymongo import WriteConcern
from pymongo.client_session import ClientSession
from pymongo.errors import (
    ConfigurationError,
    DuplicateKeyError,
    ExecutionTimeout,
    NetworkTimeout,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from pymongo.read_concern import ReadConcern

from app import payload
from app.errors import Conflict, PermanentError, TransientError
from app.messages import Message, Provenance
from app.models import StoredPayload, connect, disconnect
from app.payload import Comparison
from app.settings import get_settings

#: The result of an effect, also for a duplicate: plain values that BSON and JSON can hold.
Stored = dict[str, Any]
Effect = Callable[[Any, Provenance, ClientSession], Stored]
Result = TypeVar("Result")

#: Seconds for the whole transaction with its retries. Less than a task's soft time limit.
TRANSACTION_TIMEOUT = 5


class OnceRecord(me.Document):
    """A message whose effect is committed."""

    key = me.StringField(primary_key=True)
    payload_hash = me.StringField(required=True)
    # Earlier releases do not store it.
    payload = me.EmbeddedDocumentField(StoredPayload)
    stored = me.DictField()
    applied_at = me.DateTimeField(required=True)
    forget_at = me.DateTimeField(required=True)

    meta: ClassVar[dict[str, Any]] = {
        "collection": "once",
        "auto_create_index": False,
        "strict": False,
        "indexes": [{"name": "forget_at", "fields": ["forget_at"], "expireAfterSeconds": 0}],
    }


def once(effect: Effect) -> Callable[[Any, Provenance], Stored]:
    """Run `effect` once for each message id of its message type, and store its result.

    The returned function takes (message, provenance). It raises PermanentError if the producer gave
    the message no id: after a redrive SQS's id is a new one, so the message could count twice. It
    raises Conflict if the id was used before with another payload.
    """

    @wraps(effect)
    def applied(message: Message, provenance: Provenance) -> Stored:
        if not provenance.has_producer_id:
            raise PermanentError("the message has no id from its producer, so it cannot run once")
        key = f"{type(message).__name__}:{provenance.message_id}"
        return _apply(key, message, provenance, effect)

    return applied


def _apply(key: str, message: Message, provenance: Provenance, effect: Effect) -> Stored:
    def transaction(session: ClientSession) -> Stored:
        before = _stored_result(key, message, session)
        if before is not None:
            return before
        stored = effect(message, provenance, session)
        _record(key, message, stored, session)
        return stored

    try:
        with connect().start_session() as session:
            return _committed(transaction, session)
    except DuplicateKeyError:
        # Another delivery committed between this one's read and write.
        committed = _stored_result(key, message, None)
        if committed is None:
            raise
        return committed
    except ConfigurationError:
        # A connection that was opened while its member was neither primary nor secondary never
        # accepts sessions (pymongo 4.20 pool.py), so the client is replaced.
        disconnect()
        raise
    except PyMongoError as exc:
        blocked = isinstance(exc, ExecutionTimeout | NetworkTimeout)
        if not (blocked or exc.has_error_label("TransientTransactionError")):
            raise
        raise TransientError(
            "another transaction holds a document of this message",
            retry_after=get_settings().mongo_transaction_lifetime,
        ) from exc


def in_transaction(session: ClientSession, work: Callable[[ClientSession], Result]) -> Result:
    """Run `work` in a transaction. Return its result once a majority has its writes on disk.

    After a TransientTransactionError it runs `work` again. It repeats a commit whose result is
    unknown, as MongoDB requires:
    https://www.mongodb.com/docs/manual/core/transactions-in-applications/
    """
    result: Result = session.with_transaction(
        work,
        read_concern=ReadConcern("snapshot"),
        write_concern=WriteConcern("majority", j=True),
    )
    return result


def _committed(transaction: Callable[[ClientSession], Stored], session: ClientSession) -> Stored:
    deadline = monotonic() + TRANSACTION_TIMEOUT
    try:
        with pymongo.timeout(TRANSACTION_TIMEOUT):
            return in_transaction(session, transaction)
    except Exception as exc:
        if monotonic() >= deadline and not isinstance(exc, ServerSelectionTimeoutError):
            _free_locks(session)
        raise


def _free_locks(session: ClientSession) -> None:
    """End on the server a transaction that timed out here. After a timeout pymongo 4.20 sends no
    abort, so the locks would stay. A new transaction of the same session ends the old one."""
    with suppress(PyMongoError), pymongo.timeout(1), session.start_transaction():
        OnceRecord._get_collection().find_one({"_id": ""}, session=session)


def _stored_result(key: str, message: Message, session: ClientSession | None) -> Stored | None:
    row = OnceRecord._get_collection().find_one({"_id": key}, session=session)
    if row is None:
        return None
    match payload.compare(row, message):
        case Comparison.DIFFERENT:
            raise Conflict("this message id was applied already, with another payload")
        case Comparison.UNREADABLE:
            raise PermanentError(
                "this message id was applied already, but the payloads cannot be compared: "
                "payload_hash is missing or not as a worker writes it"
            )
    stored: Stored = row["stored"]
    return stored


def _record(key: str, message: Message, stored: Stored, session: ClientSession) -> None:
    now = datetime.now(UTC)
    OnceRecord._get_collection().insert_one(
        {
            "_id": key,
            "payload_hash": message.payload_hash(),
            "payload": payload.record(message),
            "stored": stored,
            "applied_at": now,
            "forget_at": now + timedelta(days=get_settings().once_retention_days),
        },
        session=session,
    )
