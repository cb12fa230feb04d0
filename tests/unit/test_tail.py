"""The reader of one exchange, without a MongoDB. tests/integration runs it with one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from sqs_broker.control.tail import Tail
from tests.services import wait_until


class Silence:
    """A cursor that stands, and brings nothing."""

    alive = True

    def __next__(self) -> Any:
        raise StopIteration


@contextmanager
def read_on(*_: Any) -> Iterator[Silence]:
    yield Silence()


def test_a_reader_that_is_no_longer_wanted_does_not_ask_again() -> None:
    # Whoever said no has forgotten it: a second question is one about another reader.
    answers = iter([True, True, True, False])
    asked = []

    def is_wanted() -> bool:
        asked.append(next(answers, None))
        return bool(asked[-1])

    store: Any = SimpleNamespace(newest=lambda: None, read_on=read_on)
    Tail(store, "celeryev", lambda: None, list.clear, is_wanted).start()
    wait_until(
        lambda: all(thread.name != "control-celeryev" for thread in threading.enumerate()),
        10,
        "the end of the reader",
    )

    assert asked == [True, True, True, False]
