"""How often each message was redriven, in the control database.

SQS counts the deliveries of a redriven message from one, and it has no attribute to spare. So the
count is kept here by the message's id. It is a set of the dead letters that were sent back, by
SQS's MessageId: a redrive that is repeated after it was killed counts once.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pymongo import ReadPreference, UpdateOne, WriteConcern
from pymongo.collection import Collection

from sqs_broker.control.collections import Document
from sqs_broker.control.store import Store
from sqs_broker.options import LONGEST_LIFE

REDRIVES = "redrives"


class Redrives:
    """Reads and writes the counts. Its methods raise pymongo's errors."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_prepared = False
        self._documents: Collection[Document] = store.database.get_collection(
            REDRIVES, read_preference=ReadPreference.PRIMARY, write_concern=WriteConcern("majority")
        )

    def counts(self, ids: Sequence[str]) -> dict[str, int]:
        """How often each of these messages was redriven. One that never was is left out."""
        with self._store.needs("find", REDRIVES):
            found = list(self._documents.find({"_id": {"$in": list(ids)}}))
        return {each["_id"]: len(each.get("letters", ())) for each in found}

    def add(self, redriven: Mapping[str, str]) -> None:
        """Count redrives: by the id of the message, SQS's MessageId of its dead letter."""
        self._prepare()
        now = datetime.now(UTC)
        updates = [
            UpdateOne({"_id": id_}, {"$addToSet": {"letters": letter}, "$set": {"at": now}}, True)
            for id_, letter in redriven.items()
        ]
        with self._store.needs("update", REDRIVES):
            self._documents.bulk_write(updates, ordered=False)

    def _prepare(self) -> None:
        if not self._is_prepared:
            with self._store.needs("createIndex", REDRIVES):
                self._documents.create_index("at", name="expiry", expireAfterSeconds=LONGEST_LIFE)
            self._is_prepared = True
