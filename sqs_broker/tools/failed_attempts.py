"""The failed attempts of a dead letter: those before the last one from the control database."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from sqs_broker.options import Options
from sqs_broker.tools.control_store import QUICK, control_store, has_control
from sqs_broker.tools.dead_letters import DeadLetterMessage


@dataclass(frozen=True)
class Attempt:
    """One run that failed."""

    at: str | None
    """When, in ISO's form."""
    error: str | None
    """The class of its error."""
    deliveries: int | None
    """The number of its delivery."""


@dataclass(frozen=True)
class Attempts:
    """What is known of the failed attempts of a dead letter."""

    known: Sequence[Attempt] | None
    """The oldest first; None if they are not known."""
    fault: str | None = None
    """Why they are not known."""

    def content(self) -> list[dict[str, Any]] | None:
        """As a command prints them."""
        return None if self.known is None else [asdict(each) for each in self.known]


def attempts_of(options: Options, message: DeadLetterMessage) -> Attempts:
    """Each failed attempt of a message. Nothing is raised."""
    last = Attempt(message.at, message.error, message.deliveries)
    known = [last] if message.error else []
    if not has_control(options):
        return Attempts(known)
    try:
        with control_store(options, QUICK) as store:
            found = store.histories(message.id)
    except click.ClickException as exc:
        return Attempts(None, exc.message)
    runs = sorted((run.at, run.error, run.delivery) for each in found.values() for run in each.runs)
    before = [
        Attempt(at.isoformat(timespec="milliseconds"), error, delivery)
        for at, error, delivery in runs
    ]
    return Attempts([*before, *known])
