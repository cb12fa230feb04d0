"""Space for the frames of deep calls."""

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


_here = threading.local()


def with_space(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `function(*args, **kwargs)`, called with 128 KiB for the frames below it. A call
    within another one has the space of that one.

    CPython keeps frames in chunks of 16 KiB (3.11 to 3.13, `Python/pystate.c`, `push_chunk`). A
    loop whose calls cross the end of a chunk gets memory from the system for each call, and
    returns it: up to 100 us for each message. Where a chunk ends depends on the depth of the
    caller.
    """
    if getattr(_here, "has_space", False):
        return function(*args, **kwargs)
    _here.has_space = True
    try:
        return _spaced(function, *args, **kwargs)
    finally:
        _here.has_space = False


def _spaced(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return function(*args, **kwargs)


# A frame that does not fit into the present chunk gets a new one: 16 KiB, doubled until it has
# space for this frame and 8,000 bytes more. So this frame's chunk has 256 KiB. The frame's own
# part of it, 123 KiB, is never touched.
_spaced.__code__ = _spaced.__code__.replace(co_stacksize=15_800)
