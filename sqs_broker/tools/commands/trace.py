"""`sqs trace`: all that is known of one message."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sqs_broker.options import Options
from sqs_broker.tools.commands.dead_letter_queues import DeadLetterQueues, Filter, matching
from sqs_broker.tools.commands.interruption import deferred
from sqs_broker.tools.commands.output import NOTHING, print_json, print_note, printable
from sqs_broker.tools.control_store import control_store, has_control
from sqs_broker.tools.trace import (
    Fact,
    Logged,
    in_control,
    in_log,
    in_order,
    insights_query,
    of_letter,
)

#: What no source can say.
LIMITS = (
    "Not known: whether the message waits in its queue or is in flight. SQS finds no message by "
    "its id, and this command never receives from a main queue."
)


@click.command("trace", epilog="Example: celery -A app sqs trace 7f0c --log worker.log")
@click.argument("id_", metavar="ID")
@click.option(
    "--log",
    "path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
    help="A log of workers, as JSON lines; `-` for stdin.",
)
@click.option("--no-dead-letters", is_flag=True, help="Do not read the dead-letter queues.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and fact.")
@click.pass_context
def command(
    ctx: click.Context, /, id_: str, path: Path | None, no_dead_letters: bool, as_json: bool
) -> None:
    """Show all that is known of a message, in the order of time.

    ID is the message id, which a task has as its id too, or SQS's MessageId. Asked are the control
    database (revokes, failed deliveries, redrives, audit), the project's own database, a log if
    `--log` is given, and the dead-letter queues: these messages are hidden while they are read.
    Without a log, it prints the query for CloudWatch Logs Insights. stderr says what cannot be
    known.

    Exits with status 1 if nothing is known of the message, or if a source could not be asked.
    """
    options, missing = DeadLetterQueues(ctx.obj.app).options, 0
    logged = _log_of(path, id_)
    facts = list(logged.facts)
    sources = {
        "the control database": _control(options, id_, logged),
        "the project": _project(ctx.obj.app, id_),
    }
    if not no_dead_letters:
        sources["the dead letters"] = _letters(ctx.obj.app, id_)
    for source, its_facts in sources.items():
        try:
            facts += its_facts
        except click.ClickException as exc:
            missing += 1
            print_note(f"Not asked: {source}: {exc.message}")
    for fact in in_order(facts):
        _show(fact, as_json)
    if path is None:
        print_note(f"For the log, run this in CloudWatch Logs Insights:\n{insights_query(id_)}")
    print_note(LIMITS)
    if not facts:
        print_note(f"Nothing is known of {id_}.")
    ctx.exit(0 if facts and not missing else 1)


def _log_of(path: Path | None, id_: str) -> Logged:
    if path is None:
        return Logged((), frozenset())
    if str(path) == "-":
        return in_log(sys.stdin, id_)
    with path.open(errors="replace") as lines:
        return in_log(lines, id_)


def _control(options: Options, id_: str, logged: Logged) -> Iterator[Fact]:
    if not has_control(options):
        return
    with control_store(options) as store:
        yield from in_control(store, id_, logged.sqs_ids)


def _project(celery_app: Any, id_: str) -> Iterator[Fact]:
    from kombu.utils.imports import symbol_by_name

    places: tuple[str, ...] = getattr(celery_app, "sqs_traces", ())
    for place in places:
        yield from symbol_by_name(place)(celery_app, id_)


def _letters(celery_app: Any, id_: str) -> Iterator[Fact]:
    queues = DeadLetterQueues(celery_app)
    with deferred() as is_interrupted:
        for queue in queues.select(None):
            with queues.reading(queue, is_interrupted) as reader:
                yield from map(of_letter, matching(reader, Filter(ids=(id_,))))


def _show(fact: Fact, as_json: bool) -> None:
    if as_json:
        print_json(asdict(fact))
    else:
        at = f"{fact.at:%Y-%m-%d %H:%M:%S}" if fact.at else NOTHING
        click.echo(printable(f"{at:19}  {fact.source:11}  {fact.text}"))
