"""Checks the control plane: its collections, and every right that workers, Flower and the commands
need there.

It creates and changes no collection. To try the writes, it sends a message and a reply that no
process waits for, and writes a revoke in a transaction that it aborts.
"""

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.planes import check_driver
from sqs_broker.errors import ConfigurationError, ControlPlaneDown
from sqs_broker.options import ControlOptions
from sqs_broker.tools.checks import Finding, Subject

if TYPE_CHECKING:
    from bson import Timestamp

    from sqs_broker.control.collections import Difference
    from sqs_broker.control.rights import Rights
    from sqs_broker.control.store import Store
    from sqs_broker.control.stream import Stream

#: Seconds for all calls together.
TIMEOUT = 15.0

#: The exchange of the messages that only try the writes.
NOBODYS = "sqs doctor"

CONTROL = "control plane"
RIGHTS = Subject(CONTROL, "rights")
WORKS = Subject(CONTROL, "works")

#: The rights that are needed whatever the options say. "" is the database itself.
NEEDED: Mapping[str, tuple[str, ...]] = {
    "": ("listCollections",),
    "attempts": ("createIndex", "find", "insert", "listIndexes", "update"),
    "audit": ("createIndex", "find", "insert"),
    "broadcasts": ("convertToCapped", "createCollection", "find", "insert"),
    "events": ("convertToCapped", "createCollection", "find", "insert"),
    "pauses": ("find", "insert", "remove", "update"),
    "redrives": ("createIndex", "find", "insert", "update"),
    "replies": ("createIndex", "find", "insert", "listIndexes", "remove"),
    "revokes": ("createIndex", "find", "insert", "listIndexes", "update"),
}


#: The ends of the host names of Amazon DocumentDB, which has no capped collections:
#: https://docs.aws.amazon.com/documentdb/latest/devguide/mongo-apis.html
DOCUMENTDB = tuple(
    f".{service}.amazonaws.com{china}"
    for service in ("docdb", "docdb-elastic")
    for china in ("", ".cn")
)


def check_control(options: ControlOptions) -> Iterator[Finding]:
    """Check the control database with the control plane's own client. Nothing is raised."""
    if options.uri is None:
        return
    if any(host.endswith(DOCUMENTDB) for host in _hosts(options.uri)):
        yield WORKS.fault(
            "Amazon DocumentDB has no capped collections, which the control plane needs",
            "Use MongoDB itself: Atlas, or a replica set of your own.",
        )
        return
    try:
        check_driver(options)
    except ConfigurationError as exc:
        yield WORKS.fault("pymongo is not installed", exc.message)
        return
    # Only now: another project may have neither a control plane nor pymongo.
    from sqs_broker.control.trial import trial

    try:
        with trial(options, TIMEOUT) as store:
            yield from _check(store, options)
    except ControlPlaneDown as exc:
        yield WORKS.fault(
            exc.message,
            "Check that it runs, that its address is right, and that this user may read.",
        )


def _hosts(uri: str) -> Iterator[str]:
    """The hosts that a URI of MongoDB names. Nothing is looked up."""
    after = uri.partition("://")[2]
    authority = after.partition("/")[0].partition("?")[0].rpartition("@")[2]
    for host in authority.lower().split(","):
        yield host.partition(":")[0]


def _check(store: "Store", options: ControlOptions) -> Iterator[Finding]:
    from sqs_broker.control.collections import Collections
    from sqs_broker.control.faults import missing_right
    from sqs_broker.control.rights import Rights

    rights = Rights.of(store.client)
    missing = rights.missing(options.database, NEEDED)
    for collection, action in missing:
        fault = missing_right(action, options.database, collection)
        yield Subject(CONTROL, f"{action} on {collection or 'database'}").fault(
            fault.text, fault.fix
        )
    if missing:
        yield WORKS.unknown("not tried, because of the missing rights")
        return
    yield RIGHTS.ok("all that workers, Flower and the commands need")
    differences = Collections(store.client[options.database], options).differences()
    findings = [_difference(difference, rights, options) for difference in differences]
    yield from findings
    if any(finding.fix is None for finding in findings):
        # The store would correct them.
        yield WORKS.ok("not tried: the first process corrects the collections")
    elif any(difference.action != "collMod" for difference in differences):
        yield WORKS.unknown("not tried, because of the faults of the collections")
    else:
        yield _works(store, options)


def _difference(difference: "Difference", rights: "Rights", options: ControlOptions) -> Finding:
    from sqs_broker.control.faults import missing_right

    check = Subject(CONTROL, f"collection {difference.collection}")
    action = difference.action
    if action is None:
        return check.fault(difference.text, difference.fix)
    if rights.allow(action, options.database, difference.collection):
        return check.ok(f"{difference.text}; the next process corrects it")
    fault = missing_right(action, options.database, difference.collection)
    return check.fault(f"{difference.text}, and {fault.text}", fault.fix)


def _works(store: "Store", options: ControlOptions) -> Finding:
    from sqs_broker.control.faults import Refused

    key = uuid.uuid4().hex
    try:
        start = store.broadcasts.newest()
        store.reply([Broadcast(NOBODYS, key, {}, "{}")])
        store.take_reply(NOBODYS, key)
        store.revoked()
        _try_a_revoke(store, options)
        is_read = _is_read(store.broadcasts, start) and _is_written_and_read(store.events)
    except Refused as exc:
        return WORKS.fault(exc.fault.text, exc.fault.fix)
    if not is_read:
        return WORKS.fault(
            "a message that was written cannot be read", "Raise the size of the control plane."
        )
    return WORKS.ok("a message was written and read")


def _is_written_and_read(stream: "Stream") -> bool:
    start = stream.newest()
    stream.write([Broadcast(NOBODYS, "", {}, "{}")])
    return _is_read(stream, start)


def _is_read(stream: "Stream", start: "Timestamp") -> bool:
    with stream.read_on(NOBODYS, start) as reading:
        # The second one needs another call than the first.
        found = [next(reading, None) for _ in range(2)]
    return found[0] is not None


def _try_a_revoke(store: "Store", options: ControlOptions) -> None:
    with store.client.start_session() as session, session.start_transaction():
        key: dict[str, Any] = {"_id": {"id": f"probe:{uuid.uuid4().hex}"}}
        update = {"$set": {"at": datetime.now(UTC)}}
        with store.needs("update", "revokes"):
            revokes = store.client[options.database]["revokes"]
            revokes.update_one(key, update, upsert=True, session=session)
        session.abort_transaction()
