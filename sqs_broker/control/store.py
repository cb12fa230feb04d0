"""The collections of the control plane in MongoDB, and the client of a process for them."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId, Timestamp
from pymongo import ASCENDING, CursorType, MongoClient, UpdateOne
from pymongo.collection import Collection
from pymongo.cursor import Cursor
from pymongo.database import Database
from pymongo.errors import BulkWriteError, CollectionInvalid, OperationFailure

from sqs_broker.control.broadcast import Broadcast
from sqs_broker.options import ControlOptions

Document = dict[str, Any]

BROADCASTS, REPLIES, REVOKES = "broadcasts", "replies", "revokes"

#: Milliseconds that a read waits on the server for a new document. A reader's thread notices only
#: after this time that it must stop. An idle reader costs one operation in this time.
AWAIT_MS = 1_000

#: MongoDB's option to send one answer after the other without further requests. When MongoDB sends
#: to a dead client, it notices that and ends the cursor, which otherwise stays for 10 minutes.
#: https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/#op_msg
EXHAUST = 64

#: Milliseconds after which MongoDB counts as unavailable. This replaces the URI's value: a reader
#: must wait longer than AWAIT_MS, and a client of `inspect` not much longer than its own timeout.
AWAY_MS = 5_000

#: Seconds that a reply is kept if its client does not read it.
REPLY_SECONDS = 60

#: Age in seconds of the oldest messages that a reader still reads after an interruption.
CATCH_UP_SECONDS = 60

#: MongoDB's error codes for a collection that another process has just created, and for an index
#: that exists with other options.
NAMESPACE_EXISTS, INDEX_DIFFERS = 48, 85
DUPLICATE_KEY = 11_000


class Store:
    """Reads and writes the control database. Thread-safe; belongs to one process.

    Its methods raise pymongo's errors, after about ten seconds at most.
    """

    def __init__(self, options: ControlOptions) -> None:
        self._options = options
        self._is_prepared = False
        self._client: MongoClient[Document] = MongoClient(
            options.require_uri(),
            connect=False,
            appname="celery-control",
            serverSelectionTimeoutMS=AWAY_MS,
            connectTimeoutMS=AWAY_MS,
            socketTimeoutMS=2 * AWAY_MS,
        )
        self._database: Database[Document] = self._client[options.database]
        self._broadcasts: Collection[Document] = self._database[BROADCASTS]
        self._replies: Collection[Document] = self._database[REPLIES]
        self._revokes: Collection[Document] = self._database[REVOKES]

    def close(self) -> None:
        """Close the client and all its cursors."""
        self._client.close()

    # Broadcasts

    def broadcast(self, messages: Sequence[Broadcast]) -> None:
        """Write messages for all readers, in one operation."""
        self.prepare()
        self._insert(
            self._broadcasts,
            # MongoDB replaces an empty timestamp with its own time, so the order is the server's.
            [{"at": Timestamp(0, 0)} | _document(message) for message in messages],
        )

    def newest(self) -> Timestamp:
        """The time of the newest broadcast."""
        self.prepare(again=True)
        found = self._broadcasts.find({}, {"at": 1}).sort("$natural", -1).limit(1)
        return next(iter(found))["at"]  # type: ignore[no-any-return]  # a document's value is Any

    def read_on(self, exchange: str, after: Timestamp) -> Cursor[Document]:
        """A cursor over the broadcasts to an exchange after a time. It waits for new ones."""
        return (
            self._broadcasts.find(
                {"exchange": exchange, "at": {"$gt": after}},
                cursor_type=CursorType.TAILABLE_AWAIT,
            )
            .max_await_time_ms(AWAIT_MS)
            .add_option(EXHAUST)
        )

    # Replies

    def reply(self, replies: Sequence[Broadcast]) -> None:
        """Store replies until their client takes them, and notify the client. Two operations."""
        self.prepare()
        now = datetime.now(UTC)
        self._insert(self._replies, [{"at": now} | _document(reply) for reply in replies])
        self.broadcast([Broadcast(r.exchange, r.routing_key, {}, "") for r in replies])

    def take_reply(self, exchange: str, routing_key: str) -> Document | None:
        """Remove and return the oldest reply to a client; None if there is none."""
        self.prepare()
        return self._replies.find_one_and_delete(
            {"exchange": exchange, "routing_key": routing_key}, sort=[("at", ASCENDING)]
        )

    def delete_replies(self, exchange: str, routing_key: str) -> None:
        """Delete the replies that a client no longer waits for."""
        self._replies.delete_many({"exchange": exchange, "routing_key": routing_key})

    # Revokes

    def revoke(self, ids: Iterable[str], stamps: Iterable[tuple[str, str]] = ()) -> None:
        """Store revokes of task ids, and of pairs of a stamped header and its value."""
        self.prepare()
        keys = [{"id": id_} for id_ in ids] + [{"header": h, "stamp": s} for h, s in stamps]
        now = datetime.now(UTC)
        if keys:
            self._revokes.bulk_write(
                [UpdateOne({"_id": key}, {"$set": {"at": now}}, upsert=True) for key in keys],
                ordered=False,
            )

    def revoked(self) -> tuple[list[str], list[tuple[str, str]]]:
        """All revoked task ids, oldest first, and all revoked stamps."""
        self.prepare()
        ids, stamps = [], []
        for document in self._revokes.find().sort("at", ASCENDING):
            key = document["_id"]
            if "id" in key:
                ids.append(key["id"])
            else:
                stamps.append((key["header"], key["stamp"]))
        return ids, stamps

    # The collections themselves

    def prepare(self, again: bool = False) -> None:
        """Create missing collections and indexes. Done once, unless `again` is true."""
        if self._is_prepared and not again:
            return
        self._prepare_broadcasts()
        expire = {REPLIES: REPLY_SECONDS, REVOKES: self._options.revokes_seconds}
        for name, seconds in expire.items():
            self._expire(name, seconds)
        self._replies.create_index([("exchange", 1), ("routing_key", 1), ("at", 1)])
        self._is_prepared = True

    def _prepare_broadcasts(self) -> None:
        size = self._options.size_bytes
        try:
            self._database.create_collection(BROADCASTS, capped=True, size=size)
        except CollectionInvalid:
            self._resize(size)
        except OperationFailure as exc:
            if exc.code != NAMESPACE_EXISTS:
                raise
        if self._broadcasts.find_one({}, {"_id": 1}) is None:
            # In an empty collection a waiting cursor ends at once.
            self._broadcasts.insert_one({"at": Timestamp(0, 0)})

    def _resize(self, size: int) -> None:
        (found,) = self._database.list_collections(filter={"name": BROADCASTS})
        options = found["options"]
        if not options.get("capped"):
            # The collection was dropped, and the write of an event created it again.
            self._database.command("convertToCapped", BROADCASTS, size=size)
        elif abs(options["size"] - size) >= 256:  # MongoDB rounds up to a multiple of this.
            self._database.command("collMod", BROADCASTS, cappedSize=size)

    def _expire(self, name: str, seconds: int) -> None:
        try:
            self._database[name].create_index("at", name="expiry", expireAfterSeconds=seconds)
        except OperationFailure as exc:
            if exc.code != INDEX_DIFFERS:
                raise
            index = {"name": "expiry", "expireAfterSeconds": seconds}
            self._database.command("collMod", name, index=index)

    @staticmethod
    def _insert(collection: Collection[Document], documents: list[Document]) -> None:
        try:
            collection.insert_many(documents, ordered=False)
        except BulkWriteError as exc:
            # A duplicate was written by an earlier try whose answer was lost.
            if any(error["code"] != DUPLICATE_KEY for error in exc.details["writeErrors"]):
                raise


def _document(message: Broadcast) -> Document:
    if message.id is None:
        message.id = ObjectId()
    return {
        "_id": message.id,
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "headers": message.headers,
        "body": message.body,
    }


def start_of(last: Timestamp | None, newest: Timestamp) -> Timestamp:
    """The position at which a reader begins: after the last message that it read, but at most
    CATCH_UP_SECONDS ago; the newest message if it has read none."""
    if last is None:
        return newest
    earliest = Timestamp(max(newest.time - CATCH_UP_SECONDS, 0), 0)
    return max(last, earliest)
