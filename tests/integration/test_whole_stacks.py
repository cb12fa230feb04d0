"""Every resource of every template is made: the server skips what it does not know without a
word."""

import io
import uuid
import zipfile
from collections.abc import Mapping

import pytest

from tests.cloudformation.cloud import Cloud, Stack
from tests.cloudformation.template import fold, read

pytestmark = pytest.mark.slow

#: moto makes it, and gives it no id. test_function_stack.py reads it back.
WITHOUT_ID = "AWS::Lambda::Permission"


@pytest.fixture(scope="module")
def queues(cloud: Cloud) -> Mapping[str, Stack]:
    """A queue with all there is, for each consumer."""
    return {
        consumer: cloud.stack(
            "queue.yaml",
            QueueName=f"q-{uuid.uuid4().hex[:8]}",
            Consumer=consumer,
            Topic="true",
            Encryption="kms",
        )
        for consumer in ("worker", "function")
    }


@pytest.fixture(scope="module")
def network(cloud: Cloud) -> Stack:
    return cloud.stack("network.yaml")


def missing(stack: Stack) -> set[str]:
    """The logical names of the resources that a stack should have and has not."""
    wanted = fold(read(stack.template), stack.given)
    named = {name for name, each in wanted.items() if each["Type"] != WITHOUT_ID}
    return named - set(stack.resources)


def secret(cloud: Cloud) -> str:
    made = cloud.client("secretsmanager").create_secret(Name=uuid.uuid4().hex, SecretString="x")
    return str(made["ARN"])


def test_the_queue_is_whole(queues: Mapping[str, Stack]) -> None:
    assert [missing(stack) for stack in queues.values()] == [set(), set()]


def test_the_network_is_whole(network: Stack) -> None:
    assert missing(network) == set()


def test_the_alarms_and_the_dashboard_are_whole(cloud: Cloud, queues: Mapping[str, Stack]) -> None:
    queue = queues["worker"].name
    assert missing(cloud.stack("alarms.yaml", QueueStack=queue, Email="a@example.com")) == set()
    assert missing(cloud.stack("dashboard.yaml", QueueStack=queue)) == set()


def test_the_function_is_whole(cloud: Cloud, queues: Mapping[str, Stack], network: Stack) -> None:
    bucket = f"code-{uuid.uuid4().hex[:8]}"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x.py", "")
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="zip", Body=content.getvalue())
    made = cloud.stack(
        "function.yaml",
        QueueStack=queues["function"].name,
        CodeBucket=bucket,
        CodeKey="zip",
        MongoSecretArn=secret(cloud),
        ApiKeysSecretArn=secret(cloud),
        FunctionSubnetIds=network.outputs["FunctionSubnetIds"],
        FunctionSecurityGroupIds=network.outputs["FunctionSecurityGroupIds"],
    )
    assert missing(made) == set()


def test_the_service_is_whole(cloud: Cloud, queues: Mapping[str, Stack], network: Stack) -> None:
    certificate = cloud.client("acm").request_certificate(DomainName="*.example.com")
    names = {"VpcId", "TaskSubnetIds", "TaskSecurityGroupIds", "PublicSubnetIds", "AssignPublicIp"}
    made = cloud.stack(
        "service.yaml",
        QueueStack=queues["worker"].name,
        ImageUri="registry.example.com/worker:1",
        MongoSecretArn=secret(cloud),
        MinTasks="0",
        ScaleInProtection="true",
        CertificateArn=certificate["CertificateArn"],
        ApiHost="api.example.com",
        ApiKeysSecretArn=secret(cloud),
        FlowerHost="flower.example.com",
        FlowerLoginSecretArn=secret(cloud),
        **{name: network.outputs[name] for name in names},
    )
    assert missing(made) == set()
