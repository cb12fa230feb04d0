"""`sqs dlq redrive`: sends dead letters back to their queue."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import click

from sqs_broker.tools.commands.dead_letter_queues import (
    DeadLetterQueue,
    DeadLetterQueues,
    Filter,
    filters,
    matching,
)
from sqs_broker.tools.commands.edit import redrive_edited
from sqs_broker.tools.commands.interruption import deferred
from sqs_broker.tools.commands.output import NOTHING, print_json, print_note, printable
from sqs_broker.tools.commands.pace import Pace, Rate
from sqs_broker.tools.dead_letters import Reader
from sqs_broker.tools.ledger import ledger_of
from sqs_broker.tools.redrive import HELD, MOST_REDRIVES, Redrive, Redriven, Result

#: Why a message without a known queue is not sent.
WHICH_QUEUE = "several queues share this dead-letter queue: name the right one with --queue"

#: The results after which a message is not in the dead-letter queue any more.
GONE = frozenset({Result.REDRIVEN, Result.DROPPED})


@click.command("redrive", epilog="Example: celery -A app sqs dlq redrive --task registerUser")
@filters
@click.option("--limit", type=click.IntRange(1), help="Redrive at most this many messages.")
@click.option("--rate", type=Rate(), help="Most messages a second.")
@click.option(
    "--max-redrives",
    type=click.IntRange(1),
    default=MOST_REDRIVES,
    show_default=True,
    help="Leave messages that were redriven so often before.",
)
@click.option("--unrecorded", is_flag=True, help="Work without the control database.")
@click.option("--dry-run", is_flag=True, help="Show what would be redriven, and change nothing.")
@click.option("--keep-duplicates", is_flag=True, help="Redrive duplicates too.")
@click.option("--keep-twins", "keep_duplicates", is_flag=True, hidden=True)
@click.option("--edit", is_flag=True, help="Change the body of one message in an editor first.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and message.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    limit: int | None,
    rate: float | None,
    max_redrives: int,
    unrecorded: bool,
    dry_run: bool,
    keep_duplicates: bool,
    edit: bool,
    yes: bool,
    as_json: bool,
    **criteria: Any,
) -> None:
    """Send dead letters back to their queue, unchanged, and delete them from the dead-letter queue.

    Each message is sent before it is deleted. It has its original body, attributes and id. SQS
    counts its deliveries from one again. Duplicates have the same id and the same body: the first
    is redriven, the others are deleted. A message that arrives after the start stays.

    The control database counts the redrives of each message and keeps who made them. If it does not
    answer, nothing is sent, unless `--unrecorded` is given.

    `--edit` opens the body of the one message that `--id` names in $VISUAL or $EDITOR, checks the
    new body as a worker would, writes the original to a file, and sends the message.

    Exits with status 1 if a message could not be redriven, or if the command was interrupted.
    """
    queues, filter_ = DeadLetterQueues(ctx.obj.app), Filter(**criteria)
    if edit and (dry_run or not filter_.ids):
        raise click.UsageError("--edit needs --id, and cannot be used with --dry-run.")
    selected = queues.select(filter_.queue)
    counted: Counter[tuple[Result, str | None]] = Counter()
    with deferred() as is_interrupted, ledger_of(queues.options, is_recorded=not unrecorded) as to:
        if edit:
            one = redrive_edited(
                ctx.obj.app, queues, filter_, to, max_redrives, is_interrupted, yes
            )
            _show(one, as_json, dry_run=False)
            ctx.exit(0 if one.result in GONE else 1)
        if not (dry_run or yes or _is_confirmed(queues, selected, filter_, limit, is_interrupted)):
            print_note("There was nothing to redrive.")
            ctx.exit(1 if is_interrupted() else 0)
        total = sum(queue.counts.visible for queue in selected)
        pace = Pace(rate, total, is_interrupted)
        for queue in selected:
            left = None if limit is None else limit - counted.total()
            if left == 0:
                break
            each = pace.seconds_per_message
            reading = queues.reading(queue, is_interrupted, per_message=each, more_time=HELD)
            with (
                reading as reader,
                closing(
                    Redrive(
                        queues.driver,
                        queues.options,
                        queue.url,
                        reader.seconds_left,
                        keep_duplicates,
                        dry_run,
                        to,
                        max_redrives,
                    )
                ) as run,
            ):
                for redriven in _redriven(run, reader, queue, filter_, left, pace):
                    counted[redriven.result, redriven.why] += 1
                    _show(redriven, as_json, dry_run)
        pace.end()
    _sum_up(counted, dry_run)
    is_done = {result for result, _ in counted} <= GONE
    ctx.exit(0 if is_done and not is_interrupted() else 1)


def _is_confirmed(
    queues: DeadLetterQueues,
    selected: Sequence[DeadLetterQueue],
    filter_: Filter,
    limit: int | None,
    is_interrupted: Callable[[], bool],
) -> bool:
    """Ask. False if no dead letter matches. Raises click.Abort if the answer is no."""
    about, which = sum(queue.counts.visible for queue in selected), "about {} dead letters"
    if filter_.is_narrow or filter_.queue is not None:
        # SQS cannot count those that match, so they are read, and made visible again.
        matched = 0
        for queue in selected:
            with queues.reading(queue, is_interrupted) as reader:
                matched += sum(1 for _ in matching(reader, filter_))
        if not matched or is_interrupted():
            return False
        about, which = matched, f"{{}} of about {about} dead letters"
    if not about:
        return False
    most = "" if limit is None or limit >= about else f"up to {limit} of "
    click.confirm(f"Redrive {most}{which.format(about)}?", err=True, abort=True)
    return True


def _redriven(
    run: Redrive,
    reader: Reader,
    queue: DeadLetterQueue,
    filter_: Filter,
    limit: int | None,
    pace: Pace,
) -> Iterator[Redriven]:
    """The result of each selected message. Ends early if SQS accepts no message of a batch."""
    for messages in reader.batches():
        selected = [message for message in messages if filter_.matches(message)]
        # A message that arrived since the start may be one that was redriven and failed again.
        old = [message for message in selected if message.delivery.enqueued_at < queue.counts.at]
        if len(old) < len(selected):
            print_note(f"{len(selected) - len(old)} arrived since the start: not redriven.")
        selected = [x if x.queue else replace(x, queue=filter_.queue) for x in old][:limit]
        yield from (Redriven(x, Result.NOT_SENT, WHICH_QUEUE) for x in selected if x.queue is None)
        known = [message for message in selected if message.queue is not None]
        if not (run.is_dry or pace.wait(len(known))):
            return
        results = run(known)
        pace.count(len(messages))
        if not run.is_dry:
            gone = (each.message for each in results if each.result in GONE)
            reader.forget(message.delivery.message_id for message in gone)
        yield from results
        if limit is not None:
            limit -= len(selected)
        if limit == 0 or (known and run.is_refused):
            return


def _show(redriven: Redriven, as_json: bool, dry_run: bool) -> None:
    message, became = redriven.message, str(redriven.result)
    became = f"would be {became}" if dry_run else became
    if as_json:
        facts = {"id": message.id, "task": message.task, "queue": message.queue, "became": became}
        print_json(facts | {"why": redriven.why, "sqs_message_id": message.delivery.message_id})
    else:
        why = f"  ({redriven.why})" if redriven.why else ""
        click.echo(printable(f"{became}  {message.id}  {message.task or NOTHING}{why}"))


def _sum_up(counted: Counter[tuple[Result, str | None]], dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    results = ", ".join(
        f"{number} {would}{result}{f' ({why})' if why else ''}"
        for (result, why), number in counted.items()
    )
    print_note(f"{results or 'There was nothing to redrive'}.")
