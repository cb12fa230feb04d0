"""`sqs pause` and `sqs resume` of a queue that only a Lambda function reads: its trigger, and what
the alarms are told, in an AWS account on this machine."""

import io
import uuid
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import Result

from sqs_broker.control.pauses import Pauses
from sqs_broker.control.store import Store
from sqs_broker.observers.metrics import DIMENSION, NAMESPACE
from tests.cloudformation.cloud import Cloud
from tests.integration.conftest import Run
from tests.services import Queues

# An AWS account needs seconds to start.
pytestmark = pytest.mark.slow

Sqs = Callable[..., Result]

ROLE = {"Version": "2012-10-17", "Statement": []}


@pytest.fixture
def queues(cloud: Cloud) -> Queues:
    """A pair of queues."""
    sqs, name = cloud.client("sqs"), f"q-{uuid.uuid4().hex[:8]}"
    dead, url = (sqs.create_queue(QueueName=each)["QueueUrl"] for each in (f"{name}-dlq", name))
    return Queues(sqs, cloud.owner.endpoint_url, url, dead)


@pytest.fixture
def mapping(cloud: Cloud, queues: Queues) -> str:
    """The UUID of the mapping of a function that reads from the queue."""
    lambda_, name = cloud.client("lambda"), f"f-{uuid.uuid4().hex[:8]}"
    role = cloud.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=str(ROLE))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("handler.py", "handler = None")
    lambda_.create_function(
        FunctionName=name, Runtime="python3.13", Role=role["Role"]["Arn"], Handler="handler.it",
        Code={"ZipFile": content.getvalue()},
    )  # fmt: skip
    asked = queues.client.get_queue_attributes(QueueUrl=queues.url, AttributeNames=["QueueArn"])
    arn = asked["Attributes"]["QueueArn"]
    made = lambda_.create_event_source_mapping(EventSourceArn=arn, FunctionName=name)
    return str(made["UUID"])


@pytest.fixture
def sqs(
    run: Run, queues: Queues, options: dict[str, Any], cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> Sqs:
    """Runs a command of `sqs`, for which the account is AWS."""
    for name, value in cloud.owner.environment.items():
        monkeypatch.setenv(name, value)
    changes = {"control": options, "endpoint_url": None}
    return lambda *arguments: run(queues, *arguments, **changes)


def state(cloud: Cloud, mapping: str) -> str:
    return str(cloud.client("lambda").get_event_source_mapping(UUID=mapping)["State"])


def told(cloud: Cloud, queue: str, metric: str) -> list[float]:
    """The values of a metric of a queue, in the order in which they were put."""
    now = datetime.now(UTC)
    found = cloud.client("cloudwatch").get_metric_data(
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(hours=1),
        ScanBy="TimestampAscending",
        MetricDataQueries=[
            {
                "Id": "m",
                "MetricStat": {
                    "Metric": {
                        "Namespace": NAMESPACE,
                        "MetricName": metric,
                        "Dimensions": [{"Name": DIMENSION, "Value": queue}],
                    },
                    "Period": 1,
                    "Stat": "Sum",
                },
            }
        ],
    )
    return list(found["MetricDataResults"][0]["Values"])


def test_a_pause_and_its_end_switch_the_trigger_and_tell_the_alarms(
    sqs: Sqs, cloud: Cloud, queues: Queues, mapping: str
) -> None:
    ran = sqs("pause", queues.name, "--reason", "deploy", "--for", "30m")
    assert ran.exit_code == 0, ran.output
    assert "its mapping is disabled" in ran.stderr
    assert f"then run `sqs resume {queues.name}`" in ran.stderr
    assert state(cloud, mapping) == "Disabled"
    assert sum(told(cloud, queues.name, "FunctionPaused")) == 1
    assert told(cloud, queues.name, "Paused") == []
    ran = sqs("resume", queues.name)
    assert ran.exit_code == 0, ran.output
    assert state(cloud, mapping) == "Enabled"
    assert told(cloud, queues.name, "FunctionPaused")[-1] in (0, 1)  # Both may be in one second.
    # From now on CloudWatch knows the pause as one that is over, for as long as one of workers.
    assert told(cloud, queues.name, "Paused") == [1]


def test_a_queue_without_a_function_has_no_such_metric(
    sqs: Sqs, cloud: Cloud, queues: Queues
) -> None:
    assert sqs("pause", queues.name, "--reason", "deploy").exit_code == 0
    assert sqs("resume", queues.name).exit_code == 0
    assert told(cloud, queues.name, "FunctionPaused") == told(cloud, queues.name, "Paused") == []


def test_who_may_not_write_metrics_pauses_and_reads_what_to_run(
    sqs: Sqs, cloud: Cloud, queues: Queues, mapping: str, store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH", "http://127.0.0.1:1")
    ran = sqs("pause", queues.name, "--reason", "deploy")
    assert ran.exit_code == 0, ran.output
    assert "cloudwatch:PutMetricData" in ran.stderr
    assert f"--dimensions Queue={queues.name} --value 1" in ran.stderr
    assert state(cloud, mapping) == "Disabled"
    ran = sqs("resume", queues.name)
    assert ran.exit_code == 0, ran.output
    assert f"--dimensions Queue={queues.name} --value 0" in ran.stderr
    assert (state(cloud, mapping), Pauses(store).all()) == ("Enabled", [])
