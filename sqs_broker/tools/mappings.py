"""Switches the event source mappings through which Lambda functions receive from a queue.

https://docs.aws.amazon.com/lambda/latest/api/API_UpdateEventSourceMapping.html
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from sqs_broker.options import Options
from sqs_broker.sqs.boto import ask, quick_client
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.broker import driver_of, is_aws

#: States of a mapping that receives, or is about to.
ENABLED = frozenset({"Creating", "Enabled", "Enabling", "Updating"})


@dataclass(frozen=True)
class Mappings:
    """The event source mappings of a queue on AWS, by their UUIDs; none elsewhere."""

    enabled: tuple[str, ...]
    """Those that were enabled when it was asked."""
    fault: str | None = None
    """Why they are not known, and what to do."""


def mappings_of(options: Options, queue: str) -> Mappings:
    """The mappings of a queue that are enabled now."""
    if not is_aws(options.endpoint_url):
        return Mappings(())
    url = options.queue(queue).url
    try:
        arn = _arn(driver_of(options), url)
        return Mappings(tuple(enabled(quick_client(options.of_queue(url), "lambda"), arn)))
    except SqsError as exc:
        return Mappings((), _fault(exc, queue))
    except click.ClickException as exc:
        return Mappings((), f"Functions: {exc.message}")


def switch_mappings(
    options: Options, queue: str, uuids: Sequence[str], *, enabled: bool
) -> Iterator[str]:
    """Enable or disable mappings of a queue. Returns a line about each, and about what could not be
    done."""
    if not uuids:
        return
    url = options.queue(queue).url
    try:
        yield from switch(quick_client(options.of_queue(url), "lambda"), uuids, enabled=enabled)
    except SqsError as exc:
        yield _fault(exc, queue)
    except click.ClickException as exc:
        yield f"Functions: {exc.message}"


def enabled(client: Any, arn: str) -> Iterator[str]:
    """The UUID of each mapping of a queue that is enabled. `client`: of Lambda. Raises SqsError."""
    answer = ask(client.list_event_source_mappings, EventSourceArn=arn)
    for mapping in answer["EventSourceMappings"]:
        if mapping["State"] in ENABLED:
            yield mapping["UUID"]


def switch(client: Any, uuids: Sequence[str], *, enabled: bool) -> Iterator[str]:
    """Enable or disable each of these mappings. `client`: of Lambda. Raises SqsError."""
    for uuid in uuids:
        mapping = ask(client.update_event_source_mapping, UUID=uuid, Enabled=enabled)
        function = str(mapping["FunctionArn"]).rpartition(":")[2]
        yield f"Function {function}: its mapping is {'enabled' if enabled else 'disabled'}."


def _fault(exc: SqsError, queue: str) -> str:
    return (
        f"Functions: {exc.code}: the event source mappings of {queue} could not be switched. "
        "If a function receives from it, switch its mapping in Lambda (needs "
        "sqs:GetQueueAttributes, lambda:ListEventSourceMappings, "
        "lambda:UpdateEventSourceMapping)."
    )


def _arn(driver: Driver, url: str) -> str:
    return Queue(url, driver).attributes("QueueArn").values["QueueArn"]
