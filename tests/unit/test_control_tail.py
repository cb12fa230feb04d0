"""Tail: it reads on after every fault, and ends when nobody listens."""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
from bson import Timestamp
from pymongo.errors import AutoReconnect, OperationFailure

from devstack.waiting import wait_until
from sqs_broker.control.tail import POSITION_LOST, Tail

#: Seconds that nothing here comes near to.
DEADLINE = 10


class Cursor:
    """Gives what it has, then fails or goes, as it is told."""

    def __init__(self, documents: list[Any], end: Exception | None = None) -> None:
        self._documents = list(documents)
        self._end = end
        self.alive = True

    def __next__(self) -> Any:
        if self._documents:
            return self._documents.pop(0)
        if self._end:
            raise self._end
        self.alive = False
        raise StopIteration

    def __iter__(self) -> Any:
        return self


class Store:
    def __init__(self, *cursors: Any) -> None:
        self.cursors = list(cursors)
        self.began: list[Timestamp] = []

    def newest(self) -> Timestamp:
        return Timestamp(100, 1)

    @contextmanager
    def read_on(self, exchange: str, after: Timestamp) -> Any:
        assert exchange == "celeryev"
        self.began.append(after)
        if not self.cursors:
            threading.Event().wait(0.01)
            yield Cursor([])
            return
        yield self.cursors.pop(0)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Store, list[Any], list[bool]]]:
    """Reads from cursors until so many messages came; the store, these, and each opening."""
    monkeypatch.setattr("sqs_broker.control.outage.FIRST_PAUSE", 0.01)

    def run(store: Store, many: int) -> tuple[Store, list[Any], list[bool]]:
        got: list[Any] = []
        opened: list[bool] = []
        tail = Tail(
            store,  # type: ignore[arg-type]  # stands where the store stands
            "celeryev",
            lambda: opened.append(True),
            got.append,
            lambda: len(got) < many,
        )
        tail.start()
        wait_until(lambda: not tail._thread.is_alive(), DEADLINE, "the end of the thread")
        return store, got, opened

    return run


def document(number: int, at: int) -> dict[str, Any]:
    return {"n": number, "at": Timestamp(at, 1)}


def test_it_begins_with_what_is_written_from_now_on(read: Any) -> None:
    store, got, opened = read(Store(Cursor([document(1, 101)])), 1)
    assert (store.began, [d["n"] for d in got], opened) == ([Timestamp(100, 1)], [1], [True])


def test_after_a_fault_it_goes_on_where_it_was(read: Any) -> None:
    faulty = Cursor([document(1, 101)], AutoReconnect())
    store, got, opened = read(Store(faulty, Cursor([document(2, 102)])), 2)
    assert store.began == [Timestamp(100, 1), Timestamp(101, 1)]
    assert [d["n"] for d in got] == [1, 2]
    assert len(opened) == 2


def test_a_cursor_that_went_is_opened_again(read: Any) -> None:
    _, got, _ = read(Store(Cursor([]), Cursor([document(1, 101)])), 1)
    assert len(got) == 1


def test_who_was_too_slow_goes_on_with_what_is_new(read: Any) -> None:
    lost = OperationFailure("CappedPositionLost", POSITION_LOST)
    faulty = Cursor([document(1, 99)], lost)
    store, _, _ = read(Store(faulty, Cursor([document(2, 102)])), 2)
    assert store.began == [Timestamp(100, 1), Timestamp(100, 1)]


def test_one_that_is_not_wanted_never_comes_back() -> None:
    answers = iter([False, True, True])
    tail = Tail(Store(), "celeryev", list, list, lambda: next(answers))  # type: ignore[arg-type]
    tail._run()
    assert not tail._is_wanted()
