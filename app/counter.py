"""The effect of `increment`, the smallest thing that may not happen twice."""

from typing import Any, ClassVar

import mongoengine as me
from pymongo.client_session import ClientSession

from app.messages import Increment, Provenance
from app.once import Stored, once

#: The one running count.
COUNT_ID = "increments"


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
    """A running count."""

    name = me.StringField(primary_key=True)
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
    # A copy: the driver adds an `_id` to what it inserts.
    Increments._get_collection().insert_one(dict(row), session=session)
    Counter._get_collection().update_one(
        {"_id": COUNT_ID}, {"$inc": {"count": 1}}, upsert=True, session=session
    )
    return row


def count() -> int:
    """How many increments were applied."""
    row = Counter._get_collection().find_one({"_id": COUNT_ID})
    return int(row["count"]) if row else 0
