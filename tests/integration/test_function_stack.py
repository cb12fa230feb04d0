"""The functions of infra/function.yaml, deployed, and read back by the API of each service."""

import io
import json
import uuid
import zipfile
from collections.abc import Mapping
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.cloudformation.cloud import Cloud, Stack
from tests.cloudformation.moto_iam import ACCOUNT

SECRET = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:mongo-a1b2c3"
KEYS = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:keys-a1b2c3"
BUCKET, KEY = "code", "function.zip"


@pytest.fixture(scope="module")
def code(cloud: Cloud) -> dict[str, str]:
    """The parameters that name the zip."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("app/lambda_handler.py", "handler = None")
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key=KEY, Body=content.getvalue())
    return {"CodeBucket": BUCKET, "CodeKey": KEY, "MongoSecretArn": SECRET}


def queue(cloud: Cloud, consumer: str = "function") -> Stack:
    return cloud.stack("queue.yaml", QueueName=f"q-{uuid.uuid4().hex[:8]}", Consumer=consumer)


@pytest.fixture(scope="module")
def queues(cloud: Cloud) -> Stack:
    return queue(cloud)


@pytest.fixture(scope="module")
def alone(cloud: Cloud, queues: Stack, code: Mapping[str, str]) -> Stack:
    """The function and its trigger."""
    return cloud.stack("function.yaml", QueueStack=queues.name, **code)


@pytest.fixture(scope="module")
def with_api(cloud: Cloud, queues: Stack, code: Mapping[str, str]) -> Stack:
    """The same, with the HTTP API."""
    return cloud.stack("function.yaml", QueueStack=queues.name, ApiKeysSecretArn=KEYS, **code)


def configuration(stack: Stack, name: str = "Function") -> Mapping[str, Any]:
    found = stack.cloud.client("lambda").get_function_configuration(
        FunctionName=stack.resources[name]
    )
    return dict(found)


def mapping(stack: Stack) -> Mapping[str, Any]:
    found = stack.cloud.client("lambda").get_event_source_mapping(UUID=stack.resources["Mapping"])
    return dict(found)


def test_the_function_has_the_documented_runtime_and_size(alone: Stack) -> None:
    found = configuration(alone)
    assert {
        name: found[name]
        for name in ("Runtime", "Handler", "MemorySize", "Timeout", "Architectures")
    } == {
        "Runtime": "python3.13",
        "Handler": "app.lambda_handler.handler",
        "MemorySize": 512,
        "Timeout": 30,
        "Architectures": ["x86_64"],
    }


def test_the_function_knows_its_queues_and_its_secret(alone: Stack, queues: Stack) -> None:
    variables = configuration(alone)["Environment"]["Variables"]
    assert {name: str(value) for name, value in variables.items()} == {
        "AWS_SQS_QUEUE_URL": queues.outputs["QueueUrl"],
        "AWS_SQS_DLQ_URL": queues.outputs["DeadLetterQueueUrl"],
        "SQS_MAX_RECEIVE_COUNT": "10",
        "MONGO_SECRET_ARN": SECRET,
        "LOG_LEVEL": "INFO",
    }


def test_the_trigger_takes_what_the_function_returns_for_failures_alone(
    alone: Stack, queues: Stack
) -> None:
    found = mapping(alone)
    assert found["EventSourceArn"] == queues.outputs["QueueArn"]
    assert found["BatchSize"] == 10
    assert found["MaximumBatchingWindowInSeconds"] == 30
    assert found["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert found["ScalingConfig"] == {"MaximumConcurrency": 10}


def test_the_log_group_is_the_functions_own_and_forgets(alone: Stack) -> None:
    group = f"/aws/lambda/{alone.name}"
    assert configuration(alone)["LoggingConfig"] == {"LogGroup": group}
    (found,) = alone.cloud.client("logs").describe_log_groups(logGroupNamePrefix=group)["logGroups"]
    assert found["retentionInDays"] == 30


def test_the_role_may_handle_messages_read_the_secret_and_log_and_nothing_else(
    alone: Stack, queues: Stack
) -> None:
    iam, name = alone.cloud.client("iam"), alone.resources["FunctionRole"]
    attached = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
    assert [each["PolicyArn"] for each in attached] == [queues.outputs["ConsumerPolicyArn"]]
    assert iam.list_role_policies(RoleName=name)["PolicyNames"] == ["function"]
    inline = iam.get_role_policy(RoleName=name, PolicyName="function")["PolicyDocument"]
    assert [(each["Action"], each["Resource"]) for each in inline["Statement"]] == [
        ("secretsmanager:GetSecretValue", SECRET),
        (
            ["logs:CreateLogStream", "logs:PutLogEvents"],
            f"arn:aws:logs:us-east-1:{ACCOUNT}:log-group:/aws/lambda/{alone.name}",
        ),
    ]
    role = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]["Statement"]
    assert [each["Principal"] for each in role] == [{"Service": "lambda.amazonaws.com"}]


def test_without_keys_there_is_no_api(alone: Stack) -> None:
    assert "ApiUrl" not in alone.outputs
    assert not [name for name in alone.resources if name.startswith("Api")]


# The HTTP API -------------------------------------------------------------------------------------


def test_each_request_of_the_api_invokes_its_function(with_api: Stack) -> None:
    api = with_api.cloud.client("apigatewayv2")
    id_ = with_api.resources["Api"]
    (route,) = api.get_routes(ApiId=id_)["Items"]
    (integration,) = api.get_integrations(ApiId=id_)["Items"]
    (stage,) = api.get_stages(ApiId=id_)["Items"]
    assert route["RouteKey"] == "$default"
    assert route["Target"] == f"integrations/{integration['IntegrationId']}"
    assert integration["IntegrationUri"] == configuration(with_api, "ApiFunction")["FunctionArn"]
    assert integration["IntegrationType"] == "AWS_PROXY"
    assert integration["PayloadFormatVersion"] == "2.0"
    assert (stage["StageName"], stage["AutoDeploy"]) == ("$default", True)
    assert with_api.outputs["ApiUrl"] == api.get_api(ApiId=id_)["ApiEndpoint"]


def test_api_gateway_may_invoke_the_function_for_this_api_alone(with_api: Stack) -> None:
    found = with_api.cloud.client("lambda").get_policy(
        FunctionName=with_api.resources["ApiFunction"]
    )
    (statement,) = json.loads(found["Policy"])["Statement"]
    assert statement["Principal"] == {"Service": "apigateway.amazonaws.com"}
    api = f"arn:aws:execute-api:us-east-1:{ACCOUNT}:{with_api.resources['Api']}/*"
    assert statement["Condition"]["ArnLike"]["AWS:SourceArn"] == api


def test_the_api_may_send_and_count_and_read_its_secrets(with_api: Stack, queues: Stack) -> None:
    iam, name = with_api.cloud.client("iam"), with_api.resources["ApiRole"]
    attached = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
    assert sorted(each["PolicyArn"] for each in attached) == sorted(
        queues.outputs[policy] for policy in ("ProducerPolicyArn", "ReaderPolicyArn")
    )
    inline = iam.get_role_policy(RoleName=name, PolicyName="function")["PolicyDocument"]
    assert inline["Statement"][0]["Resource"] == [SECRET, KEYS]


def test_with_the_api_messages_are_not_gathered(with_api: Stack) -> None:
    assert mapping(with_api)["MaximumBatchingWindowInSeconds"] == 0
    assert configuration(with_api, "ApiFunction")["Handler"] == "app.api_handler.handler"


# Changes ------------------------------------------------------------------------------------------


def test_a_stack_that_is_deployed_again_does_not_change(alone: Stack) -> None:
    assert alone.deploy() == []


def test_the_window_and_the_concurrency_are_changed_in_place(
    cloud: Cloud, queues: Stack, code: Mapping[str, str]
) -> None:
    stack = cloud.stack("function.yaml", QueueStack=queues.name, **code)
    id_ = stack.resources["Mapping"]
    assert stack.deploy(BatchingWindow="5", MaximumConcurrency="20") == ["Mapping"]
    assert stack.resources["Mapping"] == id_
    found = mapping(stack)
    assert found["MaximumBatchingWindowInSeconds"] == 5
    assert found["ScalingConfig"] == {"MaximumConcurrency": 20}


def test_a_function_that_is_switched_off_needs_no_queue_of_a_function(
    cloud: Cloud, queues: Stack, code: Mapping[str, str]
) -> None:
    stack = cloud.stack("function.yaml", QueueStack=queues.name, **code)
    assert stack.deploy(Trigger="off") == ["Mapping", "PausePolicy"]
    assert "Mapping" not in stack.resources
    for_a_worker = queue(cloud, "worker")
    assert cloud.stack("function.yaml", QueueStack=for_a_worker.name, Trigger="off", **code)


def test_a_trigger_on_the_queue_of_a_worker_is_refused(
    cloud: Cloud, code: Mapping[str, str]
) -> None:
    for_a_worker = queue(cloud, "worker")
    with pytest.raises(ClientError, match=f"{for_a_worker.name}-FunctionQueueArn"):
        cloud.stack("function.yaml", QueueStack=for_a_worker.name, **code)
