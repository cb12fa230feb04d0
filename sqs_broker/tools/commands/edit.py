"""`sqs dlq redrive --edit`: sends one dead letter back with a body that a person has changed."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click

from sqs_broker.tools.commands.dead_letter_queues import (
    DeadLetterQueue,
    DeadLetterQueues,
    Filter,
    matching,
)
from sqs_broker.tools.commands.output import print_note
from sqs_broker.tools.dead_letters import DeadLetterMessage, Reader
from sqs_broker.tools.edit import EditError, edited, kept
from sqs_broker.tools.ledger import Ledger
from sqs_broker.tools.redrive import HELD, Redrive, Redriven, Result

#: Seconds for which the message stays hidden while a person edits it.
TIME_TO_EDIT = 3_600


def redrive_edited(
    celery_app: Any,
    queues: DeadLetterQueues,
    filter_: Filter,
    ledger: Ledger,
    max_redrives: int,
    is_interrupted: Callable[[], bool],
    yes: bool,
) -> Redriven:
    """Edit and redrive the one message that the filter selects.

    Raises ClickException if there is none or more than one, and if the new body cannot be sent.
    """
    for queue in queues.select(filter_.queue):
        with queues.reading(queue, is_interrupted, more_time=TIME_TO_EDIT) as reader:
            found = list(islice(matching(reader, filter_), 2))
            if not found:
                continue
            if len(found) > 1:
                raise click.ClickException(
                    "Several dead letters match. Name one by SQS's MessageId (`dlq list --json`)."
                )
            message = replace(found[0], queue=found[0].queue or filter_.queue)
            run = Redrive(
                queues.driver,
                queues.options,
                queue.url,
                reader.seconds_left,
                ledger=ledger,
                most_redrives=max_redrives,
            )
            with closing(run):
                return _redriven(celery_app, queues, queue, run, reader, message, yes)
    raise click.ClickException("No dead letter matches.")


def _redriven(
    celery_app: Any,
    queues: DeadLetterQueues,
    queue: DeadLetterQueue,
    run: Redrive,
    reader: Reader,
    message: DeadLetterMessage,
    yes: bool,
) -> Redriven:
    if message.queue is None:
        raise click.ClickException("Its queue is not known: name it with --queue.")
    celery_app.loader.import_default_modules()
    try:
        new = edited(message, _edit, queues.options, celery_app.tasks)
    except EditError as exc:
        raise click.ClickException(str(exc)) from exc
    print_note(f"Changed: {', '.join(new.changed)}")
    if not yes:
        click.confirm("Send it?", err=True, abort=True)
    if reader.seconds_left() < HELD:
        raise click.ClickException("That took too long. Nothing was sent.")
    path = _kept(message, queue.url)
    print_note(f"The original is in {path}. Delete the file when it is not needed any more.")
    run.ledger.note("edit", [message.id], changed=list(new.changed))
    (result,) = run([new.message])
    if result.result is Result.REDRIVEN:
        reader.forget([message.delivery.message_id])
    return result


def _kept(message: DeadLetterMessage, url: str) -> Path:
    try:
        return kept(message, url, Path())
    except EditError as exc:
        raise click.ClickException(str(exc)) from exc


def _edit(path: Path) -> None:
    click.edit(filename=str(path))
