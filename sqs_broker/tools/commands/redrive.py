"""`sqs dlq redrive`: sends dead letters back to their queue."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from sqs_broker.tools.commands.interruption import deferred
from sqs_broker.tools.commands.output import NOTHING, print_json, print_note, printable
from sqs_broker.tools.dead_letters import Reader
from sqs_broker.tools.redrive import Redrive, Redriven, Result

#: Why a message without a known queue is not sent.
WHICH_QUEUE = "several queues share this dead-letter queue: name the right one with --queue"

#: The results after which a message is not in the dead-letter queue any more.
GONE = frozenset({Result.REDRIVEN, Result.DROPPED})


@click.command("redrive", epilog="Example: celery -A app sqs dlq redrive --task registerUser")
@filters
@click.option("--limit", type=click.IntRange(1), help="Redrive at most this many messages.")
@click.option("--dry-run", is_flag=True, help="Show what would be redriven, and change nothing.")
@click.option("--keep-duplicates", is_flag=True, help="Redrive duplicates too.")
@click.option("--keep-twins", "keep_duplicates", is_flag=True, hidden=True)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and message.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    limit: int | None,
    dry_run: bool,
    keep_duplicates: bool,
    yes: bool,
    as_json: bool,
    **criteria: Any,
) -> None:
    """Send dead letters back to their queue, unchanged, and delete them from the dead-letter queue.

    Each message is sent before it is deleted. It has its original body, attributes and id. SQS
    counts its deliveries from one again. Duplicates have the same id and the same body: the first
    is redriven, the others are deleted. A message that arrives after the start stays.

    Exits with status 1 if a message could not be redriven, or if the command was interrupted.
    """
    queues, filter_ = DeadLetterQueues(ctx.obj.app), Filter(**criteria)
    selected = queues.select(filter_.queue)
    counted: Counter[Result] = Counter()
    with deferred() as is_interrupted:
        if not (dry_run or yes or _is_confirmed(queues, selected, filter_, limit, is_interrupted)):
            print_note("There was nothing to redrive.")
            ctx.exit(1 if is_interrupted() else 0)
        for queue in selected:
            left = None if limit is None else limit - counted.total()
            if left == 0:
                break
            run = Redrive(queues.driver, queues.options, queue.url, keep_duplicates, dry_run)
            with queues.reading(queue, is_interrupted) as reader:
                for redriven in _redriven(run, reader, queue, filter_, left):
                    counted[redriven.result] += 1
                    _show(redriven, as_json, dry_run)
    _sum_up(counted, dry_run)
    ctx.exit(0 if set(counted) <= GONE and not is_interrupted() else 1)


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
    most = "" if limit is None or limit >= about else f"up to {limit} of "
    click.confirm(f"Redrive {most}{which.format(about)}?", err=True, abort=True)
    return True


def _redriven(
    run: Redrive, reader: Reader, queue: DeadLetterQueue, filter_: Filter, limit: int | None
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
        results = run([message for message in selected if message.queue is not None])
        if not run.is_dry:
            reader.forget(each.message for each in results if each.result in GONE)
        yield from results
        if limit is not None:
            limit -= len(selected)
        if limit == 0 or (results and all(each.result == Result.NOT_SENT for each in results)):
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


def _sum_up(counted: Counter[Result], dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    results = ", ".join(f"{number} {would}{result}" for result, number in counted.items())
    print_note(f"{results or 'There was nothing to redrive'}.")
