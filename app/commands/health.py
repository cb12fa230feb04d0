"""`celery -A app sqs health`: the broker's command, which names this application's variable."""

import click

from app.settings import get_settings
from sqs_broker.tools.commands import health


@click.command("health", help=health.command.help, epilog=health.command.epilog)
@click.pass_context
def command(ctx: click.Context) -> None:
    """See the broker's command."""
    if get_settings().worker_health_file is None:
        raise click.ClickException(
            "WORKER_HEALTH_FILE is not set. Set it for the worker and for this command."
        )
    ctx.invoke(health.command)
