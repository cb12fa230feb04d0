"""`sqs trace` with a real MongoDB: revokes, attempts, redrives, audit, outcome, user and once."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.uri_parser import parse_uri

from app.commands.trace import trace
from app.settings import get_settings
from sqs_broker.control.audit import Audit
from sqs_broker.control.redrives import Redrives
from sqs_broker.control.store import Store
from sqs_broker.rules.attempts import Record
from sqs_broker.tools.trace import in_control

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
