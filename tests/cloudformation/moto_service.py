"""What moto's CloudFormation lacks for infra/service.yaml and infra/network.yaml.

It has no scaling, and of an ECS service it keeps the name, the task definition and the number of
tasks only. Here each of them is made by a call to moto's own API, whose parameters botocore checks.
"""

import ipaddress
import json
from typing import Any

from moto.cloudformation import parsing
from moto.cloudformation.exceptions import ValidationError
from moto.cloudformation.models import CloudFormationBackend
from moto.cloudformation.responses import CloudFormationResponse
from moto.core.common_models import CloudFormationModel
from moto.ec2.models.route_tables import RouteTable
from moto.ecs.models import Cluster, Service, TaskDefinition, ecs_backends
from moto.iam.models import Role
from moto.kms.models import Key, kms_backends
from moto.sqs.models import Queue, sqs_backends

from tests.cloudformation.moto_types import Properties, _Made, client

#: Properties of a template that are numbers in the API, where a parameter is text.
NUMBERS = {
    "containerPort", "desiredCount", "healthCheckGracePeriodSeconds", "interval", "maximumPercent",
    "minimumHealthyPercent", "retries", "startPeriod", "stopTimeout", "timeout",
}  # fmt: skip

#: Properties whose keys are names of a user, not of a property.
FREE = {"options"}


class ScalableTarget(_Made, CloudFormationModel):
    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::ApplicationAutoScaling::ScalableTarget"

    @classmethod
    def make(cls, name: str, given: Properties, region: str, old: _Made | None) -> Any:
        numbers = {key: int(given[key]) for key in ("MinCapacity", "MaxCapacity")}
        client("application-autoscaling", region).register_scalable_target(**given | numbers)
        parts = (given["ResourceId"], given["ScalableDimension"], given["ServiceNamespace"])
        return cls("|".join(parts))


class ScalingPolicy(_Made, CloudFormationModel):
    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::ApplicationAutoScaling::ScalingPolicy"

    @classmethod
    def make(cls, name: str, given: Properties, region: str, old: _Made | None) -> Any:
        properties = {**given}
        resource, dimension, namespace = properties.pop("ScalingTargetId").split("|")
        for key in ("ScaleOutCooldown", "ScaleInCooldown", "TargetValue"):
            if key in (tracking := properties.get("TargetTrackingScalingPolicyConfiguration", {})):
                properties["TargetTrackingScalingPolicyConfiguration"] = tracking = {
                    **tracking,
                    key: float(tracking[key]) if key == "TargetValue" else int(tracking[key]),
                }
        made = client("application-autoscaling", region).put_scaling_policy(
            ResourceId=resource,
            ScalableDimension=dimension,
            ServiceNamespace=namespace,
            **properties,
        )
        return cls(made["PolicyARN"])


def _camel(given: Any, key: str = "") -> Any:
    """Properties of a template as parameters of ECS's API."""
    if isinstance(given, dict):
        names = {name: name if key in FREE else name[0].lower() + name[1:] for name in given}
        return {names[name]: _camel(value, names[name]) for name, value in given.items()}
    if isinstance(given, list):
        return [_camel(each, key) for each in given]
    if key in NUMBERS:
        return int(given)
    return str(given) if key in ("cpu", "memory", "value") and given is not True else given


def _task_definition(
    cls: Any, name: str, given: Properties, account: str, region: str, **_: Any
) -> Any:
    made = client("ecs", region).register_task_definition(**_camel(given["Properties"]))
    family, revision = made["taskDefinition"]["family"], made["taskDefinition"]["revision"]
    return ecs_backends[account][region].task_definitions[family][revision]


def _changed_task_definition(
    cls: Any, original: Any, name: str, given: Properties, account: str, region: str
) -> Any:
    return _task_definition(cls, name, given, account, region)


def _service(cls: Any, name: str, given: Properties, account: str, region: str, **_: Any) -> Any:
    properties = _camel(given["Properties"])
    # As CloudFormation does for a new service.
    properties.setdefault("desiredCount", 1)
    made = client("ecs", region).create_service(**properties)["service"]
    return _found(account, region, made["serviceArn"])


def _changed_service(
    cls: Any, original: Any, name: str, given: Properties, account: str, region: str
) -> Any:
    properties = _camel(given["Properties"])
    changes = {
        key: value
        for key, value in properties.items()
        if key in ("cluster", "taskDefinition", "desiredCount")
    }
    made = client("ecs", region).update_service(service=properties["serviceName"], **changes)
    return _found(account, region, made["service"]["serviceArn"])


def _found(account: str, region: str, arn: str) -> Any:
    services = ecs_backends[account][region].services.values()
    (found,) = (service for service in services if service.arn == arn)
    return found


def _cluster(make: Any) -> Any:
    def create(cls: Any, name: str, given: Properties, account: str, region: str, **kw: Any) -> Any:
        cluster = make(cls, name, given, account, region, **kw)
        cluster.settings = _camel(given["Properties"].get("ClusterSettings", []))
        return cluster

    return create


def _with_cidr(clean: Any) -> Any:
    def cleaned(given: Any, resources: Any) -> Any:
        if not (isinstance(given, dict) and "Fn::Cidr" in given):
            return clean(given, resources)
        block, count, bits = (cleaned(each, resources) for each in given["Fn::Cidr"])
        subnets = ipaddress.ip_network(block).subnets(new_prefix=32 - int(bits))
        return [str(subnet) for subnet, _ in zip(subnets, range(int(count)), strict=False)]

    return cleaned


def _exporting(execute: Any) -> Any:
    def executed(self: Any, change_set_name: str, stack_name: str | None = None) -> None:
        (made,) = (
            each
            for each in self.change_sets.values()
            if change_set_name in (each.change_set_id, each.change_set_name)
        )
        stack = self.stacks[made.stack_id]
        stack.resource_map.cross_stack_resources = self.exports
        execute(self, change_set_name, stack_name)
        stack._parse_template()
        stack.output_map = stack._create_output_map()
        self.exports |= {export.name: export for export in stack.exports}

    return executed


#: The identifiers of the resources that a new stack imports, by the names of the two.
_importing: dict[tuple[str, str], dict[str, str]] = {}


def _noting_import(create: Any) -> Any:
    def noted(self: Any) -> Any:
        stack, imported = self._get_param("StackName"), self._get_param("ResourcesToImport", [])
        for each in imported:
            _importing[stack, each["LogicalResourceId"]] = dict(each["ResourceIdentifier"])
        if self._get_param("ChangeSetType") == "IMPORT":
            _check_import(self._get_param("TemplateBody"), imported)
        made = create(self)
        if imported:
            for change in list(self.cloudformation_backend.change_sets.values())[-1].changes:
                change.action = "Import"
        return made

    return noted


def _check_import(template: str, imported: list[dict[str, Any]]) -> None:
    """What CloudFormation refuses in an import:
    https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/import-resources-manually.html
    """
    given = json.loads(template)
    if "Outputs" in given:
        message = "As part of the import operation, you cannot modify or add [Outputs]"
        raise ValidationError(message=message)
    if set(given["Resources"]) != {each["LogicalResourceId"] for each in imported}:
        raise ValidationError(message="You can only import resources in an import operation.")
    if any("DeletionPolicy" not in resource for resource in given["Resources"].values()):
        raise ValidationError(message="Resources to import must have a DeletionPolicy.")


def _importing_queue(make: Any) -> Any:
    def create(cls: Any, name: str, given: Properties, account: str, region: str, **kw: Any) -> Any:
        existing = sqs_backends[account][region].queues.get(name)
        identifier = _importing.get((kw["StackId"].split("/")[1], kw["LogicalId"]), {})
        if existing is None:
            return make(cls, name, given, account, region, **kw)
        if identifier.get("QueueUrl", "").endswith(f"/{account}/{name}"):
            return existing
        raise ValidationError(message=f"{name} already exists")

    return create


def _importing_key(make: Any) -> Any:
    def create(cls: Any, name: str, given: Properties, account: str, region: str, **kw: Any) -> Any:
        identifier = _importing.get((kw["StackId"].split("/")[1], kw["LogicalId"]))
        if identifier is None:
            return make(cls, name, given, account, region, **kw)
        return kms_backends[account][region].keys[identifier["KeyId"]]

    return create


def _unused_table(cls: Any, name: str, given: Properties, account: str, region: str) -> None:
    ec2 = client("ec2", region)
    (table,) = ec2.describe_route_tables(RouteTableIds=[name])["RouteTables"]
    for association in table["Associations"]:
        if not association.get("Main"):
            ec2.disassociate_route_table(AssociationId=association["RouteTableAssociationId"])
    ec2.delete_route_table(RouteTableId=name)


def _changed_key(
    cls: Any,
    original_resource: Any,
    new_resource_name: str,
    cloudformation_json: Properties,
    account_id: str,
    region_name: str,
) -> Any:
    given = cloudformation_json["Properties"]
    kms, id_ = client("kms", region_name), original_resource.id
    policy = json.dumps(given["KeyPolicy"])
    kms.put_key_policy(KeyId=id_, PolicyName="default", Policy=policy)
    kms.update_key_description(KeyId=id_, Description=given["Description"])
    return original_resource


def _detaching(delete: Any) -> Any:
    def deleted(cls: Any, name: str, given: Properties, account: str, region: str) -> None:
        iam = client("iam", region)
        attached = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
        for policy in attached:
            iam.detach_role_policy(RoleName=name, PolicyArn=policy["PolicyArn"])
        delete(cls, name, given, account, region)

    return deleted


def _keeping_policy(set_attributes: Any) -> Any:
    def changed(self: Any, attributes: Any, now: Any = None) -> None:
        policy = getattr(self, "policy", None)
        set_attributes(self, attributes, now)
        if "Policy" not in attributes:
            self.policy = policy

    return changed


def complete() -> None:
    """Make moto keep what it drops, know `Fn::Cidr`, export what a change set has made, import
    what exists and make no queue twice, and delete roles that have policies and route tables."""
    # A change of another attribute would delete the policy.
    queue: Any = Queue
    queue._set_attributes = _keeping_policy(queue._set_attributes)
    responses: Any = CloudFormationResponse
    responses.create_change_set = _noting_import(responses.create_change_set)
    backend: Any = CloudFormationBackend
    backend.execute_change_set = _exporting(backend.execute_change_set)
    parsing.clean_json = _with_cidr(parsing.clean_json)
    models: list[tuple[Any, str, Any]] = [
        (Queue, "create_from_cloudformation_json",
         _importing_queue(Queue.create_from_cloudformation_json.__func__)),
        (Key, "create_from_cloudformation_json",
         _importing_key(Key.create_from_cloudformation_json.__func__)),
        (Key, "update_from_cloudformation_json", _changed_key),
        (Role, "delete_from_cloudformation_json",
         _detaching(Role.delete_from_cloudformation_json.__func__)),
        (RouteTable, "delete_from_cloudformation_json", _unused_table),
        (TaskDefinition, "create_from_cloudformation_json", _task_definition),
        (TaskDefinition, "update_from_cloudformation_json", _changed_task_definition),
        (Service, "create_from_cloudformation_json", _service),
        (Service, "update_from_cloudformation_json", _changed_service),
        (Cluster, "create_from_cloudformation_json",
         _cluster(Cluster.create_from_cloudformation_json.__func__)),
    ]  # fmt: skip
    for model, name, made in models:
        setattr(model, name, classmethod(made))
