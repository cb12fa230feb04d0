"""Creates the collections of the control plane, and changes what differs from the options."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bson import Timestamp
from pymongo.database import Database
from pymongo.errors import OperationFailure

from sqs_broker.control.faults import LOGIN_FAILED, Fault, fault_of, view
from sqs_broker.limits import LONGEST_RETENTION
from sqs_broker.options import ControlOptions

Document = dict[str, Any]

BROADCASTS, EVENTS = "broadcasts", "events"
REPLIES, REVOKES, ATTEMPTS = "replies", "revokes", "attempts"

#: The capped collections. A worker reads only the commands, which are among the broadcasts: the
#: cursor of each reader looks at every document of its collection.
STREAMS = (BROADCASTS, EVENTS)

#: Seconds that a reply is kept if its client does not read it.
REPLY_SECONDS = 60

#: The index by which MongoDB deletes old documents, and its name if another index has that one.
EXPIRY, OTHER_EXPIRY = "expiry", "expiry_at"

#: MongoDB's error codes for a collection that another process has just created, and for an index
#: whose keys, or whose name, another index has.
NAMESPACE_EXISTS, SAME_KEYS, SAME_NAME = 48, 85, 86

#: MongoDB rounds the size of a capped collection up to a multiple of this number of bytes.
SIZE_STEP = 256


@dataclass(frozen=True)
class Difference:
    """What `prepare` would create or change."""

    collection: str
    text: str
    action: str | None
    """MongoDB's name of the right that this needs; None if it cannot be corrected by `prepare`."""
    fix: str = "Drop it, and the collection is created."
    """What a person does if `prepare` cannot correct it."""


class Collections:
    """The collections of one control database. For one run of `prepare`.

    What MongoDB refuses is a fault, and the rest is still done. Raises pymongo's other errors.
    """

    def __init__(self, database: Database[Document], options: ControlOptions) -> None:
        self._database = database
        self._options = options
        self.faults: list[Fault] = []
        #: For each capped collection that no reader can read, why.
        self.unreadable: dict[str, Fault] = {}

    def prepare(self) -> None:
        """Create missing collections and indexes, and change those that differ."""
        for name in STREAMS:
            self._prepare_stream(name)
        self._expire(REPLIES, REPLY_SECONDS)
        self._expire(REVOKES, self._options.revokes_seconds)
        self._expire(ATTEMPTS, LONGEST_RETENTION)
        self._index(REPLIES, "exchange", "routing_key", "at", cost="replies are found slowly")
        self._index(ATTEMPTS, "id", cost="failed runs of a message are found slowly")

    def _index(self, name: str, *keys: str, cost: str) -> None:
        with self._needs("createIndex", name, cost):
            try:
                self._database[name].create_index([(key, 1) for key in keys])
            except OperationFailure as exc:
                if exc.code != SAME_KEYS:  # It is as good under another name.
                    raise

    def differences(self) -> list[Difference]:
        """What `prepare` would create or change, and what it cannot. Changes nothing."""
        return [
            *(difference for name in STREAMS for difference in self._differences_of_stream(name)),
            *self._differences_of_expiry(REPLIES, REPLY_SECONDS),
            *self._differences_of_expiry(REVOKES, self._options.revokes_seconds),
            *self._differences_of_expiry(ATTEMPTS, LONGEST_RETENTION),
        ]

    def _differences_of_stream(self, name: str) -> Iterator[Difference]:
        found = self._find(name)
        if found is None:
            yield Difference(name, "does not exist yet", "createCollection")
        elif found["type"] != "collection":
            yield Difference(name, f"is a {found['type']}", None)
        elif not found["options"].get("capped"):
            yield Difference(name, "is not capped", "convertToCapped")
        elif self._changes(found["options"]):
            yield Difference(name, self._cost(found["options"]), "collMod")
        if found is not None and found["type"] == "collection":
            yield from self._strange(name, found["options"])

    def _differences_of_expiry(self, name: str, seconds: int) -> Iterator[Difference]:
        info = self._find(name)
        if info is None:
            yield Difference(name, "does not exist yet", "createIndex")
        elif info["type"] != "collection":
            yield Difference(name, f"is a {info['type']}", None)
        elif info["options"].get("capped"):
            yield Difference(name, "is capped, so MongoDB overwrites what is still needed", None)
        elif (found := self._expiry_of(name)) is None:
            yield Difference(name, "its index for deletion does not exist yet", "createIndex")
        elif found.get("expireAfterSeconds") != seconds:
            text = f"its documents are not deleted after {seconds} s"
            yield Difference(name, text, "collMod")
        if info is not None and info["type"] == "collection":
            yield from self._strange(name, info["options"])

    def _strange(self, name: str, options: Mapping[str, Any]) -> Iterator[Difference]:
        """What makes a collection refuse documents, or confuse them, that this program writes."""
        if "collation" in options:
            yield Difference(name, "has a collation, so ids that differ may count as equal", None)
        for index in self._indexes_of(name):
            if index.get("unique"):
                text = f"its index {index['name']!r} is unique and refuses documents"
                yield Difference(name, text, None, "Drop the index.")

    def _indexes_of(self, name: str) -> list[Mapping[str, Any]]:
        """All indexes; none if this user may not list them, which only the capped collections do
        not need."""
        try:
            return list(self._database[name].list_indexes())
        except OperationFailure:
            return []

    def _prepare_stream(self, name: str) -> None:
        found: Mapping[str, Any] | None = None
        with self._needs("listCollections", name, "its size is not checked"):
            found = self._find(name)
        if found is None:
            self._create_stream(name)
        elif found["type"] != "collection":
            self._give_up(name, view(self._database.name, name, found["type"]))
        elif not found["options"].get("capped"):
            self._cap(name)
        else:
            self._resize(name, found["options"])
        if name not in self.unreadable:
            self._begin(name)

    def _find(self, name: str) -> Mapping[str, Any] | None:
        with self._database.list_collections(filter={"name": name}) as listed:
            return next(iter(listed), None)

    def _create_stream(self, name: str) -> None:
        known = len(self.faults)
        # A capped collection needs both rights.
        with self._needs("createCollection` and `convertToCapped", name):
            try:
                self._database.create_collection(
                    name, capped=True, size=self._options.size_bytes, check_exists=False
                )
            except OperationFailure as exc:
                if exc.code != NAMESPACE_EXISTS:
                    raise
        if len(self.faults) > known and self._is_empty(name):
            # A write would create the collection, but not capped.
            self._give_up(name, self.faults.pop())

    def _is_empty(self, name: str) -> bool:
        """Whether it has no documents, or this user may not read it."""
        try:
            return self._database[name].find_one({}, {"_id": 1}) is None
        except OperationFailure:
            return True

    def _cap(self, name: str) -> None:
        # The collection was dropped, and the write of an event created it again.
        known = len(self.faults)
        with self._needs("convertToCapped", name, "it is not capped and cannot be read"):
            size = self._options.size_bytes
            self._database.command("convertToCapped", name, size=size)
        if len(self.faults) > known:
            self._give_up(name, self.faults.pop())

    def _resize(self, name: str, options: Mapping[str, Any]) -> None:
        if changes := self._changes(options):
            with self._needs("collMod", name, self._cost(options)):
                self._database.command("collMod", name, **changes)

    def _changes(self, options: Mapping[str, Any]) -> dict[str, Any]:
        size = self._options.size_bytes
        changes: dict[str, Any] = {}
        if abs(options["size"] - size) >= SIZE_STEP:
            changes["cappedSize"] = size
        if "max" in options:
            # A number of documents is no part of the options. 0 means no such limit.
            changes["cappedMax"] = 0
        return changes

    def _cost(self, options: Mapping[str, Any]) -> str:
        limit = f" and {options['max']} documents" if "max" in options else ""
        wanted = f"{self._options.size_bytes} bytes"
        return f"it holds {options['size']} bytes{limit}; the options say {wanted}"

    def _begin(self, name: str) -> None:
        """Write a first document: in an empty collection a waiting cursor ends at once."""
        known, collection = len(self.faults), self._database[name]
        is_empty = False
        with self._needs("find", name):
            is_empty = collection.find_one({"at": {"$type": "timestamp"}}, {"_id": 1}) is None
        if len(self.faults) == known and is_empty:
            with self._needs("insert", name):
                collection.insert_one({"at": Timestamp(0, 0)})

    def _expire(self, name: str, seconds: int) -> None:
        cost = f"its documents are not deleted after {seconds} s"
        differs = False
        with self._needs("createIndex", name, cost):
            try:
                self._create_expiry(name, EXPIRY, seconds)
            except OperationFailure as exc:
                if exc.code not in (SAME_KEYS, SAME_NAME):
                    raise
                differs = True
        if differs:
            with self._needs("listIndexes", name, cost):
                self._change_expiry(name, seconds, cost)

    def _change_expiry(self, name: str, seconds: int, cost: str) -> None:
        found = self._expiry_of(name)
        if found is None:
            with self._needs("createIndex", name, cost):
                self._create_expiry(name, OTHER_EXPIRY, seconds)
        elif found.get("expireAfterSeconds") != seconds:
            index = {"name": found["name"], "expireAfterSeconds": seconds}
            with self._needs("collMod", name, cost):
                self._database.command("collMod", name, index=index)

    def _expiry_of(self, name: str) -> Mapping[str, Any] | None:
        indexes = list(self._database[name].list_indexes())
        # MongoDB deletes only those documents that are in the index.
        whole = (index for index in indexes if "partialFilterExpression" not in index)
        return next((index for index in whole if dict(index["key"]) == {"at": 1}), None)

    def _create_expiry(self, name: str, index: str, seconds: int) -> None:
        self._database[name].create_index("at", name=index, expireAfterSeconds=seconds)

    def _give_up(self, name: str, fault: Fault) -> None:
        self.unreadable[name] = fault
        self.faults.append(fault)

    @contextmanager
    def _needs(self, action: str, collection: str, cost: str = "") -> Iterator[None]:
        try:
            yield
        except OperationFailure as exc:
            if exc.code == LOGIN_FAILED:
                raise
            fault = fault_of(exc, action, self._database.name, collection)
            text = f"{fault.text}: {cost}" if cost else fault.text
            self.faults.append(Fault(text, fault.fix))
