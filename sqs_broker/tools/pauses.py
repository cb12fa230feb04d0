"""The pauses of queues, for the commands that show them."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import click

from sqs_broker.options import Options
from sqs_broker.rules.pause import Pause
from sqs_broker.tools.checks import Finding, Subject
from sqs_broker.tools.control_store import QUICK, control_store, has_control


def pauses_of(options: Options, timeout: float = QUICK) -> Mapping[str, Pause]:
    """The pauses that last now, by queue. Without a control database there are none.

    Raises ClickException if the control database cannot be read.
    """
    if not has_control(options):
        return {}
    with control_store(options, timeout) as store:
        from sqs_broker.control.pauses import Pauses  # This needs pymongo.

        now = datetime.now(UTC)
        return {pause.queue: pause for pause in Pauses(store).all() if pause.lasts(now)}


def check_pauses(options: Options) -> Iterator[Finding]:
    """Whether a queue is paused. Nothing is raised."""
    if not has_control(options):
        return
    try:
        pauses = pauses_of(options)
    except click.ClickException as exc:
        yield Subject("queues", "paused").unknown(exc.message)
        return
    for name in options.queues:
        check = Subject(name, "paused")
        if pause := pauses.get(name):
            yield check.fault(
                f"no worker receives from it: {pause.text}",
                f"When the reason is gone: celery -A … sqs resume {name}",
            )
        else:
            yield check.ok("no")
