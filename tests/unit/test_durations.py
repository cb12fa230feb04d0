"""Lengths of time on the command line and in Flower."""

from datetime import UTC, datetime, timedelta

import click
import pytest

from sqs_broker.tools.commands.durations import LONGEST, Duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1_800), ("2h", 7_200), ("7d", 604_800)]
)
def test_a_number_and_a_unit_are_a_length_of_time(text: str, seconds: int) -> None:
    assert Duration().convert(text, None, None) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "0s", "30", "m", "-5m", "1.5h", "soon", " 1m", "٣m"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="must be a number and s, m, h or d"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize("text", ["36501d", "3650000d", "9999999d", "9999999h"])
def test_a_length_that_leads_beyond_every_date_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="at most 36500d"):
        Duration().convert(text, None, None)
    assert (datetime.now(UTC) + LONGEST).year < 9999
