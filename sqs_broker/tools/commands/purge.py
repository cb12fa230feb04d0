"""`sqs dlq purge`: deletes dead letters that it has listed."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import click

from sqs_broker.limits import BATCH
from sqs_broker.machine.spool import Spool
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.commands.dead_letter_queues import (
    DeadLetterQueue,
    DeadLetterQueues,
    Filter,
    filters,
    matching,
)
from sqs_broker.tools.commands.interruption import deferred
from sqs_broker.tools.commands.output import NOTHING, print_json, print_note, printable
from sqs_broker.tools.dead_letters import DeadLetterMessage, Reader
from sqs_broker.tools.ledger import Ledger, ledger_of
from sqs_broker.tools.redrive import DELETE_TRIES

#: Seconds for which the listed messages stay hidden while a person decides.
TIME_TO_DECIDE = 300


@click.command("purge", epilog="Example: celery -A app sqs dlq purge --id 7f0c --id 7f10")
@filters
@click.option("--dry-run", is_flag=True, help="List what would be deleted, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--unrecorded", is_flag=True, help="Work without the control database.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and message.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    dry_run: bool,
    yes: bool,
    unrecorded: bool,
    as_json: bool,
    **criteria: Any,
) -> None:
    """Delete dead letters for ever.

    The command lists those that match, asks, and deletes exactly those that it has listed. What
    arrives later stays. Export them first: `dlq export` with the same filters. The control database
    keeps who deleted which ids.

    Exits with status 1 if a message could not be deleted, or if the command was interrupted.
    """
    queues, filter_ = DeadLetterQueues(ctx.obj.app), Filter(**criteria)
    deleted, failed = 0, 0
    with deferred() as is_interrupted, ledger_of(queues.options, is_recorded=not unrecorded) as to:
        for queue in queues.select(filter_.queue):
            reading = queues.reading(queue, is_interrupted, more_time=TIME_TO_DECIDE)
            with closing(Spool()) as listed, reading as reader:
                for message in _listed(reader, queue, filter_):
                    listed.add([(message.delivery.message_id, _row_of(message))])
                    _show(message, as_json)
                if is_interrupted() or not len(listed):
                    continue
                if dry_run:
                    print_note(f"{len(listed)} would be deleted.")
                    continue
                if not yes:
                    click.confirm(f"Delete {len(listed)} dead letters?", err=True, abort=True)
                if reader.seconds_left() <= 0:
                    raise click.ClickException("That took too long. Nothing was deleted.")
                for rows in listed.packs(BATCH):
                    if is_interrupted():
                        break
                    errors = _delete(Queue(queue.url, queues.driver), reader, to, rows)
                    failed += errors
                    deleted += len(rows) - errors
    print_note(f"{deleted} deleted{f', {failed} not deleted' if failed else ''}.")
    ctx.exit(1 if failed or is_interrupted() else 0)


def _listed(reader: Reader, queue: DeadLetterQueue, filter_: Filter) -> Iterator[DeadLetterMessage]:
    for message in matching(reader, filter_):
        # As a redrive: what arrived since the start was not meant.
        if message.delivery.enqueued_at < queue.counts.at:
            yield message


def _delete(
    queue: Queue, reader: Reader, ledger: Ledger, rows: Sequence[tuple[str | bytes, str]]
) -> int:
    """Delete up to ten messages. Returns how many were not deleted."""
    ids = [row.partition(" ")[2] for _, row in rows]
    ledger.note("purge", ids)
    handles = [row.partition(" ")[0] for _, row in rows]
    errors = queue.delete(handles, DELETE_TRIES)
    reader.forget(str(key) for (key, _), error in zip(rows, errors, strict=True) if error is None)
    return sum(error is not None for error in errors)


def _row_of(message: DeadLetterMessage) -> str:
    # A receipt handle has no space.
    return f"{message.delivery.receipt_handle} {message.id}"


def _show(message: DeadLetterMessage, as_json: bool) -> None:
    if as_json:
        facts = {"id": message.id, "task": message.task, "queue": message.queue}
        print_json(facts | {"sqs_message_id": message.delivery.message_id})
    else:
        why = f"{message.error}: {message.reason}" if message.error else message.reason
        click.echo(printable(f"{message.id}  {message.task or NOTHING}  {why}"))
