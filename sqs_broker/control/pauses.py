"""The pauses of queues, in the control database: one document for each paused queue.

A pause that is over stays there until the next one of its queue, or its resume. There are never
more documents than queues, so MongoDB deletes none by itself.
"""

from dataclasses import asdict

import pymongo
from pymongo import ReadPreference, WriteConcern
from pymongo.collection import Collection

from sqs_broker.control.collections import Document
from sqs_broker.control.store import Store
from sqs_broker.rules.pause import Pause

PAUSES = "pauses"


class Pauses:
    """Reads and writes the pauses. Its methods raise pymongo's errors."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Whatever the URI says: the worker that starts next must read what was written.
        self._documents: Collection[Document] = store.database.get_collection(
            PAUSES, read_preference=ReadPreference.PRIMARY, write_concern=WriteConcern("majority")
        )

    def all(self, timeout: float | None = None) -> list[Pause]:
        """Every pause, also those that are over. A document that is no pause is left out. MongoDB
        has `timeout` seconds; without it, those of the store."""
        with pymongo.timeout(timeout), self._store.needs("find", PAUSES):
            documents = list(self._documents.find())
        return [pause for each in documents if (pause := Pause.read(each)) is not None]

    def of(self, queue: str) -> Pause | None:
        """The pause of a queue, also one that is over; None if there is none."""
        return next((pause for pause in self.all() if pause.queue == queue), None)

    def begin(self, pause: Pause) -> None:
        """Pause a queue. An earlier pause of the queue is replaced; the mappings that it has
        disabled are still known."""
        fields = asdict(pause)
        mappings = list(fields.pop("mappings"))
        key = {"_id": fields.pop("queue")}
        change = {"$set": fields, "$addToSet": {"mappings": {"$each": mappings}}}
        with self._store.needs("update", PAUSES):
            self._documents.update_one(key, change, upsert=True)

    def end(self, queue: str) -> Pause | None:
        """End the pause of a queue. Returns it; None if there was none."""
        with self._store.needs("remove", PAUSES):
            found = self._documents.find_one_and_delete({"_id": queue})
        return None if found is None else Pause.read(found)
