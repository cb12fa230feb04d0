"""Space for the frames of deep calls."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def with_space(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `function(*args, **kwargs)`, called with 128 KiB for the frames below it.

    CPython keeps frames in chunks of 16 KiB (3.11 to 3.13, `Python/pystate.c`, `push_chunk`). A
    loop whose calls cross the end of a chunk gets memory from the system for each call, and
    returns it: up to 100 us for each message. Where a chunk ends depends on the depth of the
    caller.
    """
    return function(*args, **kwargs)


# A frame that does not fit into the present chunk gets a new one: 16 KiB, doubled until it has
# space for this frame and 8,000 bytes more. So this frame's chunk has 256 KiB. The frame's own
# part of it, 123 KiB, is never touched.
with_space.__code__ = with_space.__code__.replace(co_stacksize=15_800)
