"""Waits for a condition, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

#: Seconds between two checks of the condition.
INTERVAL = 0.02

Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value], timeout: float, what: str) -> Value:
    """Return the first true value of the condition.

    Raises TimeoutError, with `what` in its text, if there is none within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(INTERVAL)
    return value
