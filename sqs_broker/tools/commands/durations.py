"""Lengths of time on the command line: `90s`, `30m`, `2h`, `7d`."""

import re
from datetime import timedelta
from typing import Any

import click

#: Seconds of each unit.
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

FORM = re.compile(r"(\d{1,7})([smhd])", re.ASCII)

#: A hundred years. Much later there is no date: the last year is 9999.
LONGEST = timedelta(days=36_500)


class Duration(click.ParamType[timedelta]):
    """A whole number above 0 and a unit, at most a hundred years. Becomes a timedelta."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Read the text. Fails if it is not a length of time."""
        if isinstance(value, timedelta):
            return value
        found = FORM.fullmatch(str(value))
        if found is None or not int(found[1]):
            self.fail("must be a number and s, m, h or d, such as 30m", param, ctx)
        lasts = timedelta(seconds=int(found[1]) * UNITS[found[2]])
        if lasts > LONGEST:
            self.fail(f"must be at most {LONGEST.days}d", param, ctx)
        return lasts
