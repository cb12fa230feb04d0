"""The record of failed runs in a real MongoDB: what one process writes, every other one reads."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Int64
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.uri_parser import parse_uri

from sqs_broker.control.attempts import MongoAttempts
from sqs_broker.control.planes import attempts_for
from sqs_broker.control.store import Store
from sqs_broker.limits import LONGEST_RETENTION
from sqs_broker.options import ControlOptions
from sqs_broker.rules.attempts import Record
from sqs_broker.testing import Clock

#: An address at which nothing answers.
NOWHERE = "mongodb://127.0.0.1:1/"

#: Longer than the pause after a failure.
PAUSE = 11.0

FAILED, RELEASED = Record(failed=frozenset({1})), Record(released=frozenset({2}))

MakeAttempts = Callable[..., MongoAttempts]


@pytest.fixture
def options(mongo_uri: str) -> ControlOptions:
    return ControlOptions(mongo_uri, f"{parse_uri(mongo_uri)['database']}_control")


@pytest.fixture
def documents(
    options: ControlOptions, mongo_client: MongoClient[dict[str, Any]]
) -> Collection[dict[str, Any]]:
    return mongo_client[options.database]["attempts"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Process:
    """A worker, whose MongoDB may be somewhere else for a while."""

    def __init__(self, options: ControlOptions, clock: Clock) -> None:
        self.here = Store(options)
        self.nowhere = Store(ControlOptions(NOWHERE, options.database))
        self.store = self.here
        self.attempts = MongoAttempts(lambda: self.store, clock, timeout=1.0)

    def close(self) -> None:
        self.here.close()
        self.nowhere.close()


@pytest.fixture
def process(options: ControlOptions, clock: Clock) -> Iterator[Process]:
    made = Process(options, clock)
    yield made
    made.close()


@pytest.fixture
def other(options: ControlOptions, clock: Clock) -> Iterator[Process]:
    made = Process(options, clock)
    yield made
    made.close()


def test_what_one_process_records_another_one_reads(process: Process, other: Process) -> None:
    process.attempts.add({"a": FAILED, "b": RELEASED})
    other.attempts.add({"a": RELEASED})
    assert process.attempts.read(["a", "b", "c"]) == {"a": FAILED | RELEASED, "b": RELEASED}


def test_what_is_recorded_twice_is_there_once(
    process: Process, documents: Collection[dict[str, Any]]
) -> None:
    for _ in range(2):
        process.attempts.add({"a": Record(failed=frozenset({1, 3}))})
    (document,) = documents.find()
    assert sorted(document["failed"]) == [1, 3]
    assert document["released"] == []


def test_mongodb_deletes_a_record_once_sqs_can_keep_its_message_no_longer(
    process: Process, documents: Collection[dict[str, Any]]
) -> None:
    process.attempts.add({"a": FAILED})
    (document,) = documents.find()
    age = datetime.now(UTC) - document["at"]
    assert timedelta() <= age < timedelta(minutes=1)
    (index,) = (i for i in documents.list_indexes() if dict(i["key"]) == {"at": 1})
    assert index["expireAfterSeconds"] == LONGEST_RETENTION


def test_while_mongodb_is_away_a_process_knows_what_it_has_seen_and_writes_it_later(
    process: Process, other: Process, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    process.attempts.add({"a": FAILED})
    process.store = process.nowhere
    process.attempts.add({"a": RELEASED, "b": FAILED})
    assert process.attempts.read(["a", "b"]) == {"a": RELEASED, "b": FAILED}
    assert other.attempts.read(["a", "b"]) == {"a": FAILED}

    process.store = process.here
    clock.advance(PAUSE)
    process.attempts.add({"c": FAILED})
    assert other.attempts.read("abc") == {"a": FAILED | RELEASED, "b": FAILED, "c": FAILED}
    events = [vars(record).get("event") for record in caplog.records]
    assert [event for event in events if event] == ["control.down", "control.up"]


def test_after_a_failure_no_call_waits_for_mongodb_for_a_while(
    process: Process, other: Process, clock: Clock
) -> None:
    process.store = process.nowhere
    process.attempts.add({"a": FAILED})
    process.store = process.here
    assert process.attempts.read(["other"]) == {}
    process.attempts.add({"b": FAILED})
    assert process.attempts.read(["a", "b"]) == {"a": FAILED, "b": FAILED}
    assert other.attempts.read(["a", "b"]) == {}
    clock.advance(PAUSE)
    process.attempts.add({"c": FAILED})
    assert process.attempts.read("abc") == dict.fromkeys("abc", FAILED)


def test_a_record_that_somebody_else_has_changed_is_read_as_far_as_it_goes(
    process: Process, documents: Collection[dict[str, Any]]
) -> None:
    documents.insert_many(
        [
            {"_id": "a", "failed": [1, "2", None, True, 1.5, Int64(4)], "released": 7},
            {"_id": "b"},
        ]
    )
    assert process.attempts.read(["a", "b"]) == {
        "a": Record(failed=frozenset({1, 4})),
        "b": Record(),
    }


def test_a_missing_right_is_one_line_and_costs_only_the_records(
    process: Process,
    documents: Collection[dict[str, Any]],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    documents.database.create_collection("attempts", viewOn="others", pipeline=[])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            process.attempts.add({"a": FAILED})
            clock.advance(PAUSE)
    assert process.attempts.read(["a"]) == {"a": FAILED}
    down = [r for r in caplog.records if vars(r).get("event") == "control.down"]
    assert len(down) == 1
    assert "attempts is a view" in down[0].getMessage()


def test_without_a_database_there_is_no_store() -> None:
    assert attempts_for(ControlOptions()) is None


def test_the_store_needs_no_celery(options: ControlOptions) -> None:
    code = f"""
import sys
from sqs_broker.control.planes import attempts_for
from sqs_broker.options import ControlOptions
from sqs_broker.rules.attempts import Record
store = attempts_for(ControlOptions({options.uri!r}, {options.database!r}))
store.add({{"a": Record(failed=frozenset({{1}}))}})
assert store.read(["a"]) == {{"a": Record(failed=frozenset({{1}}))}}
assert "celery" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
