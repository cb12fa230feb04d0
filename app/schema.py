"""Checks the collections and indexes that a user needs to be stored once and to stay.

This module only reads what MongoDB reports about them. The probe (app/probe.py) finds out whether
MongoDB accepts a write. See docs/mongodb.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure

from app.counter import Counter, Increments
from app.errors import SettingsError
from app.indexes import Info, differences, has_keys, is_as_declared, is_simple
from app.models import User, make_index
from app.once import OnceRecord

#: The collections that the tasks write.
DOCUMENTS = (User, OnceRecord, Increments, Counter)

#: MongoDB's error codes if an index cannot be created: duplicates exist, or another index has its
#: name or its keys.
DUPLICATE_KEY, INDEX_OPTIONS_CONFLICT, INDEX_KEY_SPECS_CONFLICT = 11_000, 85, 86

#: What an index of this program is for.
NEEDED = "without it, a message could be applied twice, or records could stay for ever"


@dataclass(frozen=True)
class Fault:
    """A reason why a user could be lost or stored twice."""

    subject: str
    """The collection or the index, by a short and stable name."""
    text: str
    fix: str
    is_missing: bool = False
    """Whether an index is missing. A worker creates it when it starts."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"


def subjects() -> list[str]:
    """The subjects that are checked, by the names that faults use."""
    return [
        subject
        for document in DOCUMENTS
        for subject in (
            f"collection {_name(document)}",
            *(f"index {_name(document)}.{index['name']}" for index in _declared(document)),
        )
    ]


def find_faults(
    database: Database[dict[str, Any]], documents: Sequence[Any] = DOCUMENTS
) -> list[Fault]:
    """All faults of the collections. One call for them, and one for the indexes of each.

    Raises pymongo's errors.
    """
    names = [_name(document) for document in documents]
    with database.list_collections(filter={"name": {"$in": names}}) as listed:
        found = {info["name"]: info for info in listed}
    faults: list[Fault] = []
    for document in documents:
        name = _name(document)
        info = found.get(name, {"type": "collection", "options": {}})
        faults += _faults_of_collection(name, info)
        if info["type"] == "collection":
            indexes = list(database[name].list_indexes())
            faults += _faults_of_indexes(name, _declared(document), indexes)
    return faults


def require_replica_set(client: MongoClient[dict[str, Any]]) -> None:
    """Raise SettingsError if this MongoDB is standalone."""
    hello = client.admin.command("hello")
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise SettingsError(
            "MONGO_URI: this mongod is standalone, but transactions need a replica set. "
            "Start it with --replSet and run rs.initiate(). One node is enough."
        )


def make_indexes(database: Database[dict[str, Any]], faults: Sequence[Fault]) -> list[Fault]:
    """Create the missing indexes, unless there are other faults. Return the remaining faults.

    Raises pymongo's errors.
    """
    remaining = [fault for fault in faults if not fault.is_missing]
    if remaining:
        return remaining
    missing = {fault.subject for fault in faults}
    for document in DOCUMENTS:
        for index in _declared(document):
            if (subject := f"index {_name(document)}.{index['name']}") in missing:
                remaining += _make_index(database, document, index, subject)
    return remaining


def _make_index(
    database: Database[dict[str, Any]], document: Any, index: Info, subject: str
) -> Iterator[Fault]:
    try:
        make_index(database[_name(document)], index)
    except OperationFailure as exc:
        match exc.code:
            case int(code) if code == DUPLICATE_KEY:
                keys = " and ".join(index["fields"])
                yield Fault(
                    subject,
                    f"it cannot be created, because several documents have the same {keys}",
                    "Delete all but one of each group, then start a worker.",
                )
            case int(code) if code in (INDEX_OPTIONS_CONFLICT, INDEX_KEY_SPECS_CONFLICT):
                yield Fault(
                    subject,
                    "it cannot be created, because another index has its name or its keys",
                    "Drop that index, then start a worker.",
                )
            case _:
                raise


def _faults_of_collection(name: str, info: Info) -> Iterator[Fault]:
    subject, options = f"collection {name}", info["options"]
    if info["type"] != "collection":
        yield Fault(
            subject,
            f"it is a {info['type']}, but the tasks write documents to it",
            "Set another database in MONGO_URI, or rename it.",
        )
        return
    if options.get("capped"):
        yield Fault(
            subject,
            "it is capped, so MongoDB deletes the oldest documents",
            "Copy the documents to a collection that is not capped, and give that one this name.",
        )
    if not is_simple(options.get("collation")):
        yield Fault(
            subject,
            "its collation treats different ids as equal (such as U1 and u1)",
            "Copy the documents to a collection without a collation, and give that one this name.",
        )


def _faults_of_indexes(
    name: str, declared: Sequence[Info], indexes: Sequence[Info]
) -> Iterator[Fault]:
    for index in declared:
        yield from _faults_of_declared(f"index {name}.{index['name']}", index, indexes)
    names = {"_id_", *(index["name"] for index in declared)}
    for found in indexes:
        if found["name"] in names or any(has_keys(found, index) for index in declared):
            continue
        subject = f"index {name}.{found['name']}"
        if found.get("unique"):
            yield Fault(
                subject,
                "it is unique but not an index of this program, so MongoDB could refuse documents",
                "Drop it, or create it again without `unique`.",
            )
        if "expireAfterSeconds" in found:
            yield Fault(
                subject,
                "it has expireAfterSeconds, so MongoDB deletes old documents",
                "Drop it, or create it again without expireAfterSeconds.",
            )


def _faults_of_declared(subject: str, index: Info, indexes: Sequence[Info]) -> Iterator[Fault]:
    same_keys = [found for found in indexes if has_keys(found, index)]
    if any(is_as_declared(found, index) for found in same_keys):
        return
    if same_keys:
        what = ", ".join(differences(same_keys[0], index))
        yield Fault(
            subject,
            f"it differs from the code ({what}); {NEEDED}",
            f"Drop {same_keys[0]['name']}, and start a worker, which creates it.",
        )
    elif any(found["name"] == index["name"] for found in indexes):
        yield Fault(
            subject,
            f"it differs from the code (its keys); {NEEDED}",
            f"Drop {index['name']}, and start a worker, which creates it.",
        )
    else:
        yield Fault(
            subject,
            f"missing; {NEEDED}",
            "Start a worker, which creates it.",
            is_missing=True,
        )


def _name(document: Any) -> str:
    return str(document._meta["collection"])


def _declared(document: Any) -> Sequence[Info]:
    return document._meta.get("indexes") or ()
