"""A capped collection of the control plane: messages that many processes read as they are written.

All processes write to it, and MongoDB overwrites the oldest messages.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from bson import ObjectId, Timestamp
from pymongo import CursorType
from pymongo.collection import Collection
from pymongo.cursor import Cursor
from pymongo.errors import BulkWriteError

from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.collections import Document
from sqs_broker.control.faults import Fault, Refused

#: Milliseconds that a read waits on the server for a new document. A reader's thread notices only
#: after this time that it must stop. An idle reader costs one operation in this time.
AWAIT_MS = 1_000

#: MongoDB's option to send one answer after the other without further requests. When MongoDB sends
#: to a dead client, it notices that and ends the cursor, which otherwise stays for 10 minutes.
#: https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/#op_msg
EXHAUST = 64

#: MongoDB's error code for a second document with the same key.
DUPLICATE_KEY = 11_000

#: Raises Refused, with the reason, if MongoDB refuses an action on a collection.
Needs = Callable[[str, str], AbstractContextManager[None]]


class Stream:
    """One capped collection. Thread-safe. Its methods raise Refused and pymongo's other errors.

    `prepare` creates the collection if it is missing; with True, it looks even if it did before.
    A stream that `is_numbered` counts its messages, so that a reader can find gaps.
    """

    def __init__(
        self,
        collection: Collection[Document],
        needs: Needs,
        prepare: Callable[[bool], None],
        is_numbered: bool,
    ) -> None:
        self._collection = collection
        self._needs = needs
        self._prepare = prepare
        self._is_numbered = is_numbered
        self._numbering = threading.Lock()
        self._writer = ObjectId()
        self._number = 0
        #: Why no reader can read it; None if they can.
        self.unreadable: Fault | None = None

    def write(self, messages: Sequence[Broadcast]) -> None:
        """Write messages for all readers, in one operation."""
        self._prepare(False)
        self._refuse_if_unreadable()
        # MongoDB replaces an empty timestamp with its own time, so the order is the server's.
        documents: list[Document] = [
            {"at": Timestamp(0, 0)} | document_of(message) for message in messages
        ]
        if not self._is_numbered:
            insert(self._collection, documents, self._needs)
            return
        with self._numbering:
            number = self._number
            for message, document in zip(messages, documents, strict=True):
                number += message.events
                document |= {"writer": self._writer, "number": number, "events": message.events}
            insert(self._collection, documents, self._needs)
            # Only now: the next try has the same numbers, and what was refused has none.
            self._number = number

    def newest(self) -> Timestamp:
        """The time of the newest message; the beginning of time if there is none."""
        self._prepare(True)
        with self._needs("find", self._collection.name):
            # Somebody else may have written a document without a time.
            found = self._collection.find({"at": {"$type": "timestamp"}}, {"at": 1})
            for document in found.sort("$natural", -1).limit(1):
                return document["at"]  # type: ignore[no-any-return]  # a document's value is Any
        return Timestamp(0, 1)

    @contextmanager
    def read_on(self, exchange: str, after: Timestamp) -> Iterator["Reading"]:
        """Read the messages to an exchange after a time, and wait for new ones."""
        self._refuse_if_unreadable()
        found = (
            self._collection.find(
                {"exchange": exchange, "at": {"$gt": after}},
                cursor_type=CursorType.TAILABLE_AWAIT,
            )
            .max_await_time_ms(AWAIT_MS)
            .add_option(EXHAUST)
        )
        with found as cursor:
            yield Reading(cursor, lambda: self._needs("find", self._collection.name))

    def _refuse_if_unreadable(self) -> None:
        if self.unreadable is not None:
            # Nobody could read what is written, and nothing would ever delete it.
            raise Refused(self.unreadable)


class Reading:
    """An open cursor over a stream."""

    def __init__(
        self, cursor: Cursor[Document], needs: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._cursor = cursor
        self._needs = needs

    @property
    def alive(self) -> bool:
        """Whether more documents can come."""
        return self._cursor.alive

    def __iter__(self) -> "Reading":
        return self

    def __next__(self) -> Document:
        """The next document. Waits up to AWAIT_MS, and raises StopIteration if none came."""
        with self._needs():
            document = next(self._cursor, None)
        if document is None:
            raise StopIteration
        return document


def document_of(message: Broadcast) -> Document:
    """The document of a message, with the same `_id` for each try."""
    if message.id is None:
        message.id = ObjectId()
    return {
        "_id": message.id,
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "headers": message.headers,
        "body": message.body,
    }


def insert(collection: Collection[Document], documents: list[Document], needs: Needs) -> None:
    """Insert documents in one operation, those that an earlier try has inserted too."""
    with needs("insert", collection.name):
        try:
            collection.insert_many(documents, ordered=False)
        except BulkWriteError as exc:
            if not all(map(_is_written_before, exc.details["writeErrors"])):
                raise


def _is_written_before(error: Document) -> bool:
    """Whether an earlier try, whose answer was lost, has written the document."""
    # Somebody may have made another index of the collection unique.
    is_by_id = error.get("keyPattern", {"_id": 1}) == {"_id": 1}
    return bool(error["code"] == DUPLICATE_KEY and is_by_id)
