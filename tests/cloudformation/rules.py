"""What a template must not contain, and what cfn-lint does not find."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sqs_broker.observers.metrics import DIMENSION, NAMESPACE, UNITS
from sqs_broker.tools import pause_metric

Resources = Mapping[str, Any]

#: Longest stop timeout of a container on Fargate, in seconds:
#: https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ContainerDefinition.html
LONGEST_STOP = 120

#: Records of a batch that need no batching window:
#: https://docs.aws.amazon.com/lambda/latest/api/API_CreateEventSourceMapping.html
MOST_WITHOUT_WINDOW = 10

#: Actions for which AWS knows no resources:
#: https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
WITHOUT_RESOURCES = {
    "cloudwatch:GetMetricData",
    "ecr:GetAuthorizationToken",
    "lambda:ListEventSourceMappings",
}

#: As before, but a condition can limit them to a namespace:
#: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/iam-cw-condition-keys-namespace.html
BY_NAMESPACE = {"cloudwatch:PutMetricData"}

#: The metrics that AWS's services emit, as far as templates use them, with their sources. Those of
#: SQS and of Container Insights were compared with these pages on 2026-11-27:
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
#: https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html
#: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/cloudwatch-metrics.html
#: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/Container-Insights-metrics-ECS.html
#: https://docs.aws.amazon.com/sns/latest/dg/sns-monitoring-using-cloudwatch.html
EMITTED = {
    NAMESPACE: {*UNITS, pause_metric.METRIC},
    "AWS/SQS": {
        "ApproximateAgeOfOldestMessage",
        "ApproximateNumberOfMessagesDelayed",
        "ApproximateNumberOfMessagesNotVisible",
        "ApproximateNumberOfMessagesVisible",
        "NumberOfEmptyReceives",
        "NumberOfMessagesDeleted",
        "NumberOfMessagesReceived",
        "NumberOfMessagesSent",
        "SentMessageSize",
    },
    "AWS/Lambda": {"ConcurrentExecutions", "Duration", "Errors", "Invocations", "Throttles"},
    "AWS/ECS": {"CPUUtilization", "MemoryUtilization"},
    "ECS/ContainerInsights": {"DesiredTaskCount", "PendingTaskCount", "RunningTaskCount"},
    "AWS/ApplicationELB": {
        "HTTPCode_ELB_5XX_Count",
        "HTTPCode_Target_5XX_Count",
        "RequestCount",
        "TargetResponseTime",
        "UnHealthyHostCount",
    },
    "AWS/SNS": {"NumberOfMessagesPublished", "NumberOfNotificationsFailed"},
}

#: The dimensions of each namespace, as far as templates use them.
DIMENSIONS = {
    NAMESPACE: {DIMENSION},
    "AWS/SQS": {"QueueName"},
    "AWS/Lambda": {"FunctionName"},
}


def faults(resources: Resources) -> Iterator[str]:
    """The faults of the resources of a folded template."""
    for name, resource in resources.items():
        properties = resource.get("Properties", {})
        for check in CHECKS.get(resource["Type"], ()):
            for fault in check(properties, resources):
                yield f"{name}: {fault}"
        for statement in _statements(properties):
            for fault in _check_statement(statement):
                yield f"{name}: {fault}"


def _check_queue(queue: Mapping[str, Any], _: Resources) -> Iterator[str]:
    policy = queue.get("RedrivePolicy")
    if policy and int(policy["maxReceiveCount"]) < 1:
        yield "maxReceiveCount must be at least 1"
    if not (queue.get("SqsManagedSseEnabled") or queue.get("KmsMasterKeyId")):
        yield "it is not encrypted"


def _check_mapping(mapping: Mapping[str, Any], resources: Resources) -> Iterator[str]:
    window = int(mapping.get("MaximumBatchingWindowInSeconds", 0))
    if int(mapping.get("BatchSize", 10)) > MOST_WITHOUT_WINDOW and window < 1:
        yield "a batch of more than 10 needs a window"
    if mapping.get("FunctionResponseTypes") != ["ReportBatchItemFailures"]:
        yield "without ReportBatchItemFailures, Lambda deletes messages that failed"
    function = resources.get(_name_of(mapping["FunctionName"]) or "")
    queue = resources.get(_name_of(mapping["EventSourceArn"]) or "")
    if function and queue:
        timeout = int(function["Properties"].get("Timeout", 3))
        visibility = int(queue["Properties"].get("VisibilityTimeout", 30))
        if visibility < 6 * timeout + window:
            yield f"the visibility timeout must be at least {6 * timeout + window} s"


def _check_function(function: Mapping[str, Any], _: Resources) -> Iterator[str]:
    if "ReservedConcurrentExecutions" in function:
        yield "the throttles of reserved concurrency use up deliveries"


def _check_task(task: Mapping[str, Any], _: Resources) -> Iterator[str]:
    for container in task.get("ContainerDefinitions", ()):
        if int(container.get("StopTimeout", 30)) > LONGEST_STOP:
            yield f"StopTimeout is at most {LONGEST_STOP} s"


def _check_dashboard(dashboard: Mapping[str, Any], _: Resources) -> Iterator[str]:
    body = dashboard["DashboardBody"]
    while isinstance(body, dict):
        body = body["Fn::Sub"]
    try:
        json.loads(body if isinstance(body, str) else body[0])
    except ValueError:
        yield "DashboardBody is not JSON"


def _check_alarm(alarm: Mapping[str, Any], _: Resources) -> Iterator[str]:
    if "AlarmActions" not in alarm and "AlarmDescription" not in alarm:
        yield "nobody would know of it"


def _check_metrics(alarm: Mapping[str, Any], _: Resources) -> Iterator[str]:
    for metric in _metrics(alarm):
        namespace, name = metric["Namespace"], metric["MetricName"]
        if name not in EMITTED.get(namespace, ()):
            yield f"nobody emits {namespace} {name}"
        given = {each["Name"] for each in metric.get("Dimensions", ())}
        if namespace in DIMENSIONS and given != DIMENSIONS[namespace]:
            yield f"{namespace} {name} has the dimensions {sorted(DIMENSIONS[namespace])}"


def _metrics(given: Any) -> Iterator[Mapping[str, Any]]:
    """All metrics in a resource, wherever they are."""
    if isinstance(given, dict):
        if "Namespace" in given and "MetricName" in given:
            yield given
        for value in given.values():
            yield from _metrics(value)
    elif isinstance(given, list):
        for value in given:
            yield from _metrics(value)


def _statements(given: Any) -> Iterator[Mapping[str, Any]]:
    """All statements of the policies in a resource, except for those of a resource itself."""
    if isinstance(given, dict):
        if "Effect" in given and "Principal" not in given:
            yield given
        for value in given.values():
            yield from _statements(value)
    elif isinstance(given, list):
        for value in given:
            yield from _statements(value)


def _check_statement(statement: Mapping[str, Any]) -> Iterator[str]:
    actions = _list(statement.get("Action", []))
    if any("*" in action for action in actions):
        yield f"{', '.join(actions)}: name each action"
    if "*" in _list(statement.get("Resource", "*")):
        wanted = set(actions) - WITHOUT_RESOURCES
        if wanted & BY_NAMESPACE and "cloudwatch:namespace" not in str(statement.get("Condition")):
            yield f"{', '.join(actions)}: name the namespace"
        if wanted - BY_NAMESPACE:
            yield f"{', '.join(actions)}: name the resource"


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _name_of(reference: Any) -> str | None:
    """The logical name of the resource that is meant."""
    if not isinstance(reference, dict):
        return None
    if "Ref" in reference:
        return str(reference["Ref"])
    return str(reference["Fn::GetAtt"][0]) if "Fn::GetAtt" in reference else None


CHECKS = {
    "AWS::SQS::Queue": (_check_queue,),
    "AWS::Lambda::EventSourceMapping": (_check_mapping,),
    "AWS::Lambda::Function": (_check_function,),
    "AWS::ECS::TaskDefinition": (_check_task,),
    "AWS::CloudWatch::Dashboard": (_check_dashboard,),
    "AWS::CloudWatch::Alarm": (_check_alarm, _check_metrics),
    "AWS::ApplicationAutoScaling::ScalingPolicy": (_check_metrics,),
}
