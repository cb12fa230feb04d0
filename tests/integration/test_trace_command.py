"""`sqs trace` with a real MongoDB: revokes, attempts, redrives, audit, outcome, user and once."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.uri_parser import parse_uri

from app.commands.trace import trace
from app.settings import get_settings
from sqs_broker.control.audit import Audit
from sqs_broker.control.redrives import Redrives
from sqs_broker.control.store import Store
from sqs_broker.rules.attempts import MOST_RUNS, Record, Run
from sqs_broker.tools.trace import Fact, in_control

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_the_control_database_knows_revokes_attempts_redrives_and_the_audit(store: Store) -> None:
    assert list(in_control(store, "id-1", [])) == []
    store.revoke(["id-1", "id-2"])
    store.add_attempts({"sqs-1": Record(failed=frozenset({1, 2}), released=frozenset({3}))})
    Redrives(store).add({"id-1": "letter-1"})
    Redrives(store).add({"id-1": "letter-2"})
    Audit(store).note("redrive", "kim", ids=["id-0", "id-1"])
    Audit(store).note("purge", "kim", ids=["id-2"])
    told = [(fact.source, fact.text) for fact in in_control(store, "id-1", ["sqs-1"])]
    assert told == [
        ("control", "revoked: it does not run, unless a worker had already taken it"),
        ("attempts", "of sqs-1: deliveries that failed: 1, 2; that were released: 3"),
        ("redrives", "redriven 2 times"),
        ("audit", "redrive by kim"),
    ]


def test_each_failed_run_has_its_time_and_error_in_one_write_and_the_list_is_bounded(
    store: Store,
) -> None:
    for number in range(1, MOST_RUNS + 6):
        at = NOW + timedelta(minutes=number)
        run = Run(number, at, f"Error{number}")
        for _ in range(2):  # A settlement may be repeated.
            store.add_attempts({"sqs-1": Record(frozenset({number}), runs=(run,), id="id-1")})
    store.add_attempts({"sqs-2": Record(frozenset({1}), runs=(Run(1, NOW, "Other"),), id="id-1")})
    store.add_attempts({"sqs-3": Record(frozenset({1}), runs=(Run(1, NOW, "Other"),), id="id-2")})
    told = [fact for fact in in_control(store, "id-1", []) if fact.source == "attempt"]
    assert len(told) == MOST_RUNS + 1
    assert (
        Fact("attempt", "delivery 25 of sqs-1 failed: Error25", NOW + timedelta(minutes=25)) in told
    )
    assert Fact("attempt", "delivery 1 of sqs-2 failed: Other", NOW) in told
    assert not [fact for fact in told if "delivery 5 of sqs-1" in fact.text]
    assert store.attempts(["sqs-1"])["sqs-1"].failed == set(range(1, MOST_RUNS + 6))
    assert store.attempts(["sqs-1"])["sqs-1"].runs == ()
    indexes = [dict(index["key"]) for index in store.database["attempts"].list_indexes()]
    assert {"id": 1} in indexes


def test_runs_that_somebody_else_wrote_are_left_out(store: Store) -> None:
    store.prepare()
    store.database["attempts"].insert_one(
        {"_id": "sqs-1", "id": "id-1", "at": NOW, "runs": {"1": 7, "2": {"delivery": "x"}}}
    )
    assert store.histories("id-1")["sqs-1"].runs == ()
    store.database["attempts"].update_one({"_id": "sqs-1"}, {"$set": {"runs": [1]}})
    assert store.histories("id-1")["sqs-1"].runs == ()


@pytest.fixture
def database(
    mongo_uri: str, mongo_client: MongoClient[Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The application's, which its settings name."""
    for name, value in {
        "MONGO_URI": mongo_uri,
        "AWS_REGION": "us-east-1",
        "AWS_SQS_QUEUE_URL": "https://sqs.test/1/jobs",
    }.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    yield mongo_client[parse_uri(mongo_uri)["database"]]
    get_settings.cache_clear()


def test_the_application_knows_the_outcome_the_user_and_the_effect(database: Any) -> None:
    assert list(trace(None, "id-1")) == []
    database["outcomes"].insert_one({"_id": "id-1", "state": "conflict", "at": NOW, "reason": "r"})
    record = {"message_id": "id-1", "registered_at": NOW, "deliveries": 2}
    database["users"].insert_one({"user_info": {"nickname": "marker"}, "registration": record})
    database["once"].insert_one({"_id": "Increment:id-1", "applied_at": NOW, "stored": {"x": 1}})
    found = list(trace(None, "id-1"))
    assert [(fact.source, fact.text, fact.at) for fact in found] == [
        ("outcome", "conflict: r", NOW),
        ("user", "created a user, in delivery 2", NOW),
        ("once", "its effect is stored (Increment)", NOW),
    ]
