"""Who did what to queues and dead letters, in the control database.

An entry names a person and a message by its id. It never has a body, or a value from one.
"""

from datetime import UTC, datetime
from typing import Any

from pymongo import WriteConcern
from pymongo.collection import Collection

from sqs_broker.control.collections import Document
from sqs_broker.control.store import Store

AUDIT = "audit"

#: Seconds that an entry is kept: a year.
KEPT = 365 * 86_400


class Audit:
    """Writes and reads the entries. Its methods raise pymongo's errors."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_prepared = False
        self._documents: Collection[Document] = store.database.get_collection(
            AUDIT, write_concern=WriteConcern("majority")
        )

    def note(self, action: str, by: str, **facts: Any) -> None:
        """Write one entry."""
        self._prepare()
        entry = {"at": datetime.now(UTC), "action": action, "by": by, **facts}
        with self._store.needs("insert", AUDIT):
            self._documents.insert_one(entry)

    def of_message(self, id_: str) -> list[dict[str, Any]]:
        """The entries about a message, oldest first."""
        with self._store.needs("find", AUDIT):
            return list(self._documents.find({"ids": id_}, {"_id": 0}).sort("at", 1))

    def _prepare(self) -> None:
        if self._is_prepared:
            return
        with self._store.needs("createIndex", AUDIT):
            self._documents.create_index("at", name="expiry", expireAfterSeconds=KEPT)
            self._documents.create_index("ids")
        self._is_prepared = True
