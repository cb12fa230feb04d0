"""`celery -A app sqs …`: what an operator does with the queues.

Data goes to stdout, everything else to stderr. Exit status 0: done; 1: a fault, or not all of it
was done; 2: the command line is not understood.

Celery loads this module in every project of the environment, before it knows which one is meant
(celery 5.7 bin/celery.py). So each command is imported when it is asked for.
"""

from typing import Any

import click
from click.utils import make_str

#: The commands that every project has.
OURS = (
    "sqs_broker.tools.commands.queues:command",
    "sqs_broker.tools.commands.dlq:command",
    "sqs_broker.tools.commands.health:command",
)


class Commands(click.Group):
    """Our commands, and those that the project gave to `install`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in alphabetical order."""
        return sorted(self._commands(ctx))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them by its name."""
        return self._commands(ctx).get(make_str(cmd_name))

    def _commands(self, ctx: click.Context) -> dict[str, click.Command]:
        from kombu.utils.imports import symbol_by_name

        celery_app: Any = getattr(ctx.obj, "app", None)
        places = [*OURS, *getattr(celery_app, "sqs_commands", ())]
        commands = [symbol_by_name(place) for place in places]
        return {str(command.name): command for command in commands}


sqs = Commands("sqs", help="Look after the SQS queues and their dead letters.")
