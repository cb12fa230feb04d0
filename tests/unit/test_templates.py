"""The templates of infra/: what cfn-lint does not find, and what must agree with the settings."""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from app.api_handler import LONGEST_WAIT, RESERVE
from app.settings import FunctionSettings, Settings
from infra.function_zip import PYTHON
from sqs_broker.limits import LONGEST_RETENTION
from sqs_broker.rules.policy import SPARE_DELIVERIES
from tests.cloudformation.rules import faults
from tests.cloudformation.template import INFRA, defaults, fold, parse, read

TEMPLATES = sorted(path.name for path in INFRA.glob("*.yaml"))


def choices(template: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All combinations of the parameters that have a list of values, with the defaults and an
    invented value for the others."""
    parameters = template.get("Parameters", {})
    invented = dict.fromkeys(parameters, "value") | defaults(template)
    listed = {
        name: each["AllowedValues"] for name, each in parameters.items() if "AllowedValues" in each
    }
    for values in itertools.product(*listed.values()):
        yield invented | dict(zip(listed, values, strict=True))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_breaks_no_rule_whatever_its_parameters_are(name: str) -> None:
    template = read(name)
    for parameters in choices(template):
        assert list(faults(fold(template, parameters))) == [], parameters


BAD = """
Resources:
  Queue: {Type: AWS::SQS::Queue, Properties: {VisibilityTimeout: 100, %s}}
  Function: {Type: AWS::Lambda::Function, Properties: {Timeout: 30%s}}
  Trigger:
    Type: AWS::Lambda::EventSourceMapping
    Properties: {EventSourceArn: !GetAtt Queue.Arn, FunctionName: !Ref Function%s}
"""
OK = ("SqsManagedSseEnabled: true", "", ", FunctionResponseTypes: [ReportBatchItemFailures]")


def only(type_: str, properties: str) -> str:
    return f"Resources: {{It: {{Type: {type_}, Properties: {properties}}}}}"


def policy(actions: str, resource: str = "arn:aws:sqs:us-east-1:1:q") -> str:
    statement = f'{{Effect: Allow, Action: {actions}, Resource: "{resource}"}}'
    return only("AWS::IAM::ManagedPolicy", f"{{PolicyDocument: {{Statement: [{statement}]}}}}")


def alarm(metric: str, dimensions: str = "[{Name: QueueName, Value: q}]") -> str:
    given = f"Namespace: AWS/SQS, MetricName: {metric}, Dimensions: {dimensions}"
    return only("AWS::CloudWatch::Alarm", f"{{AlarmActions: [t], {given}}}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (BAD % OK, "Trigger: the visibility timeout must be at least 180 s"),
        (
            only("AWS::SQS::Queue", "{KmsMasterKeyId: k, RedrivePolicy: {maxReceiveCount: 0}}"),
            "It: maxReceiveCount must be at least 1",
        ),
        (only("AWS::SQS::Queue", "{SqsManagedSseEnabled: false}"), "It: it is not encrypted"),
        (
            only(
                "AWS::Lambda::EventSourceMapping",
                "{EventSourceArn: q, FunctionName: f, BatchSize: 100, "
                "FunctionResponseTypes: [ReportBatchItemFailures]}",
            ),
            "It: a batch of more than 10 needs a window",
        ),
        (
            only("AWS::Lambda::EventSourceMapping", "{EventSourceArn: q, FunctionName: f}"),
            "It: without ReportBatchItemFailures, Lambda deletes messages that failed",
        ),
        (
            only("AWS::Lambda::Function", "{ReservedConcurrentExecutions: 5}"),
            "It: the throttles of reserved concurrency use up deliveries",
        ),
        (
            only("AWS::ECS::TaskDefinition", "{ContainerDefinitions: [{StopTimeout: 600}]}"),
            "It: StopTimeout is at most 120 s",
        ),
        (
            only("AWS::CloudWatch::Dashboard", '{DashboardBody: !Sub "{not json"}'),
            "It: DashboardBody is not JSON",
        ),
        (alarm("NoSuchMetric"), "It: nobody emits AWS/SQS NoSuchMetric"),
        (
            alarm("NumberOfMessagesSent", "[]"),
            "It: AWS/SQS NumberOfMessagesSent has the dimensions ['QueueName']",
        ),
        (policy("sqs:*"), "It: sqs:*: name each action"),
        (policy("sqs:SendMessage", "*"), "It: sqs:SendMessage: name the resource"),
        (
            policy("cloudwatch:PutMetricData", "*"),
            "It: cloudwatch:PutMetricData: name the namespace",
        ),
    ],
)
def test_each_rule_finds_what_breaks_it(text: str, fault: str) -> None:
    assert list(faults(fold(parse(text), {}))) == [fault]


# What must agree ----------------------------------------------------------------------------------


def queues(**parameters: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    resources = fold(read("queue.yaml"), parameters)
    return resources["Queue"]["Properties"], resources["DeadLetterQueue"]["Properties"]


def test_the_queue_agrees_with_the_default_settings() -> None:
    queue, _ = queues()
    settings = Settings()
    assert queue["VisibilityTimeout"] == settings.visibility_timeout
    assert queue["RedrivePolicy"]["maxReceiveCount"] == settings.sqs_max_receive_count
    assert queue["ReceiveMessageWaitTimeSeconds"] == settings.sqs_wait_time
    assert queue["MaximumMessageSize"] == settings.sqs_max_message_bytes


@pytest.mark.parametrize("name", ["queue.yaml", "function.yaml"])
def test_the_fewest_deliveries_leave_room_for_the_attempts_of_the_default_settings(
    name: str,
) -> None:
    parameter = read(name)["Parameters"]["MaxReceiveCount"]
    assert parameter["MinValue"] == Settings().sqs_max_attempts + SPARE_DELIVERIES
    assert parameter["Default"] == Settings().sqs_max_receive_count


def function(**parameters: str) -> Mapping[str, Any]:
    return fold(read("function.yaml"), parameters)


@pytest.mark.parametrize("window", [str(seconds) for seconds in range(31)])
def test_the_visibility_timeout_is_six_timeouts_and_the_window(window: str) -> None:
    queue, _ = queues(Consumer="function")
    resources = function(BatchingWindow=window)
    mapping, timeout = resources["Mapping"]["Properties"], resources["Function"]["Properties"]
    least = 6 * timeout["Timeout"] + int(mapping["MaximumBatchingWindowInSeconds"])
    assert least <= int(queue["VisibilityTimeout"])


@pytest.mark.parametrize("window", ["31", "40", "300", "-1", "1.5", "x"])
def test_a_longer_window_is_refused(window: str) -> None:
    pattern = read("function.yaml")["Parameters"]["BatchingWindow"]["AllowedPattern"]
    assert not re.fullmatch(pattern, window)


def test_the_window_is_30_seconds_but_none_with_the_api() -> None:
    alone, with_api = function(), function(ApiKeysSecretArn="arn")
    assert alone["Mapping"]["Properties"]["MaximumBatchingWindowInSeconds"] == 30
    assert with_api["Mapping"]["Properties"]["MaximumBatchingWindowInSeconds"] == 0


def test_the_functions_get_only_variables_that_are_settings() -> None:
    known = {name.upper() for model in (Settings, FunctionSettings) for name in model.model_fields}
    resources = function(ApiKeysSecretArn="arn")
    for name in ("Function", "ApiFunction"):
        assert set(resources[name]["Properties"]["Environment"]["Variables"]) <= known


def test_the_functions_log_at_the_level_that_is_given() -> None:
    resources = function(ApiKeysSecretArn="arn", LogLevel="WARNING")
    for name in ("Function", "ApiFunction"):
        variables = resources[name]["Properties"]["Environment"]["Variables"]
        assert variables["LOG_LEVEL"] == "WARNING"


@pytest.mark.parametrize("name", ["Function", "ApiFunction"])
def test_a_handler_exists(name: str) -> None:
    properties = function(ApiKeysSecretArn="arn")[name]["Properties"]
    module, _, handler = properties["Handler"].rpartition(".")
    path = INFRA.parent.joinpath(*module.split(".")).with_suffix(".py")
    assert f"\n{handler} = " in path.read_text()
    assert properties["Runtime"] == f"python{PYTHON}"


def test_api_gateway_waits_longer_than_the_api_holds_an_answer() -> None:
    resources = function(ApiKeysSecretArn="arn")
    timeout = resources["ApiFunction"]["Properties"]["Timeout"]
    integration = resources["ApiIntegration"]["Properties"]
    assert LONGEST_WAIT + RESERVE < timeout <= integration["TimeoutInMillis"] / 1000 <= 30


def test_the_dead_letter_queue_keeps_messages_as_long_as_sqs_can() -> None:
    queue, dead = queues()
    assert dead["MessageRetentionPeriod"] == LONGEST_RETENTION > queue["MessageRetentionPeriod"]
    assert dead["MaximumMessageSize"] == queue["MaximumMessageSize"]


@pytest.mark.parametrize("name", ["Queue", "DeadLetterQueue", "Key"])
def test_what_holds_messages_is_retained_but_not_if_its_creation_fails(name: str) -> None:
    resource = read("queue.yaml")["Resources"][name]
    assert resource["DeletionPolicy"] == "RetainExceptOnCreate"
    # A queue that is replaced still has its messages.
    assert resource["UpdateReplacePolicy"] == "Retain"
