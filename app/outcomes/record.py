"""The collection of outcomes."""

from typing import Any, ClassVar

import mongoengine as me


class OutcomeRecord(me.Document):
    """One registration. Declares the collection and its index; the documents are written and read
    with pymongo."""

    id = me.StringField(primary_key=True)
    state = me.StringField(required=True)
    at = me.DateTimeField(required=True)
    reason = me.StringField()
    user = me.DictField()
    conflicts = me.ListField(me.DictField())
    forget_at = me.DateTimeField(required=True)

    meta: ClassVar[dict[str, Any]] = {
        "collection": "outcomes",
        "auto_create_index": False,
        "strict": False,
        "indexes": [{"name": "forget_at", "fields": ["forget_at"], "expireAfterSeconds": 0}],
    }
