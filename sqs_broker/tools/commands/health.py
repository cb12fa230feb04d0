"""`sqs health`: whether the worker on this machine is healthy."""

import click

from sqs_broker.machine.health_file import read
from sqs_broker.tools.broker import options_of
from sqs_broker.tools.commands.output import printable


@click.command("health", epilog="Example: celery -A app sqs health")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show in one line whether the worker on this machine is healthy.

    Reads the file that the worker keeps writing, and calls neither SQS nor a database. A worker
    that waits for them is healthy, and the line says so.

    Exits with status 1 if the worker is not healthy, or does not run. A check that runs often
    should call `sqs-health` instead, which does not start Celery.
    """
    path = options_of(ctx.obj.app).health_file
    if path is None:
        raise click.ClickException(
            "The option health_file is not set. Set it for the worker and for this command."
        )
    report = read(path)
    click.echo(printable(f"{'healthy' if report.healthy else 'not healthy'}: {report.text}"))
    ctx.exit(0 if report.healthy else 1)
