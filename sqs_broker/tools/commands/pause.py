"""`sqs pause` and `sqs resume`: no worker receives from a paused queue."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from sqs_broker.options import Options
from sqs_broker.rules.pause import LONGEST_REASON, Pause
from sqs_broker.tools.broker import options_of
from sqs_broker.tools.commands.durations import Duration
from sqs_broker.tools.commands.output import print_note, printable
from sqs_broker.tools.control_store import control_store
from sqs_broker.tools.identity import who
from sqs_broker.tools.mappings import mappings_of, switch_mappings

#: Within so many seconds a worker that runs obeys.
OBEYED = 10


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
    _check(options, queue)
    now = datetime.now(UTC)
    until = None if lasts is None else now + lasts
    begun = Pause(queue, _reason(reason), who(options), now, until)
    with control_store(options) as store:
        from sqs_broker.control.audit import Audit  # These need pymongo.
        from sqs_broker.control.pauses import Pauses

        found = mappings_of(options, queue)
        # Noted before they are disabled, so that `resume` knows them whatever happens.
        Pauses(store).begin(replace(begun, mappings=found.enabled))
        click.echo(printable(f"{queue} is paused: {begun.text}"))
        print_note(f"Workers stop receiving within {OBEYED} s.")
        if found.fault is not None:
            print_note(found.fault)
        for line in switch_mappings(options, queue, found.enabled, enabled=False):
            print_note(line)
        Audit(store).note("pause", begun.by, queue=queue, reason=begun.reason, until=until)


@click.command("resume", epilog="Example: celery -A app sqs resume registrations")
@queue_of
@click.option("--reason", default="", help="Why, in one line, for the audit.")
@click.pass_context
def resume(ctx: click.Context, /, queue: str, reason: str) -> None:
    """End the pause of a queue. Workers receive from it again within ten seconds."""
    options = options_of(ctx.obj.app)
    _check(options, queue)
    with control_store(options) as store:
        from sqs_broker.control.audit import Audit  # These need pymongo.
        from sqs_broker.control.pauses import Pauses

        pauses = Pauses(store)
        if (pause := pauses.of(queue)) is None:
            click.echo(f"{queue} was not paused")
            return
        # Before the pause ends, so that this can be run again.
        for line in switch_mappings(options, queue, pause.mappings, enabled=True):
            print_note(line)
        pauses.end(queue)
        click.echo(f"{queue} is resumed")
        Audit(store).note("resume", who(options), queue=queue, reason=_reason(reason))


def _check(options: Options, queue: str) -> None:
    if queue not in options.queues:
        known = ", ".join(sorted(options.queues))
        raise click.BadParameter(f"no queue {queue!r} is configured; the queues are: {known}")


def _reason(text: str) -> str:
    return " ".join(text.split())[:LONGEST_REASON]
