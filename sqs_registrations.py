"""Where `celery` finds `celery -A app sqs …`: the entry point of the group `celery.commands`.

Celery loads it for every project in the environment, before it knows which one is meant (celery 5.7
bin/celery.py). An import of `app` here would put ours in the place of another project's package of
that name, so it waits until a command of the group is asked for.
"""

import click


class Commands(click.Group):
    """The commands of `app.commands`, imported when the first of them is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return _loaded().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them by its name."""
        return _loaded().get_command(ctx, cmd_name)


def _loaded() -> click.Group:
    try:
        from app.commands import sqs as commands
    except ImportError:
        # The project's own `app` came first.
        raise click.ClickException(
            "`sqs` is for an app on the SQS broker of sqs-registrations; this project is not on it."
        ) from None
    return commands


sqs = Commands("sqs", help="Look after the SQS queues and their dead letters.")
