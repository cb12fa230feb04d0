"""The MongoDB checks of `sqs doctor`: an answer, a replica set, the collections, a write."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pymongo
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError

from app.errors import SettingsError
from app.mongo import Address, address_of
from app.outcomes.record import OutcomeRecord
from app.probe import try_writes
from app.schema import Fault, find_faults, require_replica_set, subjects
from sqs_broker.control.faults import missing_right
from sqs_broker.control.rights import Rights
from sqs_broker.errors import label
from sqs_broker.tools.checks import Finding, Subject

#: Milliseconds for all calls to MongoDB together.
TIMEOUT = 10_000

MONGODB = "mongodb"

REACHED = Subject(MONGODB, "reached")
WRITES = Subject(MONGODB, "writes")

#: The rights that the tasks, their probe and the start of a worker need. "" is the database itself.
NEEDED: Mapping[str, tuple[str, ...]] = {
    "": ("listCollections",),
    "users": ("createIndex", "find", "insert", "listIndexes", "update"),
    "once": ("createIndex", "find", "insert", "listIndexes", "remove"),
    "increments": ("createIndex", "insert", "listIndexes"),
    "counters": ("find", "insert", "listIndexes", "update"),
    # Workers write it; the HTTP API reads, writes and watches it.
    "outcomes": ("changeStream", "createIndex", "find", "insert", "listIndexes", "update"),
}


def check_database(uri: str) -> Iterator[Finding]:
    """Check MongoDB with the worker's own client options, and try a worker's writes, which are
    removed. The URI may contain a password and is not shown."""
    options = Subject(MONGODB, "options")
    try:
        address = address_of(uri)
    except SettingsError as exc:
        yield options.fault("MONGO_URI cannot be used", exc.message)
        return
    yield options.ok(_options_text(address))
    try:
        with address.client() as client, pymongo.timeout(TIMEOUT / 1_000):
            yield from _check(client, client[address.database])
    except PyMongoError as exc:
        yield REACHED.fault(
            f"it does not answer or refuses a call: {label(exc)}",
            "Check that it runs, that MONGO_URI is right, and that this user may read.",
        )


def _options_text(address: Address) -> str:
    text = "writes wait for a majority and its journal"
    if not address.replaced:
        return text
    return f"{text}; not used from MONGO_URI: {', '.join(address.replaced)}"


def _check(
    client: MongoClient[dict[str, Any]], database: Database[dict[str, Any]]
) -> Iterator[Finding]:
    version = client.server_info()["version"]
    yield REACHED.ok(f"version {version}")
    replica_set = _replica_set(client)
    yield replica_set
    yield from _rights(client, database.name)
    faults = {fault.subject: fault for fault in find_faults(database)}
    for subject in dict.fromkeys((*subjects(), *faults)):
        yield _collection(database, Subject(MONGODB, subject), faults.get(subject))
    yield _outcomes(database)
    if replica_set.fix is None:
        yield _writes(database, list(faults.values()))


def _rights(client: MongoClient[dict[str, Any]], database: str) -> Iterator[Finding]:
    missing = Rights.of(client).missing(database, NEEDED)
    for collection, action in missing:
        fault = missing_right(action, database, collection)
        check = Subject(MONGODB, f"{action} on {collection or 'database'}")
        yield check.fault(fault.text, fault.fix)
    if not missing:
        yield Subject(MONGODB, "rights").ok("all that a worker needs")


def _replica_set(client: MongoClient[dict[str, Any]]) -> Finding:
    check = Subject(MONGODB, "replica set")
    try:
        require_replica_set(client)
    except SettingsError as exc:
        return check.fault("there is none, but transactions need one", exc.message)
    return check.ok("transactions are possible")


def _collection(database: Database[dict[str, Any]], check: Subject, fault: Fault | None) -> Finding:
    if fault is None:
        return check.ok("as it should be")
    collection = check.check.rpartition(" ")[2].partition(".")[0]
    if fault.is_missing and database[collection].find_one({}, {"_id": 1}) is None:
        return check.ok("does not exist yet; the first worker creates it")
    return check.fault(fault.text, fault.fix)


def _outcomes(database: Database[dict[str, Any]]) -> Finding:
    """The collection of outcomes. Its faults never affect a message, so a worker starts with
    them."""
    found = find_faults(database, (OutcomeRecord,))
    fault = next(iter(found), None)
    check = Subject(MONGODB, fault.subject if fault else "collection outcomes")
    if fault is not None and fault.is_missing:
        if database["outcomes"].find_one({}, {"_id": 1}) is None:
            return check.ok("does not exist yet; the first outcome creates it")
        text = "missing; without it, outcomes stay for ever"
        return check.fault(text, "Restart a worker: its next outcome creates it.")
    return _collection(database, check, fault)


def _writes(database: Database[dict[str, Any]], faults: Sequence[Fault]) -> Finding:
    if faults and all(fault.is_missing for fault in faults):
        return WRITES.ok("not tried: a worker first creates the indexes when it starts")
    if faults:
        return WRITES.unknown("not tried, because of the faults of the collections")
    try:
        try_writes(database)
    except PyMongoError as exc:
        return WRITES.fault(
            f"MongoDB does not accept a task's write: {label(exc)}",
            "Check that a majority of its members runs, that its disk has space, that writes are "
            "not blocked, that no validator refuses the documents, and that this user may write.",
        )
    return WRITES.ok("a majority has accepted a task's write")
