"""A control database that is not as this program makes it: what still works goes on, and one log
line names the fault and its fix."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from bson import Timestamp
from celery import Celery
from celery.worker import state
from kombu import Connection, Exchange
from kombu.pidbox import Mailbox as Pidbox
from pymongo import MongoClient
from pymongo.database import Database

from app.mongo import control_options
from app.settings import Settings
from sqs_broker.control import worker
from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.faults import Refused
from sqs_broker.control.planes import plane_for
from sqs_broker.control.store import Store
from sqs_broker.control.tail import Tail
from sqs_broker.errors import ConfigurationError, ControlPlaneDown
from sqs_broker.options import ControlOptions
from tests.deployments.deployment import APPLICATION, Deployment
from tests.integration.conftest import Connect
from tests.integration.test_control_plane import Reader, publish
from tests.services import wait_until

#: Seconds that nothing here comes near to.
DEADLINE = 20

EVENTS = Exchange("celeryev", type="topic")
COMMANDS = Exchange("celery.pidbox", type="fanout")
MIB = 1024 * 1024

Control = Database[dict[str, Any]]


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if vars(r).get("event") == event]


def revoke(connection: Connection, id_: str) -> None:
    Pidbox("celery", type="fanout", connection=connection).abcast("revoke", {"task_id": id_})


# Revokes

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def consumer(connect: Connect) -> Iterator[Any]:
    """What Celery's consumer is to the control plane."""
    kept = state.revoked.maxlen, state.revoked.expires
    yield SimpleNamespace(
        app=Celery("tests", set_as_current=False),
        connection=connect(),
        hub=SimpleNamespace(call_soon=lambda call: call()),
    )
    state.revoked.maxlen, state.revoked.expires = kept
    state.revoked.clear()
    state.revoked_stamps.clear()


@pytest.mark.parametrize(
    "odd",
    [
        {"_id": "plain-id", "at": NOW},
        {"_id": 7},
        {"at": NOW, "task_id": "id"},
        {"_id": {"v": 2, "task": "id"}, "at": NOW},
        {"_id": {"id": ["a"]}, "at": NOW},
        {"_id": {"id": None}, "at": NOW},
        {"_id": {"header": "batch"}, "at": NOW},
        {"_id": {"header": "batch", "stamp": {"a": 1}}, "at": NOW},
        {"_id": {"header": ["batch"], "stamp": "b"}, "at": "yesterday"},
    ],
    ids=str,
)
def test_an_odd_document_among_the_revokes_stops_no_worker_and_hides_no_revoke(
    consumer: Any, store: Store, database: Control, caplog: pytest.LogCaptureFixture, odd: Any
) -> None:
    database.revokes.insert_one(odd)
    store.revoke(["id-1"], [("batch", "b1")])

    worker.attach(consumer)
    consumer.connection.transport.control.on_commands_open()

    assert list(state.revoked) == ["id-1"]
    assert state.revoked_stamps == {"batch": ["b1"]}
    (line,) = lines(caplog, "control.unreadable")
    assert f"1 documents of {database.name}.revokes are no revokes" in line


def test_a_revoke_whose_time_or_text_python_cannot_read_stops_no_worker(
    consumer: Any, store: Store, database: Control
) -> None:
    database.command("insert", "revokes", documents=[{"_id": {"id": "id-1"}, "at": NOW}])
    # The year 292278994, and a text that is not UTF-8.
    database.revokes.update_many({}, [{"$set": {"at": {"$toDate": (1 << 63) - 1}}}])
    store.revoke(["id-2"])

    worker.attach(consumer)

    assert set(state.revoked) == {"id-1", "id-2"}


@contextmanager
def refusing(client: MongoClient, namespace: str, *commands: str) -> Iterator[None]:
    """MongoDB answers these commands on a collection as if a right were missing."""
    data = {"failCommands": list(commands), "errorCode": 13, "namespace": namespace}
    data |= {"appName": "celery-control"}
    client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
    try:
        yield
    finally:
        client.admin.command("configureFailPoint", "failCommand", mode="off")


def test_who_may_not_read_revokes_receives_commands(
    connect: Connect,
    consumer: Any,
    database: Control,
    mongo_client: MongoClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with refusing(mongo_client, f"{database.name}.revokes", "find"):
        worker.attach(consumer)
        reader = Reader(consumer.connection, COMMANDS, "", "one@host.celery.pidbox")
        revoke(connect(), "id-1")
        assert reader.drain()[0]["method"] == "revoke"
    (line,) = lines(caplog, "control.fault")
    assert f"this user lacks the right `find` on {database.name}.revokes. Grant it" in line
    assert lines(caplog, "control.down") == []


# Rights


def test_a_size_and_a_time_that_may_not_be_changed_cost_nothing_else(
    secured: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"test_{uuid.uuid4().hex}"
    secured.grant(name, "readWrite")
    options = ControlOptions(uri=secured.uri(name), database=name)
    before = Store(options)
    before.prepare()
    before.close()
    assert lines(caplog, "control.fault") == []

    changed = ControlOptions(options.uri, name, size_bytes=MIB, revokes_seconds=3_600)
    plane = plane_for(changed)
    plane.command(
        Broadcast("celery.pidbox", "", {}, '{"method": "revoke", "arguments": {"task_id": "id-1"}}')
    )
    plane.writer.put_events(Broadcast("celeryev", "worker.heartbeat", {}, {"n": 1}))
    assert plane.writer.flush(DEADLINE)

    assert plane.store.revoked() == (["id-1"], [])
    assert plane.writer.lost == 0
    faults = lines(caplog, "control.fault")
    assert [line.partition(f"{name}.")[2].partition(":")[0] for line in faults] == [
        "broadcasts",
        "events",
        "revokes",
    ]
    assert all("the right `collMod`" in line and "role dbAdmin" in line for line in faults)
    plane.close()


def test_without_the_right_to_create_the_capped_collection_no_other_is_made(
    secured: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    name, admin = f"test_{uuid.uuid4().hex}", secured.client().admin
    actions = ["find", "insert", "update", "remove", "createIndex", "listCollections"]
    everywhere = {"resource": {"db": name, "collection": ""}, "actions": actions}
    admin.command("createRole", name, privileges=[everywhere], roles=[])
    admin.command("grantRolesToUser", APPLICATION.name, roles=[name])
    store = Store(ControlOptions(uri=secured.uri(name), database=name))

    for _ in range(2):
        with pytest.raises(Refused, match="`createCollection` and `convertToCapped`"):
            store.broadcast([Broadcast("celeryev", "", {}, "{}")])
    store.revoke(["id-1"])

    assert store.revoked() == (["id-1"], [])
    assert not {"broadcasts", "events"} & set(secured.client()[name].list_collection_names())
    assert lines(caplog, "control.fault") == []
    store.close()


def test_a_cursor_that_mongodb_refuses_is_one_line_and_messages_still_come(
    connect: Connect,
    database: Control,
    mongo_client: MongoClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader, sender = Reader(connect(), EVENTS, "#", "celeryev.one"), connect()
    with refusing(mongo_client, f"{database.name}.events", "getMore"):
        for number in range(1, 4):
            publish(sender, {"n": number}, "worker.heartbeat")
            assert reader.drain(number)[-1] == {"n": number}
        (line,) = lines(caplog, "control.down")
        assert f"this user lacks the right `find` on {database.name}.events" in line
        assert lines(caplog, "control.up") == []
    wait_until(lambda: len(lines(caplog, "control.up")) == 1, DEADLINE, "the end of the outage")


# Collections

#: What somebody else may have made in place of a stream, and whether it can be read all the same.
STATES: dict[str, tuple[Callable[[Control, str], Any], bool]] = {
    "a view": (
        lambda db, name: db.create_collection(name, viewOn="other", pipeline=[]),
        False,
    ),
    "a time series": (
        lambda db, name: db.create_collection(name, timeseries={"timeField": "time"}),
        False,
    ),
    "not capped": (lambda db, name: db[name].insert_one({"x": 1}), True),
    "few documents": (
        lambda db, name: db.create_collection(name, capped=True, size=MIB, max=2),
        True,
    ),
    "no time": (
        lambda db, name: (
            db.create_collection(name, capped=True, size=MIB),
            db[name].insert_one({"hello": 1}),
        ),
        True,
    ),
    "another kind of time": (
        lambda db, name: (
            db.create_collection(name, capped=True, size=MIB),
            db[name].insert_one({"at": "newer", "exchange": "celeryev"}),
        ),
        True,
    ),
}

#: What somebody else may have made beside them.
OTHERS: dict[str, Callable[[Control], Any]] = {
    "expiry without expiry": lambda db: db.revokes.create_index("at", name="expiry"),
    "expiry of other keys": lambda db: db.revokes.create_index(
        "when", name="expiry", expireAfterSeconds=5
    ),
    "expiry of another name": lambda db: db.revokes.create_index(
        "at", name="mine", expireAfterSeconds=5
    ),
    "replies with another index": lambda db: db.replies.create_index(
        [("exchange", 1), ("routing_key", 1), ("at", 1)], name="mine"
    ),
    "replies in a view": lambda db: db.create_collection("replies", viewOn="other", pipeline=[]),
}


@pytest.mark.parametrize("name", ["broadcasts", "events"])
@pytest.mark.parametrize(("make", "is_readable"), STATES.values(), ids=STATES)
def test_a_stream_that_differs_costs_as_little_as_it_can(
    connect: Connect,
    database: Control,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Control, str], Any],
    is_readable: bool,
    name: str,
) -> None:
    make(database, name)
    reader, sender = Reader(connect(), EVENTS, "#", "celeryev.one"), connect()
    publish(sender, {"n": 1}, "worker.heartbeat")
    plane = plane_for(sender.transport.control.options)
    if is_readable or name == "broadcasts":
        assert reader.drain() == [{"n": 1}]
    else:
        wait_until(lambda: plane.writer.lost == 1, DEADLINE, "a loss that is counted")
        # Readers and writers are lines of their own.
        assert lines(caplog, "control.down")
    if is_readable or name == "events":
        revoke(sender, "id-1")
    else:
        with pytest.raises(ControlPlaneDown, match="stored for the workers that start later"):
            revoke(sender, "id-1")
    assert plane.store.revoked() == (["id-1"], [])
    # Nothing is logged of what was corrected. What concerns all messages of a stream is one kind of
    # line, of those that do not get through.
    assert lines(caplog, "control.fault") == []


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_a_collection_that_differs_costs_as_little_as_it_can(
    connect: Connect,
    database: Control,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Control], Any],
) -> None:
    make(database)
    reader, sender = Reader(connect(), EVENTS, "#", "celeryev.one"), connect()
    publish(sender, {"n": 1}, "worker.heartbeat")
    assert reader.drain() == [{"n": 1}]
    revoke(sender, "id-1")
    assert plane_for(sender.transport.control.options).store.revoked() == (["id-1"], [])
    # Nothing is logged of what was corrected, and a fault once.
    faults = lines(caplog, "control.fault")
    assert len(set(faults)) == len(faults)
    assert all("is a view" in line for line in faults)


def test_a_limit_of_documents_is_removed(store: Store, database: Control) -> None:
    database.create_collection("events", capped=True, size=MIB, max=2)
    store.broadcast([Broadcast("celeryev", "", {}, "{}") for _ in range(9)])
    assert database.events.count_documents({}) >= 9


def test_every_expiry_is_that_of_the_options_whatever_index_was_there(
    store: Store, database: Control
) -> None:
    database.revokes.create_index("when", name="expiry", expireAfterSeconds=5)
    database.replies.create_index("at", name="mine", expireAfterSeconds=5)
    store.prepare()

    def expiry(name: str) -> list[int]:
        indexes = database[name].index_information().values()
        return [i["expireAfterSeconds"] for i in indexes if i["key"] == [("at", 1)]]

    assert (expiry("revokes"), expiry("replies")) == ([45 * 24 * 3600], [60])


def test_a_revoke_reaches_a_running_worker_even_if_no_command_does(
    connect: Connect, consumer: Any, database: Control, caplog: pytest.LogCaptureFixture
) -> None:
    database.create_collection("broadcasts", viewOn="other", pipeline=[])
    worker.attach(consumer)
    Reader(consumer.connection, COMMANDS, "", "one@host.celery.pidbox")
    with pytest.raises(ControlPlaneDown, match=r"broadcasts is a view.* Drop it"):
        revoke(connect(), "id-1")
    wait_until(lambda: "id-1" in state.revoked, DEADLINE, "the revoke")
    (line,) = lines(caplog, "control.down")
    assert f"{database.name}.broadcasts is a view" in line


REFUSE_ALL = {"$jsonSchema": {"required": ["email"]}}


def test_a_validator_that_refuses_events_is_named_once(
    connect: Connect, store: Store, database: Control, caplog: pytest.LogCaptureFixture
) -> None:
    store.prepare()
    database.command("collMod", "events", validator=REFUSE_ALL)
    sender = connect()
    writer = plane_for(sender.transport.control.options).writer
    for number in range(1, 4):
        publish(sender, {"n": number}, "worker.heartbeat")
        wait_until(lambda: writer.lost == number, DEADLINE, "a loss that is counted")  # noqa: B023
    (line,) = lines(caplog, "control.down")
    assert f"a validator of {database.name}.events refuses the documents" in line
    assert "collMod: 'events', validator: {}" in line


def test_replies_that_are_refused_cost_no_event(
    connect: Connect, store: Store, database: Control, caplog: pytest.LogCaptureFixture
) -> None:
    store.prepare()
    database.command("collMod", "replies", validator=REFUSE_ALL)
    reader = Reader(connect(), EVENTS, "#", "celeryev.one")
    writer = plane_for(connect().transport.control.options).writer
    for number in range(1, 4):
        writer.put_reply(Broadcast("reply.celery.pidbox", "key", {}, "{}"))
        writer.put_events(Broadcast("celeryev", "worker.heartbeat", {}, {"n": number}))
        assert reader.drain(number)[-1] == {"n": number}
    (line,) = lines(caplog, "control.down")
    assert f"a validator of {database.name}.replies" in line
    assert lines(caplog, "control.up") == []


def test_a_revoke_that_cannot_be_stored_still_reaches_those_who_run(
    connect: Connect, store: Store, database: Control
) -> None:
    store.prepare()
    database.command("collMod", "revokes", validator=REFUSE_ALL)
    reader = Reader(connect(), COMMANDS, "", "one@host.celery.pidbox")
    with pytest.raises(ControlPlaneDown, match="it is not stored for those that start later"):
        revoke(connect(), "id-1")
    assert reader.drain()[0]["arguments"]["task_id"] == "id-1"


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"routing_key": 7},
        {"routing_key": None, "body": "{}"},
        {"routing_key": "worker.heartbeat"},
        {"routing_key": "worker.heartbeat", "headers": {}, "body": 7},
        {"routing_key": "worker.heartbeat", "headers": {}, "body": "{}", "writer": {}, "number": 1},
    ],
    ids=str,
)
def test_an_odd_document_among_the_events_is_left_out(
    connect: Connect, database: Control, caplog: pytest.LogCaptureFixture, odd: dict[str, Any]
) -> None:
    reader, sender = Reader(connect(), EVENTS, "#", "celeryev.one"), connect()
    database.events.insert_one({"at": Timestamp(0, 0), "exchange": "celeryev"} | odd)
    publish(sender, {"n": 1}, "worker.heartbeat")
    wait_until(lambda: {"n": 1} in reader.drain(len(reader.got) + 1), DEADLINE, "the event")
    assert lines(caplog, "control.down") == []


# Names


@pytest.mark.parametrize("name", ["x" * 63, "y" * 56, "ü" * 31])
def test_the_control_database_of_a_long_name_can_be_used(
    mongo_uri: str, mongo_client: MongoClient, name: str
) -> None:
    address = mongo_uri.rsplit("/", 1)[0]
    options = control_options(Settings(mongo_uri=f"{address}/{name}?replicaSet=rs0"))
    other = control_options(Settings(mongo_uri=f"{address}/{name[:-1]}z?replicaSet=rs0"))
    store = Store(ControlOptions.read(options))
    store.revoke(["id-1"])
    assert store.revoked() == (["id-1"], [])
    store.close()
    mongo_client.drop_database(options["database"])
    assert options["database"] != other["database"]
    assert options["database"].endswith("_control")


@pytest.mark.parametrize("name", ["", "x" * 64, "a.b", "a b", "a/b", "a$b", 'a"b'])
def test_a_name_that_no_database_can_have_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"`control`.*`database`"):
        ControlOptions.read({"database": name})


# What was not read


def test_events_that_were_overwritten_before_they_were_read_are_counted(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    control = ControlOptions.read(options | {"size_bytes": MIB})
    read: list[dict[str, Any]] = []
    is_open, may_go_on, is_over = (threading.Event() for _ in range(3))

    def read_slowly(document: dict[str, Any]) -> None:
        read.append(document)
        may_go_on.wait(DEADLINE)

    reading, writing = Store(control), Store(control)
    Tail(reading.events, "celeryev", is_open.set, read_slowly, lambda: not is_over.is_set()).start()
    assert is_open.wait(DEADLINE)
    written = 0
    for _ in range(150):
        messages = [Broadcast("celeryev", "", {}, "x" * 1_000, events=2) for _ in range(200)]
        writing.broadcast(messages)
        written += 2 * len(messages)
        # The reader has its first event before the others come.
        wait_until(lambda: read, DEADLINE, "the first event")
    may_go_on.set()
    writing.broadcast([Broadcast("celeryev", "last", {}, "")])
    wait_until(lambda: read[-1]["routing_key"] == "last", DEADLINE, "the last event")
    is_over.set()
    wait_until(lambda: lines(caplog, "control.missed"), DEADLINE, "the count")

    missed = written - 2 * (len(read) - 1)
    assert missed > 0
    (count,) = (vars(r)["count"] for r in caplog.records if vars(r)["event"] == "control.missed")
    assert count == missed
    assert lines(caplog, "control.down") == []
    for store in (reading, writing):
        store.close()
