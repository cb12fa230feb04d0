"""Switches the event source mappings through which Lambda functions receive from a queue.

https://docs.aws.amazon.com/lambda/latest/api/API_UpdateEventSourceMapping.html
"""

from collections.abc import Callable, Iterator
from typing import Any

import click

from sqs_broker.options import Options
from sqs_broker.sqs.boto import ask, quick_client
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.broker import driver_of, is_aws

Ask = Callable[..., Any]


def switch_mappings(options: Options, queue: str, *, enabled: bool) -> Iterator[str]:
    """Enable or disable the mappings of a queue on AWS. Returns a line about each, and about what
    could not be done."""
    if not is_aws(options.endpoint_url):
        return
    url = options.queue(queue).url
    try:
        arn = _arn(driver_of(options), url)
        yield from switch(quick_client(options.of_queue(url), "lambda"), arn, enabled=enabled)
    except SqsError as exc:
        yield (
            f"Functions: {exc.code}: the event source mappings of {queue} could not be switched. "
            "If a function receives from it, switch its mapping in Lambda (needs "
            "sqs:GetQueueAttributes, lambda:ListEventSourceMappings, "
            "lambda:UpdateEventSourceMapping)."
        )
    except click.ClickException as exc:
        yield f"Functions: {exc.message}"


def switch(client: Any, arn: str, *, enabled: bool) -> Iterator[str]:
    """Enable or disable each mapping of a queue. `client`: of Lambda. Raises SqsError."""
    answer = ask(client.list_event_source_mappings, EventSourceArn=arn)
    for mapping in answer["EventSourceMappings"]:
        ask(client.update_event_source_mapping, UUID=mapping["UUID"], Enabled=enabled)
        function = str(mapping["FunctionArn"]).rpartition(":")[2]
        yield f"Function {function}: its mapping is {'enabled' if enabled else 'disabled'}."


def _arn(driver: Driver, url: str) -> str:
    return Queue(url, driver).attributes("QueueArn").values["QueueArn"]
