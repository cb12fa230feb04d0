"""Tail: it reads on after every fault, and ends when nobody listens. No MongoDB is asked."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from bson import Timestamp
from pymongo.errors import AutoReconnect, OperationFailure

from devstack.waiting import wait_until
from sqs_broker.control.tail import POSITION_LOST, Tail

#: Seconds that nothing here comes near to.
DEADLINE = 10

NOW = Timestamp(100, 1)


class Cursor:
    """Gives what it has, then fails, goes, or stays and brings nothing."""

    def __init__(self, *documents: Any, end: Exception | None = None, stays: bool = False) -> None:
        self.holds = len(documents)
        self._documents = iter(documents)
        self._end = end
        self.alive = True
        self._stays = stays

    def __next__(self) -> Any:
        for document in self._documents:
            return document
        if self._end:
            raise self._end
        self.alive = self._stays
        raise StopIteration


class Store:
    """Gives its cursors one after the other."""

    def __init__(self, *cursors: Cursor) -> None:
        self._cursors = iter(cursors)
        self.began: list[Timestamp] = []

    def newest(self) -> Timestamp:
        return NOW

    @contextmanager
    def read_on(self, exchange: str, after: Timestamp) -> Iterator[Cursor]:
        assert exchange == "celeryev"
        self.began.append(after)
        yield next(self._cursors)


def read(
    store: Store, on_open: Callable[[], None], got: list[Any], is_wanted: Callable[[], bool]
) -> None:
    """Read until nobody wants more, or until there are no cursors."""
    Tail(
        store,  # type: ignore[arg-type]  # stands where the store stands
        "celeryev",
        on_open,
        got.append,
        is_wanted,
        first_pause=0.001,
    ).start()
    wait_until(
        lambda: all(thread.name != "control-celeryev" for thread in threading.enumerate()),
        DEADLINE,
        "the end of the reader",
    )


def document(at: int) -> dict[str, Any]:
    return {"at": Timestamp(at, 1)}


TOO_SLOW = OperationFailure("CappedPositionLost", POSITION_LOST)


@pytest.mark.parametrize(
    ("cursors", "began"),
    [
        ([Cursor(document(101))], [NOW]),
        (
            [Cursor(document(101), end=AutoReconnect()), Cursor(document(102))],
            [NOW, Timestamp(101, 1)],
        ),
        ([Cursor(), Cursor(document(101))], [NOW, NOW]),
        ([Cursor(document(101), end=TOO_SLOW), Cursor(document(102))], [NOW, NOW]),
    ],
    ids=["what is written from now on", "where it was", "a cursor that went", "what is new"],
)
def test_it_reads_on_after_every_fault_and_says_each_time_that_it_is_open(
    cursors: list[Cursor], began: list[Any]
) -> None:
    store, got, opened = Store(*cursors), list[Any](), list[bool]()
    wanted = sum(cursor.holds for cursor in cursors)
    read(store, lambda: opened.append(True), got, lambda: len(got) < wanted)
    assert store.began == began
    assert len(opened) == len(began)
    assert len(got) == wanted


def test_one_that_is_no_longer_wanted_does_not_ask_again() -> None:
    # Whoever said no has forgotten it: a second question is one about another reader.
    answers = iter([True, True, True, False])
    asked: list[bool | None] = []

    def is_wanted() -> bool:
        asked.append(next(answers, None))
        return bool(asked[-1])

    read(Store(Cursor(stays=True)), list, [], is_wanted)
    assert asked == [True, True, True, False]
