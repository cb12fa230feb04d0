"""The effect of the task `increment`: the simplest effect that must not happen twice."""

import zlib
from typing import Any, ClassVar

import mongoengine as me
from pymongo.client_session import ClientSession

from app.messages import Increment, Provenance
from app.models import connect
from app.once import Stored, once

#: Number of documents that each hold a part of the running count. With a single document, each
#: increment would conflict with all others, and a process that is killed between write and commit
#: would block all of them (app/once.py).
PARTS = 32


class Increments(me.Document):
    """One applied increment."""

    message_id = me.StringField(required=True)
    input = me.DynamicField(required=True)
    output = me.DynamicField(required=True)

    meta: ClassVar[dict[str, Any]] = {
        "collection": "increments",
        "auto_create_index": False,
        "indexes": [{"name": "message_id", "fields": ["message_id"], "unique": True}],
    }


class Counter(me.Document):
    """A part of the running count."""

    part = me.IntField(primary_key=True)
    count = me.LongField(required=True, default=0)

    meta: ClassVar[dict[str, Any]] = {"collection": "counters", "auto_create_index": False}


@once
def increment(message: Increment, provenance: Provenance, session: ClientSession) -> Stored:
    """Store the input and its output, and add one to the running count."""
    row = {
        "message_id": provenance.message_id,
        "input": message.input,
        "output": message.input + 1,
    }
    # A copy, because the driver adds an `_id` to a document that it inserts.
    Increments._get_collection().insert_one(dict(row), session=session)
    Counter._get_collection().update_one(
        {"_id": _part(provenance.message_id)}, {"$inc": {"count": 1}}, upsert=True, session=session
    )
    return row


def count() -> int:
    """The running count: how many increments were applied."""
    connect()
    parts = Counter._get_collection().find({}, {"count": 1})
    return sum(int(part["count"]) for part in parts)


def _part(message_id: str) -> int:
    return zlib.crc32(message_id.encode()) % PARTS
