"""Collections in which a user could be lost or doubled are refused by name: at start, by doctor,
and by the look that a running worker takes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.uri_parser import parse_uri

from app import models
from app.commands.database import check_database
from app.errors import SettingsError
from app.outage import probe
from app.probe import Probe
from app.settings import get_settings
from app.startup import prepare_database
from sqs_broker.tools.checks import Level

Prepare = Callable[[Database[dict[str, Any]]], object]

KEY = [("stock_id", 1), ("user_id", 1)]
NAME = "stock_id_user_id"


@pytest.fixture
def database(
    mongo_uri: str, mongo_client: MongoClient[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database[dict[str, Any]]]:
    monkeypatch.setenv("MONGO_URI", mongo_uri)
    get_settings.cache_clear()
    yield mongo_client[parse_uri(mongo_uri)["database"]]
    models.disconnect()


def index(**options: Any) -> Prepare:
    return lambda db: db["users"].create_index(KEY, **{"name": NAME} | options)


def collection(name: str = "users", **options: Any) -> Prepare:
    return lambda db: db.create_collection(name, **options)


REFUSED: dict[str, tuple[Prepare, str]] = {
    "capped": (collection(capped=True, size=4096), "collection users"),
    "capped by number": (collection(capped=True, size=1 << 20, max=5), "collection users"),
    "collation": (collection(collation={"locale": "en", "strength": 1}), "collection users"),
    "view": (collection(viewOn="people", pipeline=[]), "collection users"),
    "time series": (collection(timeseries={"timeField": "t"}), "collection users"),
    "once capped": (collection("once", capped=True, size=4096), "collection once"),
    "increments capped": (collection("increments", capped=True, size=4096), "increments"),
    "counters capped": (collection("counters", capped=True, size=4096), "collection counters"),
    "once collation": (collection("once", collation={"locale": "de"}), "collection once"),
    "not unique": (index(), f"users.{NAME}"),
    "not unique, another name": (index(name="mine"), f"users.{NAME}"),
    "sparse": (index(unique=True, sparse=True), "sparse"),
    "partial": (index(unique=True, partialFilterExpression={"a": True}), "partialFilter"),
    "hidden": (index(unique=True, hidden=True), "hidden"),
    "index collation": (index(unique=True, collation={"locale": "en"}), "collation"),
    "index with a time": (
        lambda db: db["users"].create_index("last_activity_time", expireAfterSeconds=0, name="ttl"),
        "users.ttl",
    ),
    "increments with a time": (
        lambda db: db["increments"].create_index("at", expireAfterSeconds=9, name="ttl"),
        "increments.ttl",
    ),
    "other keys": (
        lambda db: db["users"].create_index("user_id", name=NAME, unique=True),
        "its keys",
    ),
    "the keys the other way round": (
        lambda db: db["users"].create_index(KEY[::-1], name=NAME, unique=True),
        "its keys",
    ),
    "another unique index": (
        lambda db: db["users"].create_index("user_info.nickname", unique=True),
        "users.user_info.nickname_1",
    ),
    "a unique index on once": (
        lambda db: db["once"].create_index("payload_hash", unique=True, name="mine"),
        "once.mine",
    ),
    "once is not forgotten": (
        lambda db: db["once"].create_index("forget_at", name="forget_at"),
        "once.forget_at",
    ),
    "once is forgotten late": (
        lambda db: db["once"].create_index(
            "forget_at", name="forget_at", expireAfterSeconds=2**31 - 1
        ),
        "once.forget_at",
    ),
    "a validator": (
        collection(validator={"$jsonSchema": {"required": ["email"]}}),
        "WriteError(121)",
    ),
    "two users of one key": (
        lambda db: db["users"].insert_many([{"stock_id": "s", "user_id": "u"} for _ in "12"]),
        f"users.{NAME}",
    ),
}


@pytest.mark.parametrize("state", REFUSED)
def test_what_cannot_keep_the_promise_is_refused_by_name(
    database: Database[dict[str, Any]], mongo_uri: str, state: str
) -> None:
    prepare, name = REFUSED[state]
    prepare(database)

    with pytest.raises(SettingsError) as raised:
        prepare_database(get_settings())

    assert name in raised.value.message
    assert "\n" not in raised.value.message
    faults = [f for f in check_database(mongo_uri) if f.level is Level.FAULT]
    assert faults
    assert all(fault.fix for fault in faults)
    if not name.startswith("WriteError"):
        assert any(name in f"{fault.check} {fault.text}" for fault in faults)


@pytest.mark.parametrize("state", REFUSED)
def test_what_becomes_so_while_a_worker_runs_is_found_by_its_probe(
    database: Database[dict[str, Any]], mongo_uri: str, state: str
) -> None:
    prepare_database(get_settings())
    assert probe(mongo_uri) is None
    for name in ("users", "once", "increments", "counters"):
        database.drop_collection(name)

    REFUSED[state][0](database)

    assert probe(mongo_uri) is not None


SERVES: dict[str, Prepare] = {
    "another name": index(name="mine", unique=True),
    "a simple collation": collection(collation={"locale": "simple"}),
    "a clustered collection": collection(clusteredIndex={"key": {"_id": 1}, "unique": True}),
    "a validator that only warns": collection(
        validator={"$jsonSchema": {"required": ["email"]}}, validationAction="warn"
    ),
    "a validator that takes users": collection(
        validator={"$jsonSchema": {"required": ["stock_id", "user_id", "user_info"]}}
    ),
    "an index of one's own": lambda db: db["users"].create_index("money", name="rich"),
    "old users": lambda db: db["users"].insert_many(
        [{"stock_id": "s", "user_id": "u", "nickname": "old"}, {"stock_id": "s", "user_id": "v"}]
    ),
}


@pytest.mark.parametrize("state", SERVES)
def test_what_keeps_the_promise_serves(
    database: Database[dict[str, Any]], mongo_uri: str, state: str
) -> None:
    SERVES[state](database)

    prepare_database(get_settings())

    assert probe(mongo_uri) is None
    assert {finding.level for finding in check_database(mongo_uri)} == {Level.OK}


def test_a_look_writes_nothing_and_sees_an_index_go_and_come(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    prepare_database(get_settings())
    looking = Probe(mongo_uri)
    assert looking.find_fault() is None

    database["users"].drop_index(NAME)
    assert f"users.{NAME}" in str(looking.find_fault())
    database["users"].create_index(KEY, name=NAME, unique=True)

    assert looking.find_fault() is None
    looking.close()


def test_neither_probe_nor_doctor_leaves_a_document(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    prepare_database(get_settings())
    list(check_database(mongo_uri))
    assert probe(mongo_uri) is None

    counts = {name: database[name].count_documents({}) for name in database.list_collection_names()}
    assert set(counts.values()) == {0}


def test_options_of_the_uri_that_are_not_used_are_said_by_start_and_doctor(
    database: Database[dict[str, Any]],
    mongo_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uri = f"{mongo_uri}&w=0&readPreference=secondary"
    monkeypatch.setenv("MONGO_URI", uri)
    get_settings.cache_clear()

    prepare_database(get_settings())

    [record] = [r for r in caplog.records if vars(r).get("event") == "start.replaced"]
    assert "w, readPreference" in record.getMessage()
    [options] = [f for f in check_database(uri) if f.check == "options"]
    assert "w, readPreference" in options.text


OUTCOMES: dict[str, tuple[Prepare, str]] = {
    "capped": (collection("outcomes", capped=True, size=4096), "collection outcomes"),
    "view": (collection("outcomes", viewOn="people", pipeline=[]), "collection outcomes"),
    "never forgotten": (
        lambda db: db["outcomes"].insert_one({"_id": "1"}),
        "index outcomes.forget_at",
    ),
}


@pytest.mark.parametrize("state", OUTCOMES)
def test_a_fault_of_the_outcomes_is_said_by_doctor_and_stops_no_worker(
    database: Database[dict[str, Any]], mongo_uri: str, state: str
) -> None:
    prepare, name = OUTCOMES[state]
    prepare(database)

    prepare_database(get_settings())

    assert probe(mongo_uri) is None
    [fault] = [f for f in check_database(mongo_uri) if f.level is Level.FAULT]
    assert fault.check == name
    assert fault.fix
