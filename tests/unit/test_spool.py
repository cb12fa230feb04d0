"""Spool: a table that may be larger than memory."""

from collections.abc import Iterator

import pytest

from sqs_broker.machine.spool import Spool


@pytest.fixture
def spool() -> Iterator[Spool]:
    made = Spool()
    yield made
    made.close()


def rows(spool: Spool) -> list[tuple[str | bytes, str]]:
    return [row for pack in spool.packs(2) for row in pack]


def test_rows_come_in_the_order_in_which_they_were_added(spool: Spool) -> None:
    spool.add([("b", "1"), ("a", "2"), (b"c", "3")])
    assert rows(spool) == [("b", "1"), ("a", "2"), (b"c", "3")]
    assert [len(pack) for pack in spool.packs(2)] == [2, 1]


def test_a_known_key_keeps_its_place_and_gets_the_new_value(spool: Spool) -> None:
    spool.add([("a", "1"), ("b", "2")])
    spool.add([("a", "3")])
    assert rows(spool) == [("a", "3"), ("b", "2")]
    assert len(spool) == 2


def test_rows_may_be_removed_while_they_are_read(spool: Spool) -> None:
    spool.add((str(n), "") for n in range(25))
    seen = 0
    for pack in spool.packs(10):
        seen += len(pack)
        spool.discard(key for key, _ in pack)
    assert (seen, len(spool)) == (25, 0)
    assert "3" not in spool


def test_a_key_that_is_not_there_can_be_removed(spool: Spool) -> None:
    spool.discard(["x"])
    assert "x" not in spool
