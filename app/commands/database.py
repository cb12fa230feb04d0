"""What `sqs doctor` looks for in MongoDB: an answer, a replica set, the collections, a write."""

from collections.abc import Iterator, Sequence
from typing import Any

import pymongo
from pymongo.database import Database
from pymongo.errors import PyMongoError

from app.errors import SettingsError
from app.mongo import Address, Client, address_of
from app.probe import try_writes
from app.schema import Fault, find_faults, subjects
from app.startup import require_replica_set
from sqs_broker.errors import label
from sqs_broker.tools.checks import Finding, Subject

#: Milliseconds for MongoDB to answer all of it.
TIMEOUT = 10_000

MONGODB = "mongodb"

REACHED = Subject(MONGODB, "reached")
WRITES = Subject(MONGODB, "writes")


def check_database(uri: str) -> Iterator[Finding]:
    """Look at MongoDB with the worker's own client, and try what a worker writes; nothing of it
    stays. The URI may hold a password and is not told."""
    options = Subject(MONGODB, "options")
    try:
        address = address_of(uri)
    except SettingsError as exc:
        yield options.fault("MONGO_URI cannot be used", exc.message)
        return
    yield options.ok(_told_options(address))
    try:
        with address.client() as client, pymongo.timeout(TIMEOUT / 1_000):
            yield from _look(client, client[address.database])
    except PyMongoError as exc:
        yield REACHED.fault(
            f"it does not answer as it should: {label(exc)}",
            "Check that it runs, that MONGO_URI is right, and that this user may read there.",
        )


def _told_options(address: Address) -> str:
    if not address.replaced:
        return "writes wait for a majority and its journal"
    names = ", ".join(address.replaced)
    return f"writes wait for a majority and its journal; of MONGO_URI not used: {names}"


def _look(client: Client, database: Database[dict[str, Any]]) -> Iterator[Finding]:
    version = client.server_info()["version"]
    yield REACHED.ok(f"version {version}")
    replica_set = _replica_set(client)
    yield replica_set
    faults = {fault.subject: fault for fault in find_faults(database)}
    for subject in dict.fromkeys((*subjects(), *faults)):
        yield _collection(database, Subject(MONGODB, subject), faults.get(subject))
    if replica_set.fix is None:
        yield _writes(database, list(faults.values()))


def _replica_set(client: Client) -> Finding:
    check = Subject(MONGODB, "replica set")
    try:
        require_replica_set(client)
    except SettingsError as exc:
        return check.fault("it is none, and transactions need one", exc.message)
    return check.ok("transactions can be used")


def _collection(database: Database[dict[str, Any]], check: Subject, fault: Fault | None) -> Finding:
    if fault is None:
        return check.ok("as it should be")
    collection = check.check.rpartition(" ")[2].partition(".")[0]
    if fault.is_missing and database[collection].find_one({}, {"_id": 1}) is None:
        return check.ok("not there yet; the first worker makes it")
    return check.fault(fault.text, fault.fix)


def _writes(database: Database[dict[str, Any]], faults: Sequence[Fault]) -> Finding:
    if faults and all(fault.is_missing for fault in faults):
        return WRITES.ok("not tried: a worker makes the indexes when it starts, and tries it then")
    if faults:
        return WRITES.unknown("not tried, since the collections are not as they should be")
    try:
        try_writes(database)
    except PyMongoError as exc:
        return WRITES.fault(
            f"MongoDB does not take what the tasks write: {label(exc)}",
            "Check that a majority of its members runs, that its disk has room, that writes are "
            "not blocked, that no validator refuses the documents, and that this user may write.",
        )
    return WRITES.ok("a majority has taken what a task writes")
