"""The MongoEngine documents. Their unique indexes are the idempotency keys.

Each process connects when it first needs to and never uses a client that was opened on the other
side of a fork. Indexes are made once, when a worker starts, and never on a write.
"""

import os
import threading
from typing import Any, ClassVar

import mongoengine as me
from pymongo import MongoClient

from app.messages import Source
from app.settings import DEFAULT_DATABASE as DEFAULT_DATABASE
from app.settings import get_settings

#: Milliseconds, used where MONGO_URI does not say: a task has to hear of a database that is away
#: well within its soft time limit, and pymongo's own defaults are 30 s, never and 20 s. The third
#: is also what its monitor waits beyond its 10 s before it gives up connections that are silent.
DEFAULT_TIMEOUTS = {
    "serverSelectionTimeoutMS": 5_000,
    "timeoutMS": 10_000,
    "connectTimeoutMS": 5_000,
}

#: Without a word on it MongoEngine takes one that pymongo has given up.
UUID_REPRESENTATION = "standard"

_connected_in: int | None = None
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


# Another thread may have held it at the fork.
os.register_at_fork(after_in_child=_new_lock)


class UserInfo(me.EmbeddedDocument):
    """What the user said of themself."""

    nickname = me.StringField(required=True)
    gender = me.StringField()
    introduction = me.StringField()


class RegistrationRecord(me.EmbeddedDocument):
    """The message that made the user."""

    message_id = me.StringField(required=True)
    source = me.EnumField(Source, required=True)
    deliveries = me.IntField(required=True)
    enqueued_at = me.DateTimeField(required=True)
    registered_at = me.DateTimeField(required=True)
    payload_hash = me.StringField(required=True)


class User(me.Document):
    """One user in one session of the game; exactly one for each registration."""

    stock_id = me.StringField(required=True)
    user_id = me.StringField(required=True)
    user_info = me.EmbeddedDocumentField(UserInfo, required=True)
    index = me.LongField(required=True)
    money = me.LongField(required=True)
    loan_count = me.LongField(required=True)
    last_activity_time = me.DateTimeField(required=True)
    registration = me.EmbeddedDocumentField(RegistrationRecord, required=True)

    meta: ClassVar[dict[str, Any]] = {
        "collection": "users",
        "auto_create_index": False,
        "strict": False,
        "indexes": [
            {"name": "stock_id_user_id", "fields": ["stock_id", "user_id"], "unique": True}
        ],
    }


def connect() -> MongoClient[dict[str, Any]]:
    """The MongoDB client of this process, opened at the first call, behind all documents.

    Thread-safe. Raises SettingsError where MONGO_URI is not set. It does not wait for the server.
    """
    with _lock:
        if _connected_in != os.getpid():
            _open()
    client: MongoClient[dict[str, Any]] = me.get_connection()
    return client


def _open() -> None:
    global _connected_in
    if _connected_in is not None:
        # This process was forked from one that had a client.
        me.disconnect()
    uri = get_settings().require_mongo_uri()
    me.connect(
        DEFAULT_DATABASE,
        host=uri,
        tz_aware=True,
        uuidRepresentation=UUID_REPRESENTATION,
        **_unsaid(DEFAULT_TIMEOUTS, uri),
    )
    _connected_in = os.getpid()


def disconnect() -> None:
    """Close this process's client. The next `connect` opens another."""
    global _connected_in
    me.disconnect()
    _connected_in = None


def _unsaid(options: dict[str, int], uri: str) -> dict[str, int]:
    return {name: value for name, value in options.items() if name.lower() not in uri.lower()}
