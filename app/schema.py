"""What the collections have to be, so that a stored user stays and is there once.

Only what MongoDB says of them is read here; whether it takes a write, the probe finds out
(app/probe.py). Docs: docs/mongodb.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo.database import Database
from pymongo.errors import OperationFailure

from app.counter import Counter, Increments
from app.models import User, make_index
from app.once import OnceRecord

#: The collections that the tasks write.
DOCUMENTS = (User, OnceRecord, Increments, Counter)

#: MongoDB's codes of an index that cannot be made: duplicates are there already, or another index
#: has its name or its keys.
DUPLICATE_KEY, INDEX_OPTIONS_CONFLICT, INDEX_KEY_SPECS_CONFLICT = 11_000, 85, 86

#: What an index is called in a list of indexes beyond its keys. Others say how it is stored.
_MEANINGFUL = ("unique", "sparse", "partialFilterExpression", "expireAfterSeconds", "collation")

Info = Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """Why a collection cannot keep the promise."""

    subject: str
    """The collection, or its index: a short and stable name."""
    text: str
    fix: str
    is_missing: bool = False
    """Whether an index is not there, which a worker makes when it starts."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"


def subjects() -> list[str]:
    """What is looked at, by the name that a fault of it has."""
    return [
        subject
        for document in DOCUMENTS
        for subject in (
            f"collection {_name(document)}",
            *(f"index {_name(document)}.{index['name']}" for index in _declared(document)),
        )
    ]


def find_faults(database: Database[dict[str, Any]]) -> list[Fault]:
    """All that is wrong with the collections; a call for them and one for the indexes of each.

    Raises what pymongo raises.
    """
    names = [_name(document) for document in DOCUMENTS]
    with database.list_collections(filter={"name": {"$in": names}}) as listed:
        found = {info["name"]: info for info in listed}
    faults: list[Fault] = []
    for document in DOCUMENTS:
        name = _name(document)
        info = found.get(name, {"type": "collection", "options": {}})
        faults += _faults_of_collection(name, info)
        if info["type"] == "collection":
            indexes = list(database[name].list_indexes())
            faults += _faults_of_indexes(name, _declared(document), indexes)
    return faults


def make_indexes(database: Database[dict[str, Any]], faults: Sequence[Fault]) -> list[Fault]:
    """Make the indexes that are missing, unless there are other faults; those that stay.

    Raises what pymongo raises.
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
                    f"it cannot be made, since documents of one {keys} are there more than once",
                    "Delete all of each but one, then start a worker.",
                )
            case int(code) if code in (INDEX_OPTIONS_CONFLICT, INDEX_KEY_SPECS_CONFLICT):
                yield Fault(
                    subject,
                    "it cannot be made, since another index has its name or its keys",
                    "Drop that one, then start a worker.",
                )
            case _:
                raise


def _faults_of_collection(name: str, info: Info) -> Iterator[Fault]:
    subject, options = f"collection {name}", info["options"]
    if info["type"] != "collection":
        yield Fault(
            subject,
            f"it is a {info['type']}, and documents are written to it",
            "Name another database in MONGO_URI, or rename it.",
        )
        return
    if options.get("capped"):
        yield Fault(
            subject,
            "it is capped, so that MongoDB deletes the oldest documents",
            "Copy the documents to a collection that is not capped, and rename that one.",
        )
    if not _is_simple(options.get("collation")):
        yield Fault(
            subject,
            "its collation takes different ids for the same (such as U1 and u1)",
            "Copy the documents to a collection without a collation, and rename that one.",
        )


def _faults_of_indexes(
    name: str, declared: Sequence[Info], indexes: Sequence[Info]
) -> Iterator[Fault]:
    for index in declared:
        yield from _faults_of_declared(f"index {name}.{index['name']}", index, indexes)
    names = {"_id_", *(index["name"] for index in declared)}
    for found in indexes:
        if found["name"] in names or any(_has_keys(found, index) for index in declared):
            continue
        subject = f"index {name}.{found['name']}"
        if found.get("unique"):
            yield Fault(
                subject,
                "it is unique, so that MongoDB refuses documents for another reason than the one "
                "that this program knows",
                "Drop it, or make it anew without `unique`.",
            )
        if "expireAfterSeconds" in found:
            yield Fault(
                subject,
                "it has expireAfterSeconds, so that MongoDB deletes documents by their age",
                "Drop it, or make it anew without expireAfterSeconds.",
            )


def _faults_of_declared(subject: str, index: Info, indexes: Sequence[Info]) -> Iterator[Fault]:
    same_keys = [found for found in indexes if _has_keys(found, index)]
    if any(_is_as_declared(found, index) for found in same_keys):
        return
    if same_keys:
        what = ", ".join(_differences(same_keys[0], index))
        yield Fault(
            subject,
            f"it is another than the code has ({what}), and it is what keeps a message from being "
            "applied twice or for ever",
            f"Drop {same_keys[0]['name']}, and start a worker, which makes it.",
        )
    elif any(found["name"] == index["name"] for found in indexes):
        yield Fault(
            subject,
            "it is another than the code has (its keys), and it is what keeps a message from "
            "being applied twice or for ever",
            f"Drop {index['name']}, and start a worker, which makes it.",
        )
    else:
        yield Fault(
            subject,
            "missing, and it is what keeps a message from being applied twice or for ever",
            "Start a worker, which makes it.",
            is_missing=True,
        )


def _has_keys(found: Info, declared: Info) -> bool:
    return [(name, _direction(value)) for name, value in found["key"].items()] == [
        (name, 1) for name in declared["fields"]
    ]


def _direction(value: Any) -> Any:
    # Whole numbers may come as floats; other kinds of index have a word there.
    return int(value) if isinstance(value, int | float) else value


def _is_as_declared(found: Info, declared: Info) -> bool:
    return not _differences(found, declared)


def _differences(found: Info, declared: Info) -> list[str]:
    """By what an index does something else than the declared one of the same keys."""
    options = {name: found.get(name) or None for name in _MEANINGFUL if name != "collation"}
    wanted = {name: declared.get(name) or None for name in options}
    differing = [name for name in options if options[name] != wanted[name]]
    # 0 is a number of seconds, and not the same as none.
    if ("expireAfterSeconds" in found) != ("expireAfterSeconds" in declared):
        differing.append("expireAfterSeconds")
    if not _is_simple(found.get("collation")):
        differing.append("collation")
    if found.get("hidden"):
        differing.append("hidden")
    return differing


def _is_simple(collation: Info | None) -> bool:
    return collation is None or collation.get("locale") == "simple"


def _name(document: Any) -> str:
    return str(document._meta["collection"])


def _declared(document: Any) -> Sequence[Info]:
    return document._meta.get("indexes") or ()
