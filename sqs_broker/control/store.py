"""The collections of the control plane, and the one client that a process has for them."""

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

#: Milliseconds a read waits at the server for something new. The longest time until a thread that
#: reads sees that it shall stop, and so the price of an idle reader: one operation each.
AWAIT_MS = 1_000

#: MongoDB's option by which it sends one answer after the other without being asked. It notices
#: that a client is dead when it sends, and ends its cursor, which else would stay for 10 minutes.
#: https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/#op_msg
EXHAUST = 64

#: Milliseconds after which MongoDB counts as away. Replaces what the URI says: a reader must wait
#: longer than AWAIT_MS, and a client of `inspect` not much longer than its own timeout.
AWAY_MS = 5_000

#: Seconds a reply is kept for a client that does not come for it.
REPLY_SECONDS = 60

#: Seconds of the past that a reader still reads after it was cut off.
CATCH_UP_SECONDS = 60

#: MongoDB's codes for a collection that another process has just made, and for an index that is
#: there with other options.
NAMESPACE_EXISTS, INDEX_DIFFERS = 48, 85
DUPLICATE_KEY = 11_000


class Store:
    """Reads and writes the control database. Thread-safe; belongs to one process.

    Its calls raise pymongo's errors, within about ten seconds.
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
        """Close the client, and every cursor with it."""
        self._client.close()

    # Broadcasts

    def broadcast(self, messages: Sequence[Broadcast]) -> None:
        """Write messages for all readers: one operation."""
        self.prepare()
        self._insert(
            self._broadcasts,
            # MongoDB fills an empty timestamp in, so that the order is the server's own.
            [{"at": Timestamp(0, 0)} | _document(message) for message in messages],
        )

    def newest(self) -> Timestamp:
        """When the newest broadcast was written."""
        self.prepare(again=True)
        found = self._broadcasts.find({}, {"at": 1}).sort("$natural", -1).limit(1)
        return next(iter(found))["at"]  # type: ignore[no-any-return]  # a document's value is Any

    def read_on(self, exchange: str, after: Timestamp) -> Cursor[Document]:
        """A cursor over what is broadcast to an exchange after a time, which waits for more."""
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
        """Keep replies until their client takes them, and tell it: two operations."""
        self.prepare()
        now = datetime.now(UTC)
        self._insert(self._replies, [{"at": now} | _document(reply) for reply in replies])
        self.broadcast([Broadcast(r.exchange, r.routing_key, {}, "") for r in replies])

    def take_reply(self, exchange: str, routing_key: str) -> Document | None:
        """The oldest reply to a client, which is then gone."""
        self.prepare()
        return self._replies.find_one_and_delete(
            {"exchange": exchange, "routing_key": routing_key}, sort=[("at", ASCENDING)]
        )

    def forget_replies(self, exchange: str, routing_key: str) -> None:
        """Delete the replies that a client does not wait for any more."""
        self._replies.delete_many({"exchange": exchange, "routing_key": routing_key})

    # Revokes

    def revoke(self, ids: Iterable[str], stamps: Iterable[tuple[str, str]] = ()) -> None:
        """Keep revokes of task ids, and of pairs of a stamped header and its value."""
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
        """Make the collections and indexes that are missing: once, or `again`."""
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
            # A cursor that waits dies at once in an empty collection.
            self._broadcasts.insert_one({"at": Timestamp(0, 0)})

    def _resize(self, size: int) -> None:
        (found,) = self._database.list_collections(filter={"name": BROADCASTS})
        options = found["options"]
        if not options.get("capped"):
            # Somebody dropped it, and an event made it anew.
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
            # Written before, by a try whose answer did not come.
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
    """Where a reader begins: after what it saw last, but not long ago; or now."""
    if last is None:
        return newest
    earliest = Timestamp(max(newest.time - CATCH_UP_SECONDS, 0), 0)
    return max(last, earliest)
