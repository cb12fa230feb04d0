"""`sqs dlq list|show`: shows dead letters and their reasons."""

import base64
import json
from itertools import islice
from typing import Any

import click

from sqs_broker.rules.dead_letter import restored
from sqs_broker.tools.commands import export, purge, redrive
from sqs_broker.tools.commands.dead_letter_queues import (
    DeadLetterQueues,
    Filter,
    filters,
    matching,
)
from sqs_broker.tools.commands.interruption import deferred
from sqs_broker.tools.commands.output import print_json, print_note, print_table
from sqs_broker.tools.dead_letters import DeadLetterMessage
from sqs_broker.tools.failed_attempts import attempts_of

#: The default of `--limit`.
LISTED = 100

#: Characters of a reason in a table.
REASON_SHOWN = 70

HEAD = ("ID", "TASK", "DELIVERIES", "AT", "REASON")


@click.group("dlq")
def command() -> None:
    """List, show, redrive, delete, export and import dead letters: the messages of dead-letter
    queues.

    A dead letter has its reason with it, unless SQS itself moved it. A command receives the
    messages that it reads: until it ends, other readers do not see them, and the receive count of
    each grows by one.
    """


@command.command("list", epilog="Example: celery -A app sqs dlq list --reason timeout --json")
@filters
@click.option("--limit", type=click.IntRange(1), default=LISTED, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and message.")
@click.pass_context
def list_(ctx: click.Context, /, limit: int, as_json: bool, **criteria: Any) -> None:
    """List dead letters and their reasons, without their bodies."""
    queues, filter_ = DeadLetterQueues(ctx.obj.app), Filter(**criteria)
    rows: list[tuple[object, ...]] = []
    listed = 0
    with deferred() as is_interrupted:
        for queue in queues.select(filter_.queue):
            left = None if filter_.is_narrow else limit - listed
            with queues.reading(queue, is_interrupted, left) as reader:
                for message in islice(matching(reader, filter_), limit - listed):
                    listed += 1
                    if as_json:
                        print_json(summary(message))
                    else:
                        rows.append(_row(message))
    if not as_json:
        print_table(HEAD, rows)
    if listed == limit:
        print_note(f"{limit} are shown and there may be more: see --limit.")
    ctx.exit(1 if is_interrupted() else 0)


@command.command("show", epilog="Example: celery -A app sqs dlq show 7f0c")
@click.argument("id_", metavar="ID")
@click.option("--raw", is_flag=True, help="Show the body as the text that SQS has.")
@click.pass_context
def show(ctx: click.Context, id_: str, raw: bool) -> None:
    """Show one dead letter with its body, as JSON.

    `attempts` has each failed attempt with its time and its class of error: those before the last
    one from the control database, which keeps the latest 20 of each MessageId for 14 days.
    JSON and base64 in the body are shown decoded, unless `--raw` is given. ID is the message id
    that `list` prints, or SQS's MessageId. The body may hold personal data.

    Exits with status 1 if there is no such message.
    """
    queues, found = DeadLetterQueues(ctx.obj.app), 0
    with deferred() as is_interrupted:
        for queue in queues.select(None):
            with queues.reading(queue, is_interrupted) as reader:
                for message in matching(reader, Filter(ids=(id_,))):
                    found += 1
                    attempts = attempts_of(queues.options, message)
                    if attempts.fault is not None:
                        print_note(f"The attempts are not known: {attempts.fault}")
                    facts = summary(message) | {"attempts": attempts.content()}
                    print_json(facts | _contents(message, raw), indent=2)
    if not found:
        raise click.ClickException(f"No dead letter has the id {id_}.")


def summary(message: DeadLetterMessage) -> dict[str, Any]:
    """What is shown of a message without its body."""
    shown = ("id", "task", "queue", "reason", "error", "deliveries", "at")
    facts = {name: getattr(message, name) for name in shown}
    return facts | {"sqs_message_id": message.delivery.message_id}


def _row(message: DeadLetterMessage) -> tuple[object, ...]:
    reason = f"{message.error}: {message.reason}" if message.error else message.reason
    if len(reason) > REASON_SHOWN:
        reason = reason[: REASON_SHOWN - 1] + "…"
    return message.id, message.task, message.deliveries, message.at, reason


def _contents(message: DeadLetterMessage, raw: bool) -> dict[str, Any]:
    attributes = {
        name: {k: _as_text(v) for k, v in value.items()}
        for name, value in restored(message.delivery.attributes).items()
    }
    body = message.delivery.body
    return {"attributes": attributes, "body": body if raw else readable(body)}


def readable(text: str) -> Any:
    """A body with the JSON and the base64 in it decoded: that of kombu, and that of SNS."""
    content = _decoded(text)
    if isinstance(content, dict):
        # kombu's envelope has the arguments here, and an SNS notification the message.
        for name in ("body", "Message"):
            if isinstance(inner := content.get(name), str):
                content[name] = readable(inner)
    return content


def _decoded(text: str) -> Any:
    for decode in (str, _from_base64):
        try:
            content = json.loads(decode(text))
        except (ValueError, RecursionError):
            continue
        # A text or a number is not what base64 was made of.
        return content if isinstance(content, dict | list) else text
    return text


def _from_base64(text: str) -> str:
    return base64.b64decode(text, validate=True).decode()


def _as_text(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


for each in (redrive.command, purge.command, export.export, export.import_):
    command.add_command(each)
