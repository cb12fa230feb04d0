"""The lines of docs/aws.md for the Serverless Framework, packaged by its fork osls."""

import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.cloudformation.cloud import Cloud, Stack
from tests.cloudformation.rules import faults
from tests.cloudformation.template import fold, read
from tests.tools import ROOT, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is missing"),
]

PAGE = (ROOT / "docs" / "aws.md").read_text()

SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:mongo"

#: It sends nothing about its use, and looks for no newer version.
QUIET = {"SLS_TELEMETRY_DISABLED": "1", "SLS_NOTIFICATIONS_MODE": "off"}


@pytest.fixture(scope="module")
def queue(cloud: Cloud) -> Iterator[Stack]:
    """The queue of the stage that the lines name."""
    stack = Stack(cloud, "registrations-prod-queue", "queue.yaml")
    stack.deploy(QueueName="registrations-prod", Consumer="function")
    yield stack
    stack.delete()


@pytest.fixture(scope="module")
def packaged(
    cloud: Cloud, queue: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Any]:
    """The resources of the template that `osls package` writes, by their types."""
    directory = tmp_path_factory.mktemp("serverless")
    (text,) = re.findall(r"```yaml\n(service: .*?)```", PAGE, re.DOTALL)
    (directory / "serverless.yml").write_text(text)
    (directory / "dist").mkdir()
    with zipfile.ZipFile(directory / "dist" / "function-x86_64.zip", "w") as archive:
        archive.writestr("x.py", "")
    # It asks CloudFormation for the outputs of the stack.
    variables = cloud.owner.environment | {"MONGO_SECRET_ARN": SECRET, **QUIET}
    run("osls", "package", cwd=directory, seconds=120, more=variables)
    written = directory / ".serverless" / "cloudformation-template-update-stack.json"
    resources: dict[str, Any] = json.loads(written.read_text())["Resources"]
    assert list(faults(resources)) == []
    return {each["Type"]: each["Properties"] for each in resources.values()}


def ours(name: str) -> Mapping[str, Any]:
    """The properties of a resource of infra/function.yaml."""
    given = {"QueueStack": "registrations-prod-queue", "MongoSecretArn": SECRET}
    properties: Mapping[str, Any] = fold(read("function.yaml"), given)[name]["Properties"]
    return properties


def test_the_trigger_is_that_of_the_template(packaged: Mapping[str, Any], queue: Stack) -> None:
    trigger = packaged["AWS::Lambda::EventSourceMapping"]
    assert trigger["EventSourceArn"] == queue.outputs["QueueArn"]
    names = set(ours("Mapping")) - {"EventSourceArn", "FunctionName"}
    assert {name: trigger[name] for name in names} == {
        name: ours("Mapping")[name] for name in names
    }


def test_the_function_is_that_of_the_template(packaged: Mapping[str, Any], queue: Stack) -> None:
    function = packaged["AWS::Lambda::Function"]
    for name in ("Handler", "Runtime", "MemorySize", "Timeout"):
        assert function[name] == ours("Function")[name]
    assert function["Environment"]["Variables"] == {
        "AWS_SQS_QUEUE_URL": queue.outputs["QueueUrl"],
        "AWS_SQS_DLQ_URL": queue.outputs["DeadLetterQueueUrl"],
        "MONGO_SECRET_ARN": SECRET,
    }


def test_the_role_may_all_that_the_function_does(packaged: Mapping[str, Any], queue: Stack) -> None:
    role = packaged["AWS::IAM::Role"]
    assert role["ManagedPolicyArns"] == [queue.outputs["ConsumerPolicyArn"]]
    (policy,) = role["Policies"]
    allowed = [
        (action, statement["Resource"])
        for statement in policy["PolicyDocument"]["Statement"]
        for action in statement["Action"]
    ]
    assert ("secretsmanager:GetSecretValue", SECRET) in allowed
