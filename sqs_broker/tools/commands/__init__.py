"""`celery -A app sqs …`: the commands of an operator.

Data goes to stdout, everything else to stderr. Exit status 0: done; 1: the command found a fault,
or did not do everything; 2: the command line is invalid.

Celery loads this module in every project of the environment, before it knows the app (celery 5.7
bin/celery.py). So each command is imported only when it is needed.
"""

from typing import Any

import click
from click.utils import make_str

#: The commands that every project has.
BUILT_IN = (
    "sqs_broker.tools.commands.queues:command",
    "sqs_broker.tools.commands.dlq:command",
    "sqs_broker.tools.commands.doctor:command",
    "sqs_broker.tools.commands.health:command",
    "sqs_broker.tools.commands.pause:pause",
    "sqs_broker.tools.commands.pause:resume",
    "sqs_broker.tools.commands.trace:command",
)


class Commands(click.Group):
    """The commands of every project, and those that the project gave to `install`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in alphabetical order."""
        return sorted(self._commands(ctx))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command by its name."""
        return self._commands(ctx).get(make_str(cmd_name))

    def _commands(self, ctx: click.Context) -> dict[str, click.Command]:
        from kombu.utils.imports import symbol_by_name

        celery_app: Any = getattr(ctx.obj, "app", None)
        places = [*BUILT_IN, *getattr(celery_app, "sqs_commands", ())]
        commands = [symbol_by_name(place) for place in places]
        return {str(command.name): command for command in commands}


sqs = Commands("sqs", help="Show, check and pause the SQS queues; list and redrive dead letters.")
