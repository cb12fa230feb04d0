"""The MongoEngine documents. Their unique indexes are the idempotency keys.

Each process connects when it first needs MongoDB, and never uses a client that was opened before a
fork. Indexes are created when a worker starts; those of `users` also before its first document.
"""

import hashlib
import os
import threading
from collections.abc import Mapping
from time import monotonic
from typing import Any, ClassVar

import mongoengine as me
from bson import ObjectId
from pymongo import IndexModel, MongoClient
from pymongo.collection import Collection

from app.messages import Source
from app.mongo import OURS, address_of, open_client
from app.settings import get_settings

#: Seconds that a client may take to find a primary before it is replaced.
PATIENCE = 5.0

_connected_in: int | None = None
_connected_at = 0.0
#: The last description of the servers that has a primary. To look for it takes longer than the rest
#: of `connect`.
_with_primary: Any = None
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


# Another thread of the parent may have held the lock at the fork.
os.register_at_fork(after_in_child=_new_lock)


class UserInfo(me.EmbeddedDocument):
    """What users say about themselves."""

    nickname = me.StringField(required=True)
    gender = me.StringField()
    introduction = me.StringField()


class RegistrationRecord(me.EmbeddedDocument):
    """The message that created the user."""

    message_id = me.StringField(required=True)
    source = me.EnumField(Source, required=True)
    deliveries = me.IntField(required=True)
    enqueued_at = me.DateTimeField(required=True)
    registered_at = me.DateTimeField(required=True)
    payload_hash = me.StringField(required=True)


class StoredPayload(me.EmbeddedDocument):
    """The data that a later message's payload is compared with (app/payload.py)."""

    version = me.IntField(required=True)
    hash = me.StringField(required=True)
    known = me.StringField(required=True)
    given = me.StringField()

    # A later release may store more fields.
    meta: ClassVar[dict[str, Any]] = {"strict": False}


class User(me.Document):
    """One user in one session of the game. There is exactly one for each registration."""

    stock_id = me.StringField(required=True)
    user_id = me.StringField(required=True)
    user_info = me.EmbeddedDocumentField(UserInfo, required=True)
    index = me.LongField(required=True)
    money = me.LongField(required=True)
    loan_count = me.LongField(required=True)
    last_activity_time = me.DateTimeField(required=True)
    registration = me.EmbeddedDocumentField(RegistrationRecord, required=True)
    # Not part of `registration`, which earlier releases read strictly. Their users have no payload.
    payload = me.EmbeddedDocumentField(StoredPayload)

    meta: ClassVar[dict[str, Any]] = {
        "collection": "users",
        "auto_create_index": False,
        "strict": False,
        "indexes": [
            {"name": "stock_id_user_id", "fields": ["stock_id", "user_id"], "unique": True}
        ],
    }


def make_index(collection: Collection[dict[str, Any]], declared: Mapping[str, Any]) -> None:
    """Create an index as a document's `meta` declares it. Raises pymongo's errors."""
    options = {name: value for name, value in declared.items() if name != "fields"}
    index = IndexModel([(name, 1) for name in declared["fields"]], **options)
    # Otherwise MongoDB waits for every member that votes, also for one that is down:
    # https://www.mongodb.com/docs/manual/reference/command/createIndexes/
    collection.create_indexes([index], commitQuorum="majority")


def id_of(stock_id: str, user_id: str) -> ObjectId:
    """The `_id` of the user with this key: the same in every process.

    So the index on `_id`, which cannot be dropped, refuses a second insert of one user even if the
    unique index on the key is missing.
    """
    key = f"{len(stock_id)}:{stock_id}{user_id}"
    return ObjectId(hashlib.sha256(key.encode()).digest()[:12])


def connect() -> MongoClient[dict[str, Any]]:
    """The MongoDB client of this process, which all documents use. Opened at the first call.

    A client that no longer knows a primary is replaced. After a member has left the replica set or
    changed its name, a client may search for it for ever; a new client starts with the URI again.
    Thread-safe. Does not wait for the server. Raises SettingsError if MONGO_URI is not set or
    cannot be used.
    """
    with _lock:
        if _connected_in != os.getpid() or _is_lost():
            _open()
    client: MongoClient[dict[str, Any]] = me.get_connection()
    return client


def _is_lost() -> bool:
    global _with_primary
    client: MongoClient[dict[str, Any]] = me.get_connection()
    description = client.topology_description
    if description is _with_primary:
        return False  # pymongo never changes a description: what it learns makes a new one.
    if description.has_writable_server():
        _with_primary = description
        return False
    return monotonic() - _connected_at > PATIENCE


def _open() -> None:
    global _connected_in, _connected_at
    if _connected_in is not None:
        # The client has lost its primary, or this process was forked from one with a client.
        me.disconnect()
        _connected_in = None
    uri = get_settings().require_mongo_uri()
    client = open_client(uri, **_listeners())
    me.connect(
        address_of(uri).database,
        # Without this MongoEngine parses the URI itself.
        mongo_client_class=lambda **_: client,
        uuidRepresentation=OURS["uuidRepresentation"],
    )
    _connected_in, _connected_at = os.getpid(), monotonic()


def _listeners() -> dict[str, Any]:
    if not get_settings().tracing:
        return {}
    from app.tracing import tracing

    return {"event_listeners": [tracing.commands]}


def disconnect() -> None:
    """Close this process's client. The next `connect` opens a new one."""
    global _connected_in
    me.disconnect()
    _connected_in = None
