"""Tells the alarms on AWS of a pause that has disabled functions.

Workers write `Paused` in their metric lines while a queue is paused. A function writes nothing
while its mapping is disabled, so the command that pauses or resumes it puts the data.

An alarm of infra/alarms.yaml keeps its state until there is newer data, as it has
`TreatMissingData: ignore`. So one value at each end of the pause is enough.
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html
https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricData.html
"""

from collections.abc import Iterator
from typing import Any

import click

from sqs_broker.observers.metrics import DIMENSION, NAMESPACE
from sqs_broker.options import Options
from sqs_broker.sqs.boto import ask, quick_client
from sqs_broker.sqs.errors import SqsError

#: 1 from the pause of a queue whose functions it has disabled, 0 from its resume on.
METRIC = "FunctionPaused"


def tell_alarms(options: Options, queue: str, *, is_paused: bool) -> Iterator[str]:
    """Put the data for the alarms. Yields a line if that failed: the pause itself is as it is."""
    client_options = options.of_queue(options.queue(queue).url)
    try:
        put(quick_client(client_options, "cloudwatch"), queue, is_paused=is_paused)
    except SqsError as exc:
        yield _fault(exc.code, queue, is_paused=is_paused)
    except click.ClickException as exc:
        yield _fault(exc.message, queue, is_paused=is_paused)


def put(client: Any, queue: str, *, is_paused: bool) -> None:
    """Put the data of a pause, or of its end. `client`: of CloudWatch. Raises SqsError."""
    values = {METRIC: int(is_paused)}
    if not is_paused:
        # As after a pause of workers: what waited needs some minutes after it.
        values["Paused"] = 1
    dimensions = [{"Name": DIMENSION, "Value": queue}]
    ask(
        client.put_metric_data,
        Namespace=NAMESPACE,
        MetricData=[
            {"MetricName": name, "Dimensions": dimensions, "Value": value, "Unit": "Count"}
            for name, value in values.items()
        ],
    )


def _fault(why: str, queue: str, *, is_paused: bool) -> str:
    return (
        f"Alarms: {why}: CloudWatch does not know that {queue} is "
        f"{'paused' if is_paused else 'resumed'} (needs cloudwatch:PutMetricData). "
        f"Run: aws cloudwatch put-metric-data --namespace {NAMESPACE} --metric-name {METRIC} "
        f"--dimensions {DIMENSION}={queue} --value {int(is_paused)}"
    )
