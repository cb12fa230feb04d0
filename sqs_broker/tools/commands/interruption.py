"""Delays Ctrl+C and SIGTERM until the current call, and what belongs to it, is complete."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sqs_broker.tools.commands.output import print_note


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside the block, the first signal only makes `is_interrupted()` true. The second one raises
    KeyboardInterrupt.

        with deferred() as is_interrupted:
            while not is_interrupted():
                ...
    """
    is_asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if is_asked:
            raise KeyboardInterrupt
        is_asked = True
        print_note("Stopping after this call. A second signal stops at once.")

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: is_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
