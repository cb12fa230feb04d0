"""`sqs health`: whether the worker of this machine does its work."""

from pathlib import Path

import click

from sqs_broker.tools.commands.broker import options_of
from sqs_broker.tools.commands.output import printable
from sqs_broker.worker.health import read


@click.command("health", epilog="Example: celery -A app sqs health")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Say in one line whether the worker of this machine does its work.

    It reads WORKER_HEALTH_FILE, which that worker keeps writing, and asks neither SQS nor MongoDB:
    a worker that waits for them is healthy, and says so.

    Exit status 1 where it is not healthy, or where there is none.
    """
    path = options_of(ctx.obj.app).health_file
    if path is None:
        raise click.ClickException("WORKER_HEALTH_FILE is not set. Set it for the worker and here.")
    report = read(Path(path))
    click.echo(printable(f"{'healthy' if report.healthy else 'not healthy'}: {report.text}"))
    ctx.exit(0 if report.healthy else 1)
