"""`sqs queues` on real servers: what it counts, and CloudWatch's age of the oldest message."""

import json
from datetime import UTC, datetime, timedelta

import boto3

from devstack.sqs import ACCESS_KEY, REGION
from sqs_broker.tools.commands.queues import ages_from
from tests.integration.conftest import Run
from tests.services import Queues


def test_visible_in_flight_and_delayed_messages_are_counted_separately(
    either: Queues, run: Run
) -> None:
    for _ in range(3):
        either.client.send_message(QueueUrl=either.url, MessageBody="{}")
    either.client.send_message(QueueUrl=either.url, MessageBody="{}", DelaySeconds=600)
    either.client.receive_message(QueueUrl=either.url, MaxNumberOfMessages=1)
    either.client.send_message(QueueUrl=either.dead_letter_url, MessageBody="{}")

    ran = run(either, "queues", "--json")

    queue, dead_letters = map(json.loads, ran.stdout.splitlines())
    assert (queue["visible"], queue["in_flight"], queue["delayed"]) == (2, 1, 1)
    assert (dead_letters["visible"], dead_letters["in_flight"]) == (1, 0)
    assert queue["oldest"] is None


def test_a_missing_queue_is_reported_and_the_others_are_counted(either: Queues, run: Run) -> None:
    gone = Queues(either.client, either.endpoint_url, either.url, either.dead_letter_url + "x")

    ran = run(gone, "queues")

    assert ran.exit_code == 1
    assert "there is no such queue" in ran.stderr
    assert ran.stdout.splitlines()[1].split()[1] == "0"


def test_cloudwatch_knows_how_old_the_oldest_message_is(moto_url: str) -> None:
    cloudwatch = boto3.client(
        "cloudwatch",
        region_name=REGION,
        endpoint_url=moto_url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=ACCESS_KEY,
    )
    now = datetime.now(UTC)
    for minutes, age in ((3, 40.0), (1, 160.0)):
        cloudwatch.put_metric_data(
            Namespace="AWS/SQS",
            MetricData=[
                {
                    "MetricName": "ApproximateAgeOfOldestMessage",
                    "Dimensions": [{"Name": "QueueName", "Value": "jobs"}],
                    "Timestamp": now - timedelta(minutes=minutes),
                    "Value": age,
                }
            ],
        )

    ages = ages_from(cloudwatch, {"jobs": "https://x/1/jobs", "dead": "https://x/1/dead"}, now)

    assert ages == {"jobs": 160}
    cloudwatch.close()
