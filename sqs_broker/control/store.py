"""The collections of the control plane in MongoDB, and the client of a process for them."""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pymongo
from bson import Timestamp
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import ASCENDING, MongoClient, ReadPreference, UpdateOne, WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import OperationFailure

from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.collections import (
    ATTEMPTS,
    BROADCASTS,
    EVENTS,
    REPLIES,
    REVOKES,
    Collections,
    Document,
)
from sqs_broker.control.faults import Fault, Refused, fault_of
from sqs_broker.control.stream import Stream, document_of, insert
from sqs_broker.options import ControlOptions, Kind
from sqs_broker.rules.attempts import MOST_RUNS, Record, Run

logger = logging.getLogger(__name__)

#: Milliseconds after which MongoDB counts as unavailable. This replaces the URI's value: a reader
#: must wait longer than its cursor does, and a client of `inspect` not much longer than its own
#: timeout.
AWAY_MS = 5_000

#: Seconds for the close of the client. It tells MongoDB which sessions have ended.
CLOSE_TIMEOUT = 1.0

#: Seconds until a refused preparation is tried again.
TRY_AGAIN = 60.0

#: A text or a time that Python does not know must not make all other documents unreadable.
CODEC: CodecOptions[Document] = CodecOptions(
    unicode_decode_error_handler="replace",
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)

#: Age in seconds of the oldest messages that a reader still reads after an interruption.
CATCH_UP_SECONDS = 60

#: Most records of one message: of its copies, and of its lives after redrives.
MOST_HISTORIES = 50


class Store:
    """Reads and writes the control database. Thread-safe; belongs to one process.

    Its methods raise pymongo's errors, after about ten seconds at most.
    """

    def __init__(self, options: ControlOptions) -> None:
        self._options = options
        self._prepared_until = float("-inf")
        self._lock = threading.Lock()
        self._reported: set[Fault] = set()
        self._odd = 0
        #: Its user and its timeouts are those of the control plane.
        self.client: MongoClient[Document] = MongoClient(
            options.require_uri(),
            connect=False,
            appname="celery-control",
            serverSelectionTimeoutMS=AWAY_MS,
            connectTimeoutMS=AWAY_MS,
            socketTimeoutMS=2 * AWAY_MS,
        )
        self._database: Database[Document] = self.client.get_database(
            options.database, codec_options=CODEC
        )
        #: Commands, and notices of replies.
        self.broadcasts = Stream(self._database[BROADCASTS], self.needs, self.prepare, False)
        #: Apart from the commands, so that no worker reads them.
        self.events = Stream(self._database[EVENTS], self.needs, self.prepare, True)
        self._replies: Collection[Document] = self._database[REPLIES]
        self._revokes: Collection[Document] = self._database[REVOKES]
        # Whatever the URI says: what one worker has recorded, the next one must read.
        self._attempts: Collection[Document] = self._database.get_collection(
            ATTEMPTS, read_preference=ReadPreference.PRIMARY, write_concern=WriteConcern("majority")
        )

    @property
    def database(self) -> Database[Document]:
        """The control database."""
        return self._database

    def close(self) -> None:
        """Close the client and all its cursors, within CLOSE_TIMEOUT seconds."""
        with pymongo.timeout(CLOSE_TIMEOUT):
            self.client.close()

    # Events and commands

    def stream(self, exchange: str) -> Stream:
        """The collection of the messages to an exchange."""
        return self.events if self._options.kind(exchange) is Kind.EVENTS else self.broadcasts

    def broadcast(self, messages: Sequence[Broadcast]) -> None:
        """Write messages to one exchange for all readers, in one operation. Raises Refused."""
        self.stream(messages[0].exchange).write(messages)

    # Replies

    def reply(self, replies: Sequence[Broadcast]) -> None:
        """Store replies until their client takes them, and notify the client. Two operations."""
        self.prepare()
        now = datetime.now(UTC)
        documents: list[Document] = [{"at": now} | document_of(reply) for reply in replies]
        insert(self._replies, documents, self.needs)
        self.broadcasts.write([Broadcast(r.exchange, r.routing_key, {}, "") for r in replies])

    def take_reply(self, exchange: str, routing_key: str) -> Document | None:
        """Remove and return the oldest reply to a client; None if there is none."""
        self.prepare()
        with self.needs("remove", REPLIES):
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
            with self.needs("update", REVOKES):
                self._revokes.bulk_write(
                    [UpdateOne({"_id": key}, {"$set": {"at": now}}, upsert=True) for key in keys],
                    ordered=False,
                )

    def revoked(self) -> tuple[list[str], list[tuple[str, str]]]:
        """All revoked task ids, oldest first, and all revoked stamps.

        A document that is neither is left out, and the number of such documents is logged. If
        MongoDB refuses the call, that is logged once, and nothing is returned.
        """
        self.prepare()
        ids, stamps, odd = [], [], 0
        try:
            with self.needs("find", REVOKES):
                documents = list(self._revokes.find({}, {"_id": 1}).sort("at", ASCENDING))
        except Refused as exc:
            self._report([exc.fault])
            return [], []
        for document in documents:
            try:
                key = _revoked(document["_id"])
            except ValueError:
                odd += 1
                continue
            if isinstance(key, str):
                ids.append(key)
            else:
                stamps.append(key)
        self._report_odd(odd)
        return ids, stamps

    def revoked_at(self, id_: str) -> datetime | None:
        """When a task id was revoked; None if it was not. Raises Refused."""
        with self.needs("find", REVOKES):
            found = self._revokes.find_one({"_id": {"id": id_}})
        at = None if found is None else found.get("at")
        return at if isinstance(at, datetime) else None

    def _report_odd(self, count: int) -> None:
        with self._lock:
            is_known, self._odd = count == self._odd, count
        if count and not is_known:
            logger.warning(
                "Control plane: %s documents of %s.%s are no revokes, and are left out. Delete "
                "them.",
                count,
                self._database.name,
                REVOKES,
                extra={"event": "control.unreadable", "error": "ValueError"},
            )

    # Attempts

    def attempts(self, message_ids: Sequence[str]) -> dict[str, Record]:
        """The records of these messages, by SQS's MessageId, without their runs. Raises Refused."""
        self.prepare()
        counted = {"failed": 1, "released": 1}
        with self.needs("find", ATTEMPTS):
            found = list(self._attempts.find({"_id": {"$in": list(message_ids)}}, counted))
        return {
            document["_id"]: Record(
                _numbers(document.get("failed")), _numbers(document.get("released"))
            )
            for document in found
        }

    def histories(self, id_: str, message_ids: Iterable[str] = ()) -> dict[str, Record]:
        """The records with their runs, by SQS's MessageId: of the message with this id, in each of
        its lives, and of these MessageIds. Raises Refused."""
        either = {"$or": [{"id": id_}, {"_id": {"$in": sorted({id_, *message_ids})}}]}
        with self.needs("find", ATTEMPTS):
            found = list(self._attempts.find(either).sort("at").limit(MOST_HISTORIES))
        return {
            document["_id"]: Record(
                _numbers(document.get("failed")),
                _numbers(document.get("released")),
                _runs(document.get("runs")),
            )
            for document in found
        }

    def add_attempts(self, changes: Mapping[str, Record]) -> dict[str, Record]:
        """Add to the records, and return what was added. Raises Refused."""
        self.prepare()
        now = datetime.now(UTC)
        updates = [
            UpdateOne(
                {"_id": id_},
                {
                    # Not `$inc`: a settlement that is repeated must not count twice.
                    "$addToSet": {
                        "failed": {"$each": sorted(change.failed)},
                        "released": {"$each": sorted(change.released)},
                    },
                    "$set": {"at": now} | _details(change),
                },
                upsert=True,
            )
            for id_, change in changes.items()
        ]
        with self.needs("update", ATTEMPTS):
            self._attempts.bulk_write(updates, ordered=False)
        return dict(changes)

    # The collections themselves

    def prepare(self, again: bool = False) -> None:
        """Create missing collections and indexes. Done once, unless `again` is true or something
        was refused a minute ago. What MongoDB refuses is logged once, and the rest is done. If a
        stream cannot be read, each call that needs it raises that, and it is not logged."""
        if monotonic() < self._prepared_until and not again:
            return
        collections = Collections(self._database, self._options)
        collections.prepare()
        unreadable = collections.unreadable
        self.broadcasts.unreadable = unreadable.get(BROADCASTS)
        self.events.unreadable = unreadable.get(EVENTS)
        self._report(fault for fault in collections.faults if fault not in unreadable.values())
        self._prepared_until = monotonic() + TRY_AGAIN if collections.faults else float("inf")

    def _report(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            with self._lock:
                if fault in self._reported:
                    continue
                self._reported.add(fault)
            logger.warning(
                "Control plane: %s",
                fault,
                extra={"event": "control.fault", "reason": str(fault)},
            )

    @contextmanager
    def needs(self, action: str, collection: str) -> Iterator[None]:
        """Raise Refused, with the reason, if MongoDB refuses the action on the collection."""
        try:
            yield
        except OperationFailure as exc:
            fault = fault_of(exc, action, self._database.name, collection)
            raise Refused(fault, exc.code) from exc


def _details(change: Record) -> Document:
    """The fields for a person. Each run has one of so many places, so that a document stays small,
    and a settlement that is repeated writes to the same one."""
    runs = {
        f"runs.{run.delivery % MOST_RUNS}": {
            "delivery": run.delivery,
            "at": run.at,
            "error": run.error,
        }
        for run in change.runs
    }
    return runs if change.id is None else runs | {"id": change.id}


def _runs(value: Any) -> tuple[Run, ...]:
    """The runs in a document that somebody else may have changed."""
    found = []
    for each in value.values() if isinstance(value, dict) else ():
        match each:
            case {"delivery": int(number), "at": datetime() as at, "error": str(error)}:
                found.append(Run(number, at.replace(tzinfo=UTC), error))
    return tuple(sorted(found, key=lambda run: run.delivery))


def _numbers(value: Any) -> frozenset[int]:
    """The numbers of deliveries in a document that somebody else may have changed."""
    if not isinstance(value, list):
        return frozenset()
    return frozenset(n for n in value if isinstance(n, int) and not isinstance(n, bool))


def _revoked(key: Any) -> tuple[str, str] | str:
    """What a key of `revokes` says: a task's id, or a header and a stamp. Raises ValueError."""
    match key:
        case {"id": str(id_)}:
            return id_
        case {"header": str(header), "stamp": str(stamp)}:
            return header, stamp
    raise ValueError("neither an id nor a stamp")


def start_of(last: Timestamp | None, newest: Timestamp) -> Timestamp:
    """The position at which a reader begins: after the last message that it read, but at most
    CATCH_UP_SECONDS ago; the newest message if it has read none."""
    if last is None:
        return newest
    earliest = Timestamp(max(newest.time - CATCH_UP_SECONDS, 0), 0)
    return max(last, earliest)
