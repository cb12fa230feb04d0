"""Ctrl+C and SIGTERM that wait until a call, and what belongs to it, is done."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sqs_broker.tools.commands.output import say


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside the block the first of the two signals is only noted, and `is_interrupted()` tells;
    the second raises KeyboardInterrupt.

        with deferred() as is_interrupted:
            while not is_interrupted():
                ...
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        say("Stopping after this call; once more stops at once.")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
