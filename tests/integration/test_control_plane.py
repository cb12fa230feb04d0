"""Events, commands, replies and revokes through a real MongoDB, between connections of kombu's."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from typing import Any

import pytest
from bson import Timestamp
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.pidbox import Mailbox as Pidbox
from pymongo import MongoClient, monitoring
from pymongo.database import Database

from sqs_broker.control import store as store_module
from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.plane import Plane
from sqs_broker.control.planes import plane_for
from sqs_broker.control.store import CATCH_UP_SECONDS, Store, start_of
from sqs_broker.options import ControlOptions
from tests.integration.conftest import Connect
from tests.services import wait_until

#: Seconds that nothing here comes near to.
DEADLINE = 20

#: Seconds after which what has not come does not come.
PATIENCE = 0.5

EVENTS = Exchange("celeryev", type="topic")
MIB = 1024 * 1024


class Reader:
    """Consumes a queue of its own, and keeps what it got."""

    def __init__(self, connection: Connection, exchange: Exchange, key: str, name: str) -> None:
        self.connection = connection
        self.got: list[Any] = []
        self.consumer = Consumer(
            connection.channel(),
            [Queue(name, exchange, routing_key=key, auto_delete=True)],
            callbacks=[lambda body, message: self.got.append(body)],
            no_ack=True,
            accept=["json"],
        )
        self.consumer.consume()
        shared: Plane = plane_for(connection.transport.control.options)
        wait_until(lambda: exchange.name in shared._open, DEADLINE, "an open reader")

    def drain(self, many: int = 1) -> list[Any]:
        """What came, once so many have."""
        while len(self.got) < many:
            self.connection.drain_events(timeout=DEADLINE)
        return self.got

    def is_silent(self) -> bool:
        try:
            self.connection.drain_events(timeout=PATIENCE)
        except TimeoutError:
            return True
        return False


def publish(connection: Connection, body: Any, key: str) -> None:
    Producer(connection).publish(body, routing_key=key, exchange=EVENTS, declare=[EVENTS])


def test_an_event_reaches_every_reader_that_is_bound_to_its_key(connect: Connect) -> None:
    everything = Reader(connect(), EVENTS, "#", "celeryev.one")
    workers = Reader(connect(), EVENTS, "worker.#", "celeryev.two")
    sender = connect()
    publish(sender, {"n": 1}, "task.sent")
    publish(sender, {"n": 2}, "worker.heartbeat")
    publish(sender, [{"n": 3}, {"n": 4}], "task.multi")

    assert everything.drain(3) == [{"n": 1}, {"n": 2}, [{"n": 3}, {"n": 4}]]
    assert workers.drain(1) == [{"n": 2}]
    assert workers.is_silent()


def test_a_reader_hears_nothing_of_before_it_came(connect: Connect) -> None:
    sender = connect()
    publish(sender, {"n": 1}, "worker.heartbeat")
    shared = plane_for(sender.transport.control.options)
    assert shared.writer.flush(DEADLINE)
    reader = Reader(connect(), EVENTS, "#", "celeryev.one")
    publish(sender, {"n": 2}, "worker.heartbeat")
    assert reader.drain() == [{"n": 2}]


def test_who_cancelled_hears_no_more(connect: Connect) -> None:
    one = Reader(connect(), EVENTS, "#", "celeryev.one")
    two = Reader(connect(), EVENTS, "#", "celeryev.two")
    one.consumer.cancel()
    publish(connect(), {"n": 1}, "worker.heartbeat")
    two.drain()
    assert one.is_silent()


def test_an_event_is_seen_within_half_a_second(connect: Connect) -> None:
    reader, sender = Reader(connect(), EVENTS, "#", "celeryev.one"), connect()
    took = []
    for number in range(1, 6):
        published = monotonic()
        publish(sender, {"n": number}, "worker.heartbeat")
        reader.drain(number)
        took.append(monotonic() - published)
    # The best of five, for another process may have had the machine meanwhile.
    assert min(took) < 0.5


class Node:
    """A worker as far as pidbox knows it."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        box = Pidbox("celery", type="fanout", connection=connection)
        self.node = box.Node(name, channel=connection.channel())
        self.node.handlers["hello"] = lambda state, **told: {"hello": name, **told}
        self.consumer = self.node.listen()
        shared = plane_for(connection.transport.control.options)
        wait_until(lambda: "celery.pidbox" in shared._open, DEADLINE, "an open reader")

    def answer(self) -> None:
        self.connection.drain_events(timeout=DEADLINE)


def test_a_command_reaches_every_worker_and_each_answers_the_one_who_asked(
    connect: Connect, database: Database[dict[str, Any]]
) -> None:
    nodes = [Node(connect(), name) for name in ("one", "two")]
    client = connect()
    box = Pidbox("celery", type="fanout", connection=client)
    box._publish("hello", {"n": 1}, reply_ticket="ticket", channel=client.default_channel)
    for node in nodes:
        node.answer()
    # The answers are there before the client listens.
    wait_until(lambda: database.replies.count_documents({}) == 2, DEADLINE, "two replies")

    replies = box._collect("ticket", limit=2, timeout=DEADLINE, channel=client.default_channel)
    assert sorted(node for reply in replies for node in reply) == ["one", "two"]
    assert replies[0][next(iter(replies[0]))]["n"] == 1
    assert database.replies.count_documents({}) == 0


def test_an_answer_that_came_first_is_found_by_a_reader_that_runs_already(
    connect: Connect, database: Database[dict[str, Any]]
) -> None:
    node = Node(connect(), "one")
    client = connect()
    box = Pidbox("celery", type="fanout", connection=client)
    shared = plane_for(client.transport.control.options)
    for ticket in ("first", "second"):
        box._publish("hello", {}, reply_ticket=ticket, channel=client.default_channel)
        node.answer()
        wait_until(lambda: database.replies.count_documents({}) == 1, DEADLINE, "a reply")
        assert shared.writer.flush(DEADLINE)
        (reply,) = box._collect(ticket, limit=1, timeout=DEADLINE, channel=client.default_channel)
        assert reply == {"one": {"hello": "one"}}
    assert database.replies.count_documents({}) == 0


def test_an_answer_that_nobody_waits_for_any_more_is_deleted(
    connect: Connect, store: Store, database: Database[dict[str, Any]]
) -> None:
    channel = connect().default_channel
    box = Pidbox("celery", type="fanout", connection=channel.connection.client)
    queue = box.reply_queue(channel)
    queue.declare()
    store.reply([Broadcast("reply.celery.pidbox", key, {}, "{}") for key in (box.oid, "other")])
    channel.after_reply_message_received(queue.name)
    assert [reply["routing_key"] for reply in database.replies.find()] == ["other"]


def test_what_nobody_comes_for_expires(store: Store, database: Database[dict[str, Any]]) -> None:
    store.prepare()
    kept = {name: database[name].index_information()["expiry"] for name in ("replies", "revokes")}
    assert {name: index["expireAfterSeconds"] for name, index in kept.items()} == {
        "replies": 60,
        "revokes": 45 * 24 * 3600,
    }


def test_the_capped_collection_keeps_its_size(
    options: dict[str, Any], database: Database[dict[str, Any]]
) -> None:
    small = Store(ControlOptions.read(options | {"size_bytes": MIB}))
    for number in range(40):
        small.broadcast([Broadcast("celeryev", f"{number}", {}, "x" * 10_000) for _ in range(20)])
    stats = database.command("collStats", "events")
    small.close()
    assert stats["capped"]
    assert stats["size"] <= MIB
    newest = database.events.find().sort("$natural", -1).limit(1)
    assert next(iter(newest))["routing_key"] == "39"


def test_a_changed_setting_changes_what_is_there(
    options: dict[str, Any], store: Store, database: Database[dict[str, Any]]
) -> None:
    store.prepare()
    other = Store(ControlOptions.read(options | {"size_bytes": MIB, "revokes_seconds": 3600}))
    other.prepare()
    other.close()
    sizes = [database.command("collStats", name)["maxSize"] for name in ("broadcasts", "events")]
    assert sizes == [MIB, MIB]
    assert database.revokes.index_information()["expiry"]["expireAfterSeconds"] == 3600


def test_a_collection_that_somebody_dropped_is_made_anew(
    connect: Connect, database: Database[dict[str, Any]]
) -> None:
    reader, sender = Reader(connect(), EVENTS, "#", "celeryev.one"), connect()
    database.drop_collection("events")
    shared = plane_for(sender.transport.control.options)

    def is_heard() -> bool:
        publish(sender, {"n": 1}, "worker.heartbeat")
        shared.writer.flush(DEADLINE)
        return not reader.is_silent()

    wait_until(is_heard, DEADLINE, "an event")
    assert database.command("collStats", "events")["capped"]


def test_a_worker_reads_commands_and_no_event(
    connect: Connect, database: Database[dict[str, Any]]
) -> None:
    Node(connect(), "one")
    sender = connect()
    for number in range(20):
        publish(sender, {"n": number}, "worker.heartbeat")
    assert plane_for(sender.transport.control.options).writer.flush(DEADLINE)
    listing = database.client.admin.aggregate([{"$currentOp": {"idleCursors": True}}])
    read = {op["ns"] for op in listing if op.get("ns", "").startswith(f"{database.name}.")}
    assert database.events.count_documents({"exchange": "celeryev"}) == 20
    assert read == {f"{database.name}.broadcasts"}
    assert database.broadcasts.count_documents({"exchange": "celeryev"}) == 0


# Revokes


def test_a_revoke_is_kept_for_workers_that_start_later(connect: Connect, store: Store) -> None:
    client = connect()
    box = Pidbox("celery", type="fanout", connection=client)
    box.abcast("revoke", {"task_id": ["id-1", "id-2"], "terminate": False})
    box.abcast("revoke", {"task_id": "id-3", "terminate": True})
    box.abcast("terminate", {"task_id": "id-4", "signal": "KILL"})
    box.abcast("revoke_by_stamped_headers", {"headers": {"batch": ["b1", "b2"]}})
    box.abcast("revoke_by_stamped_headers", {"headers": ["user=u1"]})
    box.abcast("rate_limit", {"task_name": "id-5", "rate_limit": "1/s"})
    ids, stamps = store.revoked()
    assert ids == ["id-1", "id-2", "id-3", "id-4"]
    assert stamps == [("batch", "b1"), ("batch", "b2"), ("user", "u1")]


def test_a_revoke_for_one_worker_is_not_kept(connect: Connect, store: Store) -> None:
    client = connect()
    box = Pidbox("celery", type="fanout", connection=client)
    box.cast(["one@host"], "revoke", {"task_id": "id-1"})
    assert store.revoked() == ([], [])


def test_a_revoke_that_is_sent_again_is_one(store: Store) -> None:
    store.revoke(["id-1"])
    store.revoke(["id-1"])
    assert store.revoked() == (["id-1"], [])


# When MongoDB is not there


@pytest.fixture
def cut_off(mongo_client: MongoClient) -> Iterator[Callable[[bool], None]]:
    """Cuts the control plane's connections at each command, or lets them be."""

    def cut(is_cut: bool) -> None:
        mongo_client.admin.command(
            "configureFailPoint",
            "failCommand",
            mode="alwaysOn" if is_cut else "off",
            data={
                "failCommands": ["insert", "find", "getMore", "create", "createIndexes"],
                "closeConnection": True,
                "appName": "celery-control",
            },
        )

    yield cut
    cut(False)


def test_events_go_on_when_mongodb_is_back(
    connect: Connect, cut_off: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    reader, sender = Reader(connect(), EVENTS, "#", "celeryev.one"), connect()
    cut_off(True)
    publish(sender, {"n": 1}, "worker.heartbeat")
    wait_until(lambda: said(caplog, "control.down") == 2, DEADLINE, "a word of writer and reader")
    publish(sender, {"n": 2}, "worker.heartbeat")
    assert reader.is_silent()
    cut_off(False)
    assert reader.drain(2) == [{"n": 1}, {"n": 2}]
    wait_until(lambda: said(caplog, "control.up") == 2, DEADLINE, "a word of both")
    assert said(caplog, "control.down") == 2


def said(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(vars(record).get("event") == event for record in caplog.records)


# What it costs


class Counter(monitoring.CommandListener):
    """Counts the commands of this process to one database."""

    def __init__(self) -> None:
        self.database = ""
        self.seen: list[str] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.database_name == self.database:
            self.seen.append(event.command_name)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


@pytest.fixture
def counter(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Counter:
    made = Counter()
    made.database = options["database"]
    monkeypatch.setattr(store_module, "MongoClient", partial(MongoClient, event_listeners=[made]))
    return made


def test_an_idle_reader_costs_about_one_operation_a_second(
    connect: Connect, counter: Counter
) -> None:
    Node(connect(), "one")
    counter.seen.clear()
    began = monotonic()
    wait_until(lambda: counter.seen.count("getMore") >= 4, DEADLINE, "four waits")
    # The first one may have begun before.
    assert monotonic() - began > 2
    assert set(counter.seen) == {"getMore"}


def test_many_events_are_one_operation(connect: Connect, counter: Counter) -> None:
    sender = connect()
    shared = plane_for(sender.transport.control.options)
    publish(sender, {"n": 0}, "worker.heartbeat")
    shared.writer.flush(DEADLINE)
    counter.seen.clear()
    for number in range(1_000):
        publish(sender, {"n": number}, "worker.heartbeat")
    assert shared.writer.flush(DEADLINE)
    assert set(counter.seen) == {"insert"}
    # 5 where nothing holds the thread back, and hardly more than one each tenth of a second.
    assert len(counter.seen) < 100


# Processes


def test_a_fork_shares_nothing(connect: Connect, options: dict[str, Any]) -> None:
    ours = plane_for(ControlOptions.read(options))
    ours.store.prepare()
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:
        theirs = plane_for(ControlOptions.read(options))
        theirs.store.revoke(["id-of-the-child"])
        os.write(write_end, b"other" if theirs is not ours else b"same")
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write_end)
    assert os.read(read_end, 100) == b"other"
    os.close(read_end)
    assert ours.store.revoked() == (["id-of-the-child"], [])


CLIENT = """
import json, sys
from celery import Celery
from sqs_broker import install
app = Celery("client", set_as_current=False)
install(app)
app.conf.broker_transport_options = json.loads(sys.argv[1])
print("asking", flush=True)
app.control.inspect(timeout=60).ping()
"""


def test_a_client_that_is_killed_leaves_no_cursor(
    connect: Connect, options: dict[str, Any], mongo_client: MongoClient
) -> None:
    def cursors() -> int:
        listing = mongo_client.admin.aggregate([{"$currentOp": {"idleCursors": True}}])
        ours = [op for op in listing if op.get("ns") == f"{options['database']}.broadcasts"]
        return sum(op["type"] == "idleCursor" or op.get("op") == "getmore" for op in ours)

    transport = {
        "region": "us-east-1",
        "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
        "control": options,
    }
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, json.dumps(transport)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": os.getcwd(), "PATH": os.environ["PATH"]},
    )
    try:
        wait_until(lambda: cursors() > 0, DEADLINE, "a client that waits")
        # Once more, for it is not to be killed while it opens its cursor.
        wait_until(lambda: cursors() > 0, DEADLINE, "a client that waits")
    finally:
        client.send_signal(signal.SIGKILL)
        client.communicate()
    wait_until(lambda: cursors() == 0, DEADLINE, "no cursor")


def test_a_reader_goes_on_where_it_was_unless_that_was_long_ago() -> None:
    newest = Timestamp(1_000, 5)
    assert start_of(None, newest) == newest
    assert start_of(Timestamp(990, 1), newest) == Timestamp(990, 1)
    assert start_of(Timestamp(1, 1), newest) == Timestamp(1_000 - CATCH_UP_SECONDS, 0)
