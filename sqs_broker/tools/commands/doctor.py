"""`sqs doctor`: checks all that a worker needs, and shows each fault with its fix."""

from collections import Counter
from dataclasses import asdict

import click

from sqs_broker.tools.checks import Finding, Level
from sqs_broker.tools.commands.output import print_json, print_note, printable
from sqs_broker.tools.doctor import examine

#: The beginning of a line, by level.
SHOWN = {Level.OK: "ok     ", Level.FAULT: "FAULT  ", Level.UNKNOWN: "?      "}


@click.command("doctor", epilog="Example: celery -A app sqs doctor --json | jq 'select(.fix)'")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and check.")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool) -> None:
    """Check everything that a worker needs.

    Shows each fault and how to correct it. It uses the settings and credentials of its own
    environment, so run it on the worker's machine and as the worker's user. It sends, receives,
    changes and deletes no message. `?` marks something that could not be checked.

    Exits with status 1 if there is a fault.
    """
    counted: Counter[Level] = Counter()
    for finding in examine(ctx.obj.app):
        counted[finding.level] += 1
        if as_json:
            facts = asdict(finding)
            del facts["is_fatal"]
            print_json(facts)
        else:
            _show(finding)
    ok, faults, unknown = (counted[level] for level in (Level.OK, Level.FAULT, Level.UNKNOWN))
    print_note(f"{ok} ok, {faults} fault{'' if faults == 1 else 's'}, {unknown} unknown.")
    ctx.exit(1 if counted[Level.FAULT] else 0)


def _show(finding: Finding) -> None:
    line = f"{SHOWN[finding.level]}{finding.subject}: {finding.check}: {finding.text}"
    click.echo(printable(line))
    if finding.fix:
        click.echo(printable(f"       → {finding.fix}"))
