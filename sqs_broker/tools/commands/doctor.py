"""`sqs doctor`: checks all that a worker needs, and shows each fault with its fix."""

from collections import Counter
from dataclasses import asdict

import click

from sqs_broker.tools.checks import Finding, Level
from sqs_broker.tools.commands.output import print_json, print_note, printable
from sqs_broker.tools.doctor import examine

#: The beginning of a line, by level.
SHOWN = {
    Level.OK: "ok     ",
    Level.WARNING: "warn   ",
    Level.FAULT: "FAULT  ",
    Level.UNKNOWN: "?      ",
}


@click.command("doctor", epilog="Example: celery -A app sqs doctor --json | jq 'select(.fix)'")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and check.")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool) -> None:
    """Check everything that a worker needs.

    Shows each fault and how to correct it. It uses the settings and credentials of its own
    environment, so run it on the worker's machine and as the worker's user. It sends, receives,
    changes and deletes no message. `?` marks something that could not be checked, and `warn` what
    somebody wants so, such as a queue that is paused.

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
    print_note(_summary(counted))
    ctx.exit(1 if counted[Level.FAULT] else 0)


def _summary(counted: Counter[Level]) -> str:
    parts = [f"{counted[Level.OK]} ok", _count(counted[Level.FAULT], "fault")]
    if warnings := counted[Level.WARNING]:
        parts.append(_count(warnings, "warning"))
    return f"{', '.join(parts)}, {counted[Level.UNKNOWN]} unknown."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _show(finding: Finding) -> None:
    line = f"{SHOWN[finding.level]}{finding.subject}: {finding.check}: {finding.text}"
    click.echo(printable(line))
    if finding.fix:
        click.echo(printable(f"       → {finding.fix}"))
