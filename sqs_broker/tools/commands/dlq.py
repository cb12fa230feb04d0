"""`sqs dlq list|show`: what failed, and why."""

import base64
from itertools import islice
from typing import Any

import click

from sqs_broker.rules.dead_letter import restored
from sqs_broker.tools.commands import redrive
from sqs_broker.tools.commands.desk import Desk, Filter, filters, meant
from sqs_broker.tools.commands.interruption import deferred
from sqs_broker.tools.commands.output import print_json, print_table, say
from sqs_broker.tools.letters import Letter

#: Letters listed where `--limit` does not say.
LISTED = 100

#: Characters of a reason in a table.
REASON_SHOWN = 70

HEAD = ("ID", "TASK", "DELIVERIES", "AT", "REASON")


@click.group("dlq")
def command() -> None:
    """List, show and redrive dead letters.

    A dead letter says why it is one, unless SQS itself moved it. To look hides letters from others
    until the look ends, and adds one to their receive count.
    """


@command.command("list", epilog="Example: celery -A app sqs dlq list --reason timeout --json")
@filters
@click.option("--limit", type=click.IntRange(1), default=LISTED, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a letter and line.")
@click.pass_context
def list_(ctx: click.Context, /, limit: int, as_json: bool, **which: Any) -> None:
    """List dead letters with their reasons, and never their bodies."""
    desk, filter_ = Desk(ctx.obj.app), Filter(**which)
    rows: list[tuple[object, ...]] = []
    with deferred() as is_interrupted:
        for box in desk.boxes(filter_.queue):
            most = None if filter_.is_narrow else limit - len(rows)
            with desk.looking(box, is_interrupted, most) as look:
                for letter in islice(meant(look, filter_), limit - len(rows)):
                    rows.append(_row(letter))
                    if as_json:
                        print_json(told(letter))
    if not as_json:
        print_table(HEAD, rows)
    if len(rows) == limit:
        say(f"{limit} are shown and there may be more: see --limit.")
    ctx.exit(1 if is_interrupted() else 0)


@command.command("show", epilog="Example: celery -A app sqs dlq show 7f0c")
@click.argument("id_", metavar="ID")
@click.pass_context
def show(ctx: click.Context, id_: str) -> None:
    """Show all of a dead letter, its body included, as JSON.

    ID is the message id, as `list` prints it, or SQS's MessageId. Exit status 1 where there is no
    such letter. The body may hold personal data.
    """
    desk, found = Desk(ctx.obj.app), 0
    with deferred() as is_interrupted:
        for box in desk.boxes(None):
            with desk.looking(box, is_interrupted) as look:
                for letter in meant(look, Filter(ids=(id_,))):
                    found += 1
                    print_json(told(letter) | _contents(letter), indent=2)
    if not found:
        raise click.ClickException(f"No dead letter has the id {id_}.")


def told(letter: Letter) -> dict[str, Any]:
    """What is said of a letter where its body is not shown."""
    shown = ("id", "task", "queue", "reason", "error", "deliveries", "at")
    facts = {name: getattr(letter, name) for name in shown}
    return facts | {"sqs_message_id": letter.delivery.message_id}


def _row(letter: Letter) -> tuple[object, ...]:
    reason = f"{letter.error}: {letter.reason}" if letter.error else letter.reason
    if len(reason) > REASON_SHOWN:
        reason = reason[: REASON_SHOWN - 1] + "…"
    return letter.id, letter.task, letter.deliveries, letter.at, reason


def _contents(letter: Letter) -> dict[str, Any]:
    attributes = {
        name: {k: _as_text(v) for k, v in value.items()}
        for name, value in restored(letter.delivery.attributes).items()
    }
    return {"attributes": attributes, "body": letter.delivery.body}


def _as_text(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


command.add_command(redrive.command)
