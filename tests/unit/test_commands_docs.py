"""docs/commands.md and the commands' own help name what there is."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from app.celery import app
from sqs_broker.tools.commands import sqs

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    ctx = click.Context(group, obj=SimpleNamespace(app=app))
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands(sqs))
LEAVES = {path: command for path, command in ALL.items() if not isinstance(command, click.Group)}


def test_every_option_that_the_page_names_is_there() -> None:
    options = {name for command in ALL.values() for p in command.params for name in p.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= options | {"--help"}


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_the_page_names_every_command(path: tuple[str, ...]) -> None:
    assert " ".join(path) in PAGE


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_help_ends_with_an_example_of_the_command(path: tuple[str, ...]) -> None:
    obj = SimpleNamespace(app=app)
    ran = CliRunner().invoke(sqs, [*path, "--help"], obj=obj).stdout
    assert f"Example: celery -A app sqs {' '.join(path)}" in " ".join(ran.split())
