"""`sqs dlq redrive`: dead letters go back to their queue."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import click

from sqs_broker.tools.commands.desk import Box, Desk, Filter, filters
from sqs_broker.tools.commands.interruption import deferred
from sqs_broker.tools.commands.output import NOTHING, print_json, printable, say
from sqs_broker.tools.letters import Look
from sqs_broker.tools.redrive import Became, Redrive, Redriven

#: Why a letter stays whose queue nothing names.
WHICH_QUEUE = "several queues share these dead letters: name its own with --queue"

#: What leaves nothing to be done.
GONE = frozenset({Became.REDRIVEN, Became.DROPPED})


@click.command("redrive", epilog="Example: celery -A app sqs dlq redrive --task registerUser")
@filters
@click.option("--limit", type=click.IntRange(1), help="Redrive so many at the most.")
@click.option("--dry-run", is_flag=True, help="Say what would be redriven, and change nothing.")
@click.option("--keep-twins", is_flag=True, help="Redrive each letter of one message, not one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a letter and line.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    limit: int | None,
    dry_run: bool,
    keep_twins: bool,
    yes: bool,
    as_json: bool,
    **which: Any,
) -> None:
    """Send dead letters back to their queue, as they were, and delete them here.

    Each is sent before it is deleted. Its body, attributes and id are the original ones; SQS counts
    its deliveries anew. Of twins, which are letters of one message with one body, the first is
    redriven and the others are deleted. Letters that arrive after the start are left alone.

    Exit status 1 where a letter could not be redriven, or the command was interrupted.
    """
    desk, filter_ = Desk(ctx.obj.app), Filter(**which)
    boxes = desk.boxes(filter_.queue)
    if not (dry_run or yes):
        _confirm(boxes, filter_, limit)
    counted: Counter[Became] = Counter()
    with deferred() as is_interrupted:
        for box in boxes:
            left = None if limit is None else limit - counted.total()
            if left == 0:
                break
            run = Redrive(desk.driver, desk.options, box.url, keep_twins, dry_run)
            with desk.looking(box, is_interrupted) as look:
                for result in _redriven(run, look, box, filter_, left):
                    counted[result.became] += 1
                    _show_result(result, as_json, dry_run)
    _sum_up(counted, dry_run)
    ctx.exit(0 if set(counted) <= GONE and not is_interrupted() else 1)


def _confirm(boxes: Sequence[Box], filter_: Filter, limit: int | None) -> None:
    about = sum(box.counts.visible for box in boxes)
    most = "" if limit is None else f" up to {limit} of"
    which = ", those that match" if filter_.is_narrow else ""
    click.confirm(f"Redrive{most} about {about} dead letters{which}?", err=True, abort=True)


def _redriven(
    run: Redrive, look: Look, box: Box, filter_: Filter, most: int | None
) -> Iterator[Redriven]:
    """What becomes of each letter that is meant; ends early where SQS takes none of a batch."""
    for letters in look.batches():
        meant = [letter for letter in letters if filter_.lets(letter)]
        # What came since the start may be what was just redriven, and has failed again.
        old = [letter for letter in meant if letter.delivery.enqueued_at < box.counts.at]
        if len(old) < len(meant):
            say(f"{len(meant) - len(old)} arrived since the start and are left alone.")
        meant = [x if x.queue else replace(x, queue=filter_.queue) for x in old][:most]
        yield from (Redriven(x, Became.NOT_SENT, WHICH_QUEUE) for x in meant if x.queue is None)
        results = run([letter for letter in meant if letter.queue is not None])
        if not run.is_dry:
            look.deleted(r.letter for r in results if r.became in GONE)
        yield from results
        if most is not None:
            most -= len(meant)
        if most == 0 or (results and all(r.became == Became.NOT_SENT for r in results)):
            return


def _show_result(result: Redriven, as_json: bool, dry_run: bool) -> None:
    letter, became = result.letter, str(result.became)
    became = f"would be {became}" if dry_run else became
    if as_json:
        facts = {"id": letter.id, "task": letter.task, "queue": letter.queue, "became": became}
        print_json(facts | {"why": result.why, "sqs_message_id": letter.delivery.message_id})
    else:
        why = f"  ({result.why})" if result.why else ""
        click.echo(printable(f"{became}  {letter.id}  {letter.task or NOTHING}{why}"))


def _sum_up(counted: Counter[Became], dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    said = ", ".join(f"{number} {would}{became}" for became, number in counted.items())
    say(f"{said or 'There was nothing to redrive'}.")
