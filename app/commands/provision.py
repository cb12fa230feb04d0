"""`sqs provision`: creates the queues and the indexes where there is no CloudFormation."""

import click

from app.errors import SettingsError
from app.settings import get_settings
from app.startup import prepare_database
from sqs_broker.tools.broker import driver_of, options_of
from sqs_broker.tools.commands.output import print_note, printable
from sqs_broker.tools.provision import Provided, Result, provide


@click.command("provision", epilog="Example: celery -A app sqs provision")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Create the queues and the indexes in MongoDB.

    Queues that exist get the attributes that the settings need; other attributes and all messages
    stay. A queue that belongs to a stack of CloudFormation is not changed: its differences are
    shown, to be made in the stack. The command can be repeated.

    Exits with status 1 if a queue of a stack differs, or if not everything could be done.
    """
    try:
        settings = get_settings().require_worker()
    except SettingsError as exc:
        raise click.ClickException(str(exc)) from exc
    options = options_of(ctx.obj.app)
    differing = 0
    for provided in provide(driver_of(options), options):
        differing += provided.result is Result.DIFFERS
        _show(provided)
    try:
        prepare_database(settings)
    except SettingsError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo("MongoDB: the indexes are there")
    if differing:
        print_note("Change what differs in the stack, and deploy it.")
    ctx.exit(1 if differing else 0)


def _show(provided: Provided) -> None:
    owner = f" (stack {provided.stack})" if provided.stack else ""
    click.echo(printable(f"{provided.url}: {provided.result}{owner}"))
    for difference in provided.differences:
        click.echo(printable(f"  {difference}"))
