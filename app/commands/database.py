"""What `sqs doctor` looks for in MongoDB: an answer, a replica set, the indexes."""

from collections.abc import Iterator
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError

from app.broker.checks import Finding, Subject
from app.counter import Increments
from app.errors import SettingsError
from app.models import DEFAULT_DATABASE, User
from app.once import OnceRecord
from app.startup import require_replica_set

#: Milliseconds for MongoDB to answer.
TIMEOUT = 5_000

MONGODB = "mongodb"


def check_database(uri: str) -> Iterator[Finding]:
    """Look at MongoDB, and change nothing there. The URI may hold a password and is not told."""
    answers = Subject(MONGODB, "reached")
    try:
        with MongoClient[dict[str, Any]](
            uri, serverSelectionTimeoutMS=TIMEOUT, timeoutMS=TIMEOUT
        ) as client:
            version = client.server_info()["version"]
            yield answers.ok(f"version {version}")
            yield _replica_set(client)
            database = client.get_default_database(DEFAULT_DATABASE)
            for document in (User, OnceRecord, Increments):
                yield from _indexes(database, document._meta)
    except ValueError:
        yield answers.fault("MONGO_URI is no address of a MongoDB", "Correct it.")
    except PyMongoError as exc:
        yield answers.fault(
            f"it does not answer as it should: {type(exc).__name__}",
            "Check that it runs, that MONGO_URI is right, and that this user may read there.",
        )


def _replica_set(client: MongoClient[dict[str, Any]]) -> Finding:
    check = Subject(MONGODB, "replica set")
    try:
        require_replica_set(client)
    except SettingsError as exc:
        return check.fault("it is none, and transactions need one", exc.message)
    return check.ok("transactions can be used")


def _indexes(database: Database[dict[str, Any]], meta: dict[str, Any]) -> Iterator[Finding]:
    collection = database[meta["collection"]]
    there = collection.index_information()
    is_empty = collection.find_one({}, {"_id": 1}) is None
    for index in meta["indexes"]:
        check = Subject(MONGODB, f"index {collection.name}.{index['name']}")
        found = there.get(index["name"])
        if found is not None and _is_as_declared(found, index):
            yield check.ok("there")
        elif found is None and is_empty:
            yield check.ok("not there yet; the first worker makes it")
        else:
            what = "missing" if found is None else "another than the code has"
            yield check.fault(
                f"{what}, and it is what keeps a message from being applied twice or for ever",
                "Drop the one of that name, if there is one, and start a worker, which makes it.",
            )


def _is_as_declared(found: dict[str, Any], declared: dict[str, Any]) -> bool:
    fields = [(field, 1) for field in declared["fields"]]
    options = {k: v for k, v in declared.items() if k not in ("name", "fields")}
    has = [(name, int(direction)) for name, direction in found["key"]]
    return has == fields and all(found.get(name) == value for name, value in options.items())
