"""The queues of infra/queue.yaml, deployed, and read back by the API of each service."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from sqs_broker.options import Options
from sqs_broker.sqs.boto import Boto
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import ALL
from sqs_broker.tools.checks import Level, check_dead_letters, check_queue
from tests.cloudformation.cloud import Cloud, Stack
from tests.cloudformation.moto_iam import ACCOUNT

DAY = 86_400

#: Every parameter that changes what there is, as it is not by default.
ALL_THERE_IS = {"Encryption": "kms", "Topic": "true"}


def name() -> str:
    return f"q-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def plain(cloud: Cloud) -> Stack:
    """The stack as it is by default."""
    return cloud.stack("queue.yaml", QueueName=name())


@pytest.fixture(scope="module")
def full(cloud: Cloud) -> Stack:
    """The stack with a key and a topic."""
    return cloud.stack("queue.yaml", QueueName=name(), **ALL_THERE_IS)


def attributes(stack: Stack, output: str = "QueueUrl") -> Mapping[str, str]:
    found = stack.cloud.client("sqs").get_queue_attributes(
        QueueUrl=stack.outputs[output], AttributeNames=["All"]
    )
    return dict(found["Attributes"])


def test_the_queue_has_the_attributes_that_a_worker_needs(plain: Stack) -> None:
    found = attributes(plain)
    assert {
        "VisibilityTimeout": found["VisibilityTimeout"],
        "MessageRetentionPeriod": found["MessageRetentionPeriod"],
        "ReceiveMessageWaitTimeSeconds": found["ReceiveMessageWaitTimeSeconds"],
        "MaximumMessageSize": found["MaximumMessageSize"],
        "SqsManagedSseEnabled": found["SqsManagedSseEnabled"],
    } == {
        "VisibilityTimeout": "60",
        "MessageRetentionPeriod": str(4 * DAY),
        "ReceiveMessageWaitTimeSeconds": "20",
        "MaximumMessageSize": "1048576",
        "SqsManagedSseEnabled": "true",
    }
    assert json.loads(found["RedrivePolicy"]) == {
        "deadLetterTargetArn": plain.outputs["DeadLetterQueueArn"],
        "maxReceiveCount": 10,
    }


def test_the_dead_letter_queue_keeps_messages_longest_and_takes_them_from_its_queue_alone(
    plain: Stack,
) -> None:
    found = attributes(plain, "DeadLetterQueueUrl")
    assert found["MessageRetentionPeriod"] == str(14 * DAY)
    assert found["SqsManagedSseEnabled"] == "true"
    assert "RedrivePolicy" not in found
    assert json.loads(found["RedriveAllowPolicy"]) == {
        "redrivePermission": "byQueue",
        "sourceQueueArns": [plain.outputs["QueueArn"]],
    }


@pytest.mark.parametrize("queue", ["Queue", "DeadLetterQueue"])
def test_a_queue_refuses_calls_without_tls_and_allows_nobody_anything(
    plain: Stack, queue: str
) -> None:
    (statement,) = json.loads(attributes(plain, f"{queue}Url")["Policy"])["Statement"]
    assert statement == {
        "Sid": "OnlyByTls",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "sqs:*",
        "Resource": plain.outputs[f"{queue}Arn"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def test_without_a_topic_and_a_key_there_is_none(plain: Stack) -> None:
    assert "TopicArn" not in plain.outputs
    assert {"Key", "Notifications", "Subscription"}.isdisjoint(plain.resources)


@pytest.mark.parametrize("queue", ["Queue", "DeadLetterQueue"])
def test_with_a_key_both_queues_and_the_topic_are_encrypted_by_it(full: Stack, queue: str) -> None:
    key = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{full.resources['Key']}"
    assert attributes(full, f"{queue}Url")["KmsMasterKeyId"] == key
    sns = full.cloud.client("sns")
    topic = sns.get_topic_attributes(TopicArn=full.outputs["TopicArn"])["Attributes"]
    assert topic["KmsMasterKeyId"] == key


def test_the_topic_alone_may_use_the_key_and_send_to_the_queues(full: Stack) -> None:
    topic = full.outputs["TopicArn"]
    only = {"ArnEquals": {"aws:SourceArn": topic}}
    kms = full.cloud.client("kms")
    key = json.loads(
        kms.get_key_policy(KeyId=full.resources["Key"], PolicyName="default")["Policy"]
    )
    assert [
        (each["Principal"], each["Action"], each["Condition"]) for each in key["Statement"][1:]
    ] == [({"Service": "sns.amazonaws.com"}, ["kms:GenerateDataKey", "kms:Decrypt"], only)]
    for queue in ("Queue", "DeadLetterQueue"):
        _, allowed = json.loads(attributes(full, f"{queue}Url")["Policy"])["Statement"]
        assert allowed["Effect"] == "Allow"
        assert allowed["Principal"] == {"Service": "sns.amazonaws.com"}
        assert allowed["Action"] == "sqs:SendMessage"
        assert allowed["Condition"] == only


def test_the_key_is_rotated(full: Stack) -> None:
    kms = full.cloud.client("kms")
    assert kms.get_key_rotation_status(KeyId=full.resources["Key"])["KeyRotationEnabled"]


def test_what_is_published_to_the_topic_comes_to_the_queue(full: Stack) -> None:
    cloud = full.cloud
    cloud.client("sns").publish(TopicArn=full.outputs["TopicArn"], Message='{"a": 1}')
    received = cloud.client("sqs").receive_message(
        QueueUrl=full.outputs["QueueUrl"], WaitTimeSeconds=1
    )
    (message,) = received["Messages"]
    assert json.loads(message["Body"])["Message"] == '{"a": 1}'


def test_what_the_topic_cannot_deliver_goes_to_the_dead_letter_queue(full: Stack) -> None:
    found = full.cloud.client("sns").get_subscription_attributes(
        SubscriptionArn=full.resources["Subscription"]
    )["Attributes"]
    assert found["Endpoint"] == full.outputs["QueueArn"]
    assert json.loads(found["RedrivePolicy"]) == {
        "deadLetterTargetArn": full.outputs["DeadLetterQueueArn"]
    }


def test_the_doctor_finds_no_fault_of_the_queues_for_default_settings(
    plain: Stack, full: Stack
) -> None:
    for stack in (plain, full):
        queue, url = stack.outputs["QueueName"], stack.outputs["QueueUrl"]
        dead = stack.outputs["DeadLetterQueueUrl"]
        options = Options.read(
            {
                "region": "us-east-1",
                "endpoint_url": stack.cloud.owner.endpoint_url,
                "credentials": stack.cloud.owner.credentials,
                "predefined_queues": {queue: {"url": url, "dead_letter_url": dead}},
                "visibility_timeout": 60,
            }
        )
        driver = Boto(options)
        ours, theirs = (Queue(each, driver).attributes(ALL).values for each in (url, dead))
        found = [*check_queue(queue, options, ours), *check_dead_letters(queue, dead, ours, theirs)]
        driver.close()
        assert {each.level for each in found} == {Level.OK}, found


# Changes ------------------------------------------------------------------------------------------


def test_a_stack_that_is_deployed_again_does_not_change(plain: Stack) -> None:
    before = attributes(plain)
    assert plain.deploy() == []
    assert attributes(plain) == before


def test_the_consumer_decides_on_the_visibility_timeout_and_on_who_may_import_the_queue(
    cloud: Cloud,
) -> None:
    stack = cloud.stack("queue.yaml", QueueName=name())
    assert "WorkerQueueArn" in stack.outputs
    assert "FunctionQueueArn" not in stack.outputs
    assert stack.deploy(Consumer="function") == ["Queue"]
    assert attributes(stack)["VisibilityTimeout"] == "210"
    assert "WorkerQueueArn" not in stack.outputs
    assert "FunctionQueueArn" in stack.outputs
    assert stack.deploy(Consumer="worker", WorkerVisibilityTimeout="90") == ["Queue"]
    assert attributes(stack)["VisibilityTimeout"] == "90"


def test_the_number_of_deliveries_is_changed_in_place(cloud: Cloud) -> None:
    stack = cloud.stack("queue.yaml", QueueName=name())
    stack.cloud.client("sqs").send_message(QueueUrl=stack.outputs["QueueUrl"], MessageBody="stays")
    assert stack.deploy(MaxReceiveCount="20") == ["Queue"]
    found = attributes(stack)
    assert json.loads(found["RedrivePolicy"])["maxReceiveCount"] == 20
    assert found["ApproximateNumberOfMessages"] == "1"


def test_a_topic_can_be_added_and_removed(cloud: Cloud) -> None:
    stack = cloud.stack("queue.yaml", QueueName=name())
    added = {"Notifications", "Subscription"}
    policies = {"QueuePolicy", "DeadLetterQueuePolicy", "ProducerPolicy"}
    assert set(stack.deploy(Topic="true")) == added | policies
    assert stack.outputs["TopicArn"].endswith(f":{stack.given['QueueName']}")
    assert set(stack.deploy(Topic="false")) == added | policies
    assert len(json.loads(attributes(stack)["Policy"])["Statement"]) == 1


def test_the_queues_and_their_messages_stay_if_the_stack_is_deleted(cloud: Cloud) -> None:
    stack = cloud.stack("queue.yaml", QueueName=name(), **ALL_THERE_IS)
    urls = [stack.outputs["QueueUrl"], stack.outputs["DeadLetterQueueUrl"]]
    key = stack.resources["Key"]
    sqs: Any = cloud.client("sqs")
    for url in urls:
        sqs.send_message(QueueUrl=url, MessageBody="stays")
    stack.delete()
    for url in urls:
        assert sqs.receive_message(QueueUrl=url)["Messages"][0]["Body"] == "stays"
    # Without it nobody could read them.
    assert cloud.client("kms").describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Enabled"
