"""The resource types that moto's CloudFormation skips without a word, and what it drops of others.

Each is made by a call to moto's own API, so that botocore checks the name and type of each
property. Import it in the server's process, before its first request: moto then lists the types.
It must be in a package, because moto takes the second part of a module's name for a service.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import boto3
from moto.awslambda.models import EventSourceMapping, LambdaFunction
from moto.cloudwatch.models import cloudwatch_backends
from moto.core.common_models import CloudFormationModel
from moto.core.utils import camelcase_to_underscores
from moto.ec2.models.subnets import SubnetRouteTableAssociation
from moto.iam.models import Role
from moto.kms.models import Key
from moto.sqs.models import Queue

from tests.cloudformation.moto_iam import ACCOUNT, KEY, SECRET

Properties = dict[str, Any]

#: The endpoint of this server.
ENDPOINT = "MOTO_OWN_ENDPOINT"


def client(service: str, region: str) -> Any:
    """A client of this server, as its owner."""
    return boto3.client(
        service,  # type: ignore[call-overload]  # the stubs accept literal names only
        region_name=region,
        endpoint_url=os.environ[ENDPOINT],
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )


class _Made:
    """A resource that one call made."""

    def __init__(self, id_: str, **attributes: str) -> None:
        self.id_, self.attributes = id_, attributes

    @property
    def physical_resource_id(self) -> str:
        return self.id_

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return True

    def get_cfn_attribute(self, attribute_name: str) -> str:
        return self.attributes[attribute_name]

    @classmethod
    def make(cls, name: str, given: Properties, region: str, old: "_Made | None") -> Any:
        raise NotImplementedError

    @classmethod
    def create_from_cloudformation_json(
        cls, name: str, given: Properties, account: str, region: str, **_: Any
    ) -> Any:
        return cls.make(name, _numbers(given["Properties"]), region, None)

    @classmethod
    def update_from_cloudformation_json(
        cls,
        original_resource: Any,
        new_resource_name: str,
        cloudformation_json: Properties,
        account_id: str,
        region_name: str,
    ) -> Any:
        given = _numbers(cloudformation_json["Properties"])
        return cls.make(new_resource_name, given, region_name, original_resource)

    @classmethod
    def delete_from_cloudformation_json(cls, *_: Any, **__: Any) -> None:
        pass


#: Properties that templates give as text, because a parameter is text.
_NUMBERS = {"Threshold": float, "Period": int, "EvaluationPeriods": int, "DatapointsToAlarm": int}


def _numbers(given: Any) -> Any:
    if isinstance(given, dict):
        return {
            name: _NUMBERS[name](value) if name in _NUMBERS else _numbers(value)
            for name, value in given.items()
        }
    return [_numbers(each) for each in given] if isinstance(given, list) else given


class QueuePolicy(_Made, CloudFormationModel):
    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::SQS::QueuePolicy"

    @classmethod
    def make(cls, name: str, given: Properties, region: str, old: _Made | None) -> Any:
        policy = {"Policy": json.dumps(given["PolicyDocument"])}
        for url in given["Queues"]:
            client("sqs", region).set_queue_attributes(QueueUrl=url, Attributes=policy)
        return cls(name)


class Subscription(_Made, CloudFormationModel):
    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::SNS::Subscription"

    @classmethod
    def make(cls, name: str, given: Properties, region: str, old: _Made | None) -> Any:
        attributes = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in given.items()
            if key not in ("TopicArn", "Protocol", "Endpoint")
        }
        made = client("sns", region).subscribe(
            TopicArn=given["TopicArn"],
            Protocol=given["Protocol"],
            Endpoint=given["Endpoint"],
            Attributes=attributes,
            ReturnSubscriptionArn=True,
        )
        return cls(made["SubscriptionArn"])


class _Alarm(_Made):
    @classmethod
    def put(cls, region: str) -> Callable[..., Any]:
        raise NotImplementedError

    @staticmethod
    def cloudformation_name_type() -> str:
        return "AlarmName"

    @classmethod
    def make(cls, name: str, given: Properties, region: str, old: _Made | None) -> Any:
        name = given.get("AlarmName") or (old.id_ if old else name)
        cls.put(region)(**{**given, "AlarmName": name})
        (alarm,) = _alarms(region, name)
        return cls(name, Arn=alarm["AlarmArn"])

    def delete(self, _: str, region: str) -> None:
        client("cloudwatch", region).delete_alarms(AlarmNames=[self.id_])


def _alarms(region: str, name: str) -> list[Properties]:
    found = client("cloudwatch", region).describe_alarms(AlarmNames=[name])
    return [*found["MetricAlarms"], *found["CompositeAlarms"]]


class Alarm(_Alarm, CloudFormationModel):
    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::CloudWatch::Alarm"

    @classmethod
    def put(cls, region: str) -> Callable[..., Any]:
        return client("cloudwatch", region).put_metric_alarm  # type: ignore[no-any-return]


class CompositeAlarm(_Alarm, CloudFormationModel):
    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::CloudWatch::CompositeAlarm"

    @classmethod
    def put(cls, region: str) -> Callable[..., Any]:
        """moto stores composite alarms, but has no call that makes one."""

        def put(**given: Any) -> None:
            for key in COMPOSITE - given.keys():
                given[key] = [] if key.endswith("Actions") else None
            assert given.keys() <= COMPOSITE, given.keys() - COMPOSITE
            alarm = cloudwatch_backends[ACCOUNT][region].put_metric_alarm(
                name=given["AlarmName"],
                description=given["AlarmDescription"],
                rule=given["AlarmRule"],
                alarm_actions=given["AlarmActions"],
                ok_actions=given["OKActions"],
                dimensions=[],
                **dict.fromkeys(OF_METRICS),
            )
            for key in SUPPRESSOR:
                setattr(alarm, camelcase_to_underscores(key), given[key])

        return put


#: The properties of a composite alarm, and those of a metric alarm that it lacks.
SUPPRESSOR = (
    "ActionsSuppressor",
    "ActionsSuppressorWaitPeriod",
    "ActionsSuppressorExtensionPeriod",
)
COMPOSITE = {
    "AlarmName", "AlarmDescription", "AlarmRule", "AlarmActions", "OKActions", *SUPPRESSOR
}  # fmt: skip
OF_METRICS: Any = (
    "namespace", "metric_name", "comparison_operator", "evaluation_periods", "period",
    "threshold", "statistic",
)  # fmt: skip


class _HttpApi(_Made):
    """A part of an HTTP API. What is changed is made anew."""

    #: The call that makes it, and the key of its id in the answer.
    call: str
    key: str

    @classmethod
    def make(cls, name: str, given: Properties, region: str, old: _Made | None) -> Any:
        made = getattr(client("apigatewayv2", region), cls.call)(**given)
        return cls(made[cls.key], ApiEndpoint=made.get("ApiEndpoint", ""))


class Api(_HttpApi, CloudFormationModel):
    call, key = "create_api", "ApiId"

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::ApiGatewayV2::Api"


class Integration(_HttpApi, CloudFormationModel):
    call, key = "create_integration", "IntegrationId"

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::ApiGatewayV2::Integration"


class Route(_HttpApi, CloudFormationModel):
    call, key = "create_route", "RouteId"

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::ApiGatewayV2::Route"


class Stage(_HttpApi, CloudFormationModel):
    call, key = "create_stage", "StageName"

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::ApiGatewayV2::Stage"


# What moto drops of types that it has ------------------------------------------------------------


def _with_policies(make: Any) -> Any:
    def create(cls: Any, name: str, given: Properties, account: str, region: str, **kw: Any) -> Any:
        role = make(cls, name, given, account, region, **kw)
        for policy, document in role.policies.items():
            role.policies[policy] = json.dumps(document)
        for arn in given["Properties"].get("ManagedPolicyArns", ()):
            client("iam", region).attach_role_policy(RoleName=role.name, PolicyArn=arn)
        return role

    return classmethod(create)


def _with_policy_as_text(make: Any) -> Any:
    def create(cls: Any, name: str, given: Properties, account: str, region: str, **kw: Any) -> Any:
        policy = json.dumps(given["Properties"]["KeyPolicy"])
        changed = {**given, "Properties": {**given["Properties"], "KeyPolicy": policy}}
        return make(cls, name, changed, account, region, **kw)

    return classmethod(create)


def _with_allow_policy(make: Any) -> Any:
    def create(cls: Any, name: str, given: Properties, account: str, region: str, **kw: Any) -> Any:
        queue = make(cls, name, given, account, region, **kw)
        if policy := given["Properties"].get("RedriveAllowPolicy"):
            queue.redrive_allow_policy = json.dumps(policy)
        return queue

    return classmethod(create)


def _attributes_with_allow_policy(get: Any) -> Any:
    def attributes(self: Any) -> Properties:
        found: Properties = get.fget(self)
        if policy := getattr(self, "redrive_allow_policy", None):
            found["RedriveAllowPolicy"] = policy
        return found

    return property(attributes)


def _with_all_attributes(update: Any) -> Any:
    def change(
        cls: Any,
        original_resource: Any,
        new_resource_name: str,
        cloudformation_json: Properties,
        account_id: str,
        region_name: str,
    ) -> Any:
        given = {**cloudformation_json["Properties"]}
        attributes = {
            name: json.dumps(value) if isinstance(value, dict) else str(value)
            for name, value in given.items()
            if name not in ("QueueName", "Tags", "SqsManagedSseEnabled")
        }
        client("sqs", region_name).set_queue_attributes(
            QueueUrl=original_resource.physical_resource_id, Attributes=attributes
        )
        return original_resource

    return classmethod(change)


def _with_logging(make: Any) -> Any:
    def create(cls: Any, name: str, given: Properties, account: str, region: str, **kw: Any) -> Any:
        function = make(cls, name, given, account, region, **kw)
        properties = given["Properties"]
        function.architectures = properties.get("Architectures", function.architectures)
        function.logging_config = properties.get("LoggingConfig")
        return function

    return classmethod(create)


def _configuration_with_logging(get: Any) -> Any:
    def configuration(self: Any, on_create: bool = False) -> Properties:
        config: Properties = get(self, on_create)
        if logging := getattr(self, "logging_config", None):
            config["LoggingConfig"] = logging
        return config

    return configuration


def _with_enabled(make: Any) -> Any:
    def create(cls: Any, name: str, given: Properties, account: str, region: str, **kw: Any) -> Any:
        mapping = make(cls, name, given, account, region, **kw)
        mapping.enabled = str(given["Properties"].get("Enabled", True)).lower() == "true"
        return mapping

    return classmethod(create)


def _associated(make: Any) -> Any:
    def create(cls: Any, name: str, given: Properties, account: str, region: str, **kw: Any) -> Any:
        properties = given["Properties"]
        client("ec2", region).associate_route_table(
            RouteTableId=properties["RouteTableId"], SubnetId=properties["SubnetId"]
        )
        return make(cls, name, given, account, region, **kw)

    return classmethod(create)


def complete() -> None:
    """Make moto keep what it drops."""
    models: list[tuple[Any, str, Any]] = [
        (Role, "create_from_cloudformation_json", _with_policies),
        (Key, "create_from_cloudformation_json", _with_policy_as_text),
        (Queue, "create_from_cloudformation_json", _with_allow_policy),
        (Queue, "update_from_cloudformation_json", _with_all_attributes),
        (LambdaFunction, "create_from_cloudformation_json", _with_logging),
        (EventSourceMapping, "create_from_cloudformation_json", _with_enabled),
        (SubnetRouteTableAssociation, "create_from_cloudformation_json", _associated),
    ]
    for model, name, wrap in models:
        setattr(model, name, wrap(getattr(model, name).__func__))
    queue: Any = Queue
    queue.attributes = _attributes_with_allow_policy(queue.attributes)
    configuration: Any = _configuration_with_logging(LambdaFunction.get_configuration)
    LambdaFunction.get_configuration = configuration  # type: ignore[method-assign]
