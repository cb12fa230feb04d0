"""The output of commands: data on stdout, as a table or as JSON lines; notes on stderr."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

#: Shown for a value that is not known.
NOTHING = "-"


def print_note(text: str) -> None:
    """Print a line for people, on stderr."""
    click.echo(printable(text), err=True)


def print_json(data: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Print one JSON object on stdout; without `indent`, on one line."""
    click.echo(printable(json.dumps(data, ensure_ascii=False, indent=indent, default=str)))


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their heads, on stdout. Columns of numbers are aligned to the right."""
    shown = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *shown, strict=True)]
    is_number = [
        all(isinstance(value, int | None) for value in column) for column in zip(*rows, strict=True)
    ] or [False] * len(head)
    for line in [list(head), *shown]:
        cells = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, is_number, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """The text with control characters escaped, because a terminal would execute those of a
    message. They are escaped as in JSON, so that JSON stays valid."""
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text
    )


def _cell(value: object) -> str:
    return NOTHING if value is None else printable(str(value).replace("\n", " "))
