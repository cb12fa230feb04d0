"""How long an index that was seen counts as present."""

from typing import Any

import pytest
from pymongo.errors import AutoReconnect, OperationFailure

from app.indexes import LASTS, Sight
from sqs_broker.testing import Clock

DECLARED = {"name": "key", "fields": ["a", "b"], "unique": True}
THERE = {"name": "key", "key": {"a": 1, "b": 1}, "unique": True}


class Collection:
    """What MongoDB reports of a collection, and how often it was asked."""

    def __init__(self, *indexes: dict[str, Any], fails: Exception | None = None) -> None:
        self.database, self.client = self, object()
        self.indexes, self.fails, self.looks = list(indexes), fails, 0

    def list_indexes(self) -> list[dict[str, Any]]:
        self.looks += 1
        if self.fails:
            raise self.fails
        return self.indexes


def sight_of(clock: Clock) -> Any:
    return Sight([DECLARED], clock)


def test_it_looks_once_in_a_while() -> None:
    clock, collection = Clock(), Collection(THERE)
    sight = sight_of(clock)

    assert all(sight.has_all(collection) for _ in range(5))
    assert collection.looks == 1
    clock.advance(LASTS)
    assert sight.has_all(collection)
    assert collection.looks == 2


def test_an_index_that_is_gone_counts_as_present_for_a_limited_time() -> None:
    clock, collection = Clock(), Collection(THERE)
    sight = sight_of(clock)
    assert sight.has_all(collection)

    collection.indexes.clear()
    clock.advance(LASTS - 0.1)
    assert sight.has_all(collection)
    clock.advance(0.1)
    assert not sight.has_all(collection)
    assert LASTS <= 60


@pytest.mark.parametrize(
    "change",
    [
        {"unique": False},
        {"sparse": True},
        {"hidden": True},
        {"partialFilterExpression": {"a": 1}},
        {"collation": {"locale": "en"}},
        {"key": {"b": 1, "a": 1}},
        {"key": {"a": 1}},
    ],
    ids=str,
)
def test_an_index_that_works_in_another_way_is_not_the_declared_one(change: Any) -> None:
    assert not sight_of(Clock()).has_all(Collection(THERE | change))


def test_what_one_client_has_seen_does_not_count_for_another() -> None:
    sight, first, second = sight_of(Clock()), Collection(THERE), Collection()

    assert sight.has_all(first)
    assert not sight.has_all(second)


def test_who_may_not_look_sees_nothing_and_an_outage_is_an_error() -> None:
    refused = Collection(THERE, fails=OperationFailure("no right", 13))
    assert not sight_of(Clock()).has_all(refused)
    with pytest.raises(AutoReconnect):
        sight_of(Clock()).has_all(Collection(THERE, fails=AutoReconnect()))
