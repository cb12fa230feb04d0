"""The pauses of queues, for the commands and pages that begin, end and show them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import click

from sqs_broker.options import Options
from sqs_broker.rules.pause import LONGEST_REASON, Pause
from sqs_broker.tools.checks import Finding, Subject
from sqs_broker.tools.control_store import QUICK, control_store, has_control
from sqs_broker.tools.mappings import mappings_of, switch_mappings
from sqs_broker.tools.pause_metric import tell_alarms

#: Within so many seconds a worker that runs obeys.
OBEYED = 10


def pause_queue(
    options: Options, queue: str, reason: str, by: str, lasts: timedelta | None = None
) -> Iterator[str]:
    """Pause a queue for so long, or until it is resumed. On AWS, disable the event source mappings
    of functions on it, and tell the alarms. Yields lines that say what was done; the first says
    that it is paused.

    Raises ClickException if the queue is not configured, or if the control database does not
    answer: then what was said before is done.
    """
    check_queue(options, queue)
    now = datetime.now(UTC)
    begun = Pause(queue, one_line(reason), by, now, None if lasts is None else now + lasts)
    with control_store(options) as store:
        from sqs_broker.control.audit import Audit  # These need pymongo.
        from sqs_broker.control.pauses import Pauses

        found = mappings_of(options, queue)
        # Noted before they are disabled, so that `resume_queue` knows them whatever happens.
        Pauses(store).begin(replace(begun, mappings=found.enabled))
        yield f"{queue} is paused: {begun.text}"
        yield f"Workers stop receiving within {OBEYED} s."
        if found.fault is not None:
            yield found.fault
        yield from switch_mappings(options, queue, found.enabled, enabled=False)
        if found.enabled:
            yield from tell_alarms(options, queue, is_paused=True)
            if begun.until is not None:
                yield f"A mapping has no end of its own: then run `sqs resume {queue}`."
        Audit(store).note("pause", by, queue=queue, reason=begun.reason, until=begun.until)


def resume_queue(options: Options, queue: str, reason: str, by: str) -> Iterator[str]:
    """End the pause of a queue, and enable the mappings that it has disabled. Yields lines that say
    what was done. Raises ClickException as `pause_queue` does; then call it again."""
    check_queue(options, queue)
    with control_store(options) as store:
        from sqs_broker.control.audit import Audit  # These need pymongo.
        from sqs_broker.control.pauses import Pauses

        pauses = Pauses(store)
        if (pause := pauses.of(queue)) is None:
            yield f"{queue} was not paused"
            return
        # Before the pause ends, so that this can be run again.
        switched = list(switch_mappings(options, queue, pause.mappings, enabled=True))
        pauses.end(queue)
        yield f"{queue} is resumed"
        yield from switched
        if pause.mappings:
            yield from tell_alarms(options, queue, is_paused=False)
        Audit(store).note("resume", by, queue=queue, reason=one_line(reason))


def check_queue(options: Options, queue: str) -> None:
    """Raise BadParameter if no such queue is configured."""
    if queue not in options.queues:
        known = ", ".join(sorted(options.queues))
        raise click.BadParameter(f"no queue {queue!r} is configured; the queues are: {known}")


def one_line(reason: str) -> str:
    """A reason as it is stored."""
    return " ".join(reason.split())[:LONGEST_REASON]


def pauses_of(options: Options, timeout: float = QUICK) -> Mapping[str, str]:
    """What is shown of the pauses that last now, or that have left functions disabled, by queue.
    Without a control database there are none.

    Raises ClickException if the control database cannot be read.
    """
    if not has_control(options):
        return {}
    with control_store(options, timeout) as store:
        from sqs_broker.control.pauses import Pauses  # This needs pymongo.

        now = datetime.now(UTC)
        shown = {pause.queue: pause.shown(now) for pause in Pauses(store).all()}
        return {queue: text for queue, text in shown.items() if text is not None}


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
            yield check.warning(
                f"it is paused: {pause}",
                f"When the reason is gone: celery -A … sqs resume {name}",
            )
        else:
            yield check.ok("no")
