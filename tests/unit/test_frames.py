"""Calls at any depth get their frames without a call to the system."""

import resource
from collections.abc import Callable

import pytest

from sqs_broker.machine.frames import with_space

CALLS = 500
DEPTHS = range(300)


def test_calls_at_any_depth_take_no_new_memory() -> None:
    faults = [_at(depth, lambda: with_space(_page_faults)) for depth in DEPTHS]

    assert max(faults) < CALLS / 10


def test_a_call_within_another_takes_no_new_memory_either() -> None:
    def inner() -> int:
        return _page_faults(lambda: with_space(_leaf, 1, 2, 3))

    faults = with_space(lambda: [_at(depth, inner) for depth in DEPTHS])

    assert max(faults) < CALLS / 10


def test_after_a_failure_the_next_call_has_space_again() -> None:
    with pytest.raises(ZeroDivisionError):
        with_space(divmod, 7, 0)

    faults = [_at(depth, lambda: with_space(_page_faults)) for depth in DEPTHS]

    assert max(faults) < CALLS / 10


def test_without_space_some_depth_takes_new_memory_for_each_call() -> None:
    # If this fails, the interpreter has changed, and `with_space` may not be needed any more.
    assert max(_at(depth, _page_faults) for depth in DEPTHS) >= CALLS


def test_the_result_is_that_of_the_function() -> None:
    assert with_space(divmod, 7, 2) == (3, 1)


def _at(depth: int, work: Callable[[], int]) -> int:
    return _at(depth - 1, work) if depth else work()


def _page_faults(call: Callable[[], object] = lambda: _leaf(1, 2, 3)) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _leaf(a: int, b: int, c: int) -> int:
    return a + b + c
