"""Whose fault it is: a machine that has too little now is never blamed on the message."""

import builtins
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery.exceptions import InvalidTaskError
from hypothesis import given, settings
from hypothesis import strategies as st

from sqs_broker.errors import NoThread, Undecodable
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.outcomes import Failed, Happened, NotTaken, Refused
from tests.unit.conftest import Machine

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


def failing(number: int) -> OSError:
    return OSError(number, os.strerror(number), MARKER)


def caught(raise_it: Any) -> Exception:
    try:
        raise_it()
    except Exception as exc:
        return exc
    raise AssertionError("nothing was raised")


def hidden(fault: Exception, *, by: Exception, from_it: bool = False) -> Exception:
    """An exception that was raised while another one was handled."""

    def raise_it() -> None:
        try:
            raise fault
        except Exception as exc:
            if from_it:
                raise by from exc
            raise by  # noqa: B904 - as somebody wrote it who did not think of the cause

    return caught(raise_it)


class Numpys(MemoryError):
    """As numpy has one."""


OF_MACHINE = [
    MemoryError(),
    Numpys(),
    NoThread("one"),
    RuntimeError("can't start new thread"),
    RuntimeError("can't create new thread at interpreter shutdown"),
    BlockingIOError(),
    *map(
        failing,
        [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOSPC],
    ),
    hidden(MemoryError(), by=ValueError(MARKER)),
    hidden(MemoryError(), by=ValueError(MARKER), from_it=True),
    hidden(failing(errno.EMFILE), by=Undecodable("the body is not JSON")),
    hidden(hidden(MemoryError(), by=KeyError(MARKER)), by=InvalidTaskError(MARKER), from_it=True),
]


@pytest.mark.parametrize("exc", OF_MACHINE, ids=repr)
@pytest.mark.parametrize("refusal", [None, "the message is not a valid task message"])
def test_what_this_machine_has_too_little_of_is_no_fault_of_the_message(
    exc: Exception, refusal: str | None
) -> None:
    happened = untaken(exc, refusal)
    assert isinstance(happened, NotTaken)
    assert MARKER not in repr(happened)


def test_the_class_that_is_named_is_that_of_the_fault() -> None:
    assert untaken(hidden(Numpys(), by=ValueError())) == NotTaken("Numpys")


def test_a_thread_that_cannot_start_is_known_by_what_python_says(machine: Machine) -> None:
    machine.has_no_room_for("ThreadPoolExecutor")
    with ThreadPoolExecutor(1) as pool:
        exc = caught(lambda: pool.submit(print))
    assert untaken(exc) == NotTaken("RuntimeError")


def test_a_pool_that_is_on_its_way_out_is_known_by_what_python_says() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    assert untaken(caught(lambda: pool.submit(print))) == NotTaken("RuntimeError")


@pytest.mark.parametrize(
    ("exc", "happened"),
    [
        (
            KeyError(MARKER),
            Failed("KeyError", "the worker could not accept the message (KeyError)"),
        ),
        (
            RecursionError(MARKER),
            Failed("RecursionError", "the worker could not accept the message (RecursionError)"),
        ),
        (
            RuntimeError(MARKER),
            Failed("RuntimeError", "the worker could not accept the message (RuntimeError)"),
        ),
        # Made of what a message holds: a path, or a time that no clock can show.
        (
            failing(errno.ENAMETOOLONG),
            Failed("OSError", "the worker could not accept the message (OSError)"),
        ),
        (
            failing(errno.EOVERFLOW),
            Failed("OSError", "the worker could not accept the message (OSError)"),
        ),
        (OSError(MARKER), Failed("OSError", "the worker could not accept the message (OSError)")),
        (Undecodable("the body is not JSON"), Refused("the body is not JSON", "Undecodable")),
    ],
    ids=repr,
)
def test_anything_else_is_one_failed_attempt_but_for_what_the_decoder_refuses(
    exc: Exception, happened: Happened
) -> None:
    assert untaken(exc) == happened


def test_what_can_never_be_taken_is_refused_with_the_reason_that_is_given() -> None:
    assert untaken(InvalidTaskError(MARKER), "no") == Refused("no", "InvalidTaskError")


def test_a_fault_that_is_told_apart_on_purpose_is_not_looked_for() -> None:
    # `raise … from None` says that the one before has nothing to do with it.
    def raise_it() -> None:
        try:
            raise MemoryError
        except MemoryError:
            raise KeyError(MARKER) from None

    assert isinstance(untaken(caught(raise_it)), Failed)


def test_exceptions_that_lead_to_each_other_have_an_end() -> None:
    one, other = KeyError(), ValueError()
    one.__context__, other.__context__ = other, one
    assert untaken(one) == Failed("KeyError", "the worker could not accept the message (KeyError)")


class Untellable(RuntimeError):
    """Cannot even be shown."""

    def __str__(self) -> str:
        raise ValueError


#: All that Python has by itself, but for groups, which are made of others.
CLASSES = [
    cls
    for cls in vars(builtins).values()
    if isinstance(cls, type)
    and issubclass(cls, BaseException)
    and not issubclass(cls, BaseExceptionGroup)
]


@settings(derandomize=True, database=None)
@given(st.sampled_from([*CLASSES, Untellable]), st.integers(-1, 200) | st.none(), st.booleans())
def test_there_is_an_answer_for_every_exception(
    cls: type[BaseException], number: int | None, has_text: bool
) -> None:
    exc = cls.__new__(cls)
    exc.args = (number, MARKER) if has_text else ()
    happened = untaken(exc)
    assert isinstance(happened, NotTaken | Failed | Refused)
    assert happened == untaken(exc)
