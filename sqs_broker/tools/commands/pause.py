"""`sqs pause` and `sqs resume`: no worker receives from a paused queue."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import click

from sqs_broker.tools.broker import options_of
from sqs_broker.tools.commands.durations import Duration
from sqs_broker.tools.commands.output import print_note, printable
from sqs_broker.tools.identity import who
from sqs_broker.tools.pauses import check_queue, pause_queue, resume_queue


def queue_of(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument QUEUE to a command."""
    return click.argument("queue", metavar="QUEUE")(command)


@click.command(
    "pause",
    epilog="Example: celery -A app sqs pause registrations --for 30m --reason 'index is built'",
)
@queue_of
@click.option("--for", "lasts", type=Duration(), help="How long, such as 30m. Default: no end.")
@click.option("--reason", required=True, help="Why, in one line and without personal data.")
@click.pass_context
def pause(ctx: click.Context, /, queue: str, lasts: timedelta | None, reason: str) -> None:
    """Let no worker receive from a queue, until `resume` or until the time is over.

    Workers obey within ten seconds, also those that start later. Tasks that run end as usual;
    messages that have not started are released. Producers can still send. On AWS, the event source
    mappings of Lambda functions on the queue are disabled; a function obeys only until its mapping
    is enabled, so its pause needs `resume` even if it has an end.
    """
    options = options_of(ctx.obj.app)
    check_queue(options, queue)
    _show(pause_queue(options, queue, reason, who(options), lasts))


@click.command("resume", epilog="Example: celery -A app sqs resume registrations")
@queue_of
@click.option("--reason", default="", help="Why, in one line, for the audit.")
@click.pass_context
def resume(ctx: click.Context, /, queue: str, reason: str) -> None:
    """End the pause of a queue. Workers receive from it again within ten seconds."""
    options = options_of(ctx.obj.app)
    check_queue(options, queue)
    _show(resume_queue(options, queue, reason, who(options)))


def _show(lines: Iterable[str]) -> None:
    for place, line in enumerate(lines):
        if place:
            print_note(line)
        else:
            click.echo(printable(line))
