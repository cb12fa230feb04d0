"""The pace and the progress of a command that works on many messages."""

import math
import sys
import time
from collections.abc import Callable
from time import monotonic
from typing import Any

import click

#: Seconds between two looks whether the command was interrupted.
LOOK = 0.2

#: Seconds between two updates of the progress.
UPDATE = 0.5


class Rate(click.FloatRange):
    """A number of messages a second."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        rate = super().convert(value, param, ctx)
        if not math.isfinite(rate):
            self.fail("must be a finite number", param, ctx)
        return rate


class Pace:
    """Waits so that no more than `rate` messages a second are worked on; None: as many as can be.

    On a terminal, stderr shows how many are done.
    """

    def __init__(
        self,
        rate: float | None,
        total: int,
        is_interrupted: Callable[[], bool],
        clock: Callable[[], float] = monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._total = total
        self._is_interrupted = is_interrupted
        self._clock = clock
        self._sleep = sleep
        self._began_at: float | None = None
        self._shown_at = clock()
        self._is_shown = False
        self._worked = 0
        self.done = 0

    @property
    def seconds_per_message(self) -> float:
        """The least seconds that each message takes."""
        return 0.0 if self._rate is None else 1 / self._rate

    def wait(self, count: int) -> bool:
        """Wait until the next `count` messages may be worked on. False if there was an
        interruption."""
        if self._rate is None:
            return True
        if self._began_at is None:
            self._began_at = self._clock()
        due_at = self._began_at + self._worked / self._rate
        while (left := due_at - self._clock()) > 0:
            if self._is_interrupted():
                return False
            self._sleep(min(left, LOOK))
        self._worked += count
        return True

    def count(self, number: int) -> None:
        """Count messages that are done."""
        self.done += number
        if sys.stderr.isatty() and self._clock() - self._shown_at >= UPDATE:
            self._shown_at, self._is_shown = self._clock(), True
            # Dead letters that arrive meanwhile count too.
            about = max(self.done, self._total)
            click.echo(f"\r{self.done} of about {about}", nl=False, err=True)

    def end(self) -> None:
        """Leave the line of the progress."""
        if self._is_shown:
            click.echo(err=True)
