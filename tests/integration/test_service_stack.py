"""infra/service.yaml, deployed, and read back by the API of each service."""

import ast
import uuid
from typing import Any

import pytest

from tests.cloudformation.cloud import Cloud, Stack

pytestmark = pytest.mark.slow


def network(cloud: Cloud) -> dict[str, str]:
    found = cloud.stack("network.yaml").outputs
    assert found.pop("NatIpAddress")
    return found


def secret(cloud: Cloud) -> str:
    made = cloud.client("secretsmanager").create_secret(Name=uuid.uuid4().hex, SecretString="x")
    return str(made["ARN"])


@pytest.fixture(scope="module")
def queue(cloud: Cloud) -> Stack:
    return cloud.stack("queue.yaml", QueueName=f"q-{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def service(cloud: Cloud, queue: Stack) -> Stack:
    """All there is: from zero tasks, with the API and Flower."""
    certificate = cloud.client("acm").request_certificate(DomainName="*.example.com")
    return cloud.stack(
        "service.yaml",
        QueueStack=queue.name,
        ImageUri="registry.example.com/worker:1",
        MongoSecretArn=secret(cloud),
        MongoSecretKey="MONGO_URI",
        MinTasks="0",
        ScaleInProtection="true",
        CertificateArn=certificate["CertificateArn"],
        ApiHost="api.example.com",
        ApiKeysSecretArn=secret(cloud),
        FlowerHost="flower.example.com",
        FlowerLoginSecretArn=secret(cloud),
        **network(cloud),
    )


def task(service: Stack, name: str) -> dict[str, Any]:
    arn = service.resources[name]
    ecs = service.cloud.client("ecs")
    return dict(ecs.describe_task_definition(taskDefinition=arn)["taskDefinition"])


def test_the_worker_is_told_of_its_queues_and_its_secret(service: Stack, queue: Stack) -> None:
    found = task(service, "WorkerTask")
    (container,) = found["containerDefinitions"]
    given = {each["name"]: each["value"] for each in container["environment"]}
    assert given["AWS_SQS_QUEUE_URL"] == queue.outputs["QueueUrl"]
    assert given["AWS_SQS_DLQ_URL"] == queue.outputs["DeadLetterQueueUrl"]
    assert given["ECS_SCALE_IN_PROTECTION"] == "true"
    arn = service.given["MongoSecretArn"]
    assert container["secrets"] == [{"name": "MONGO_URI", "valueFrom": f"{arn}:MONGO_URI::"}]
    assert (container["stopTimeout"], container["healthCheck"]["startPeriod"]) == (120, 60)
    assert found["requiresCompatibilities"] == ["FARGATE"]


def test_the_services_run_on_fargate_in_the_network(service: Stack) -> None:
    cluster = service.outputs["ClusterName"]
    ecs = service.cloud.client("ecs")
    found = {
        each["serviceName"]: each
        for each in ecs.describe_services(cluster=cluster, services=["worker", "api", "flower"])[
            "services"
        ]
    }
    assert set(found) == {"worker", "api", "flower"}
    for each in found.values():
        assert each["launchType"] == "FARGATE"
        config = each["networkConfiguration"]["awsvpcConfiguration"]
        assert config["subnets"] == service.given["TaskSubnetIds"].split(",")
    for name, port in (("api", 8000), ("flower", 5555)):
        (target,) = found[name]["loadBalancers"]
        assert (target["containerName"], target["containerPort"]) == (name, port)


def test_all_tasks_are_in_the_groups_that_mongodb_may_know(service: Stack) -> None:
    cluster, web = service.outputs["ClusterName"], service.resources["WebSecurityGroup"]
    given = set(service.given["TaskSecurityGroupIds"].split(","))
    found = {
        each["serviceName"]: set(
            each["networkConfiguration"]["awsvpcConfiguration"]["securityGroups"]
        )
        for each in service.cloud.client("ecs").describe_services(
            cluster=cluster, services=["worker", "api", "flower"]
        )["services"]
    }
    assert found == {"worker": given, "api": {web, *given}, "flower": {web, *given}}


def test_the_scaling_policies_are_those_of_a_service_from_zero(
    service: Stack, queue: Stack
) -> None:
    scaling = service.cloud.client("application-autoscaling")
    resource = f"service/{service.outputs['ClusterName']}/worker"
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="ecs", ResourceIds=[resource])[
        "ScalableTargets"
    ]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (0, 10)
    policies = {
        each["PolicyName"]: each
        for each in scaling.describe_scaling_policies(ServiceNamespace="ecs", ResourceId=resource)[
            "ScalingPolicies"
        ]
    }
    assert set(policies) == {"backlog-per-task", "flow-per-task", "wake"}
    tracking = policies["backlog-per-task"]["TargetTrackingScalingPolicyConfiguration"]
    metrics = {each["Id"]: each for each in tracking["CustomizedMetricSpecification"]["Metrics"]}
    dimensions = metrics["inflight"]["MetricStat"]["Metric"]["Dimensions"]
    assert dimensions == [{"Name": "QueueName", "Value": queue.outputs["QueueName"]}]
    (alarm,) = service.cloud.client("cloudwatch").describe_alarms(
        AlarmNames=[service.resources["WakeAlarm"]]
    )["MetricAlarms"]
    assert alarm["AlarmActions"] == [policies["wake"]["PolicyARN"]]


def test_the_load_balancer_serves_each_host_by_tls_and_nothing_else(service: Stack) -> None:
    elb = service.cloud.client("elbv2")
    balancer = service.resources["Balancer"]
    (listener,) = elb.describe_listeners(LoadBalancerArn=balancer)["Listeners"]
    assert (listener["Protocol"], listener["Port"]) == ("HTTPS", 443)
    assert listener["DefaultActions"][0]["Type"] == "fixed-response"
    rules = elb.describe_rules(ListenerArn=listener["ListenerArn"])["Rules"]
    hosts = [
        condition["HostHeaderConfig"]["Values"]
        for rule in rules
        for condition in rule["Conditions"]
    ]
    assert sorted(hosts) == [["api.example.com"], ["flower.example.com"]]
    paths = {
        each["HealthCheckPath"]
        for each in elb.describe_target_groups(LoadBalancerArn=balancer)["TargetGroups"]
    }
    assert paths == {"/readyz", "/healthcheck"}


def test_each_role_has_the_policies_of_its_part(service: Stack, queue: Stack) -> None:
    iam = service.cloud.client("iam")
    expected = {
        "WorkerRole": ["ConsumerPolicyArn"],
        "ApiRole": ["ProducerPolicyArn", "ReaderPolicyArn"],
        "FlowerRole": ["OperatorPolicyArn"],
        "ExecutionRole": [],
    }
    for name, outputs in expected.items():
        role = service.resources[name]
        attached = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        arns = {each["PolicyArn"] for each in attached}
        assert arns == {queue.outputs[output] for output in outputs}
    found = iam.get_role_policy(
        RoleName=service.resources["ExecutionRole"], PolicyName="start-tasks"
    )["PolicyDocument"]
    # moto returns how Python writes the document that a template has given it.
    document = ast.literal_eval(found) if isinstance(found, str) else found
    secrets = [
        each["Resource"]
        for each in document["Statement"]
        if each["Action"] == "secretsmanager:GetSecretValue"
    ]
    names = ("MongoSecretArn", "ApiKeysSecretArn", "FlowerLoginSecretArn")
    assert secrets == [[service.given[name] for name in names]]


def test_without_hosts_there_is_only_the_worker(cloud: Cloud, queue: Stack) -> None:
    bare = cloud.stack(
        "service.yaml",
        QueueStack=queue.name,
        ImageUri="registry.example.com/worker:1",
        MongoSecretArn=secret(cloud),
        **network(cloud),
    )
    assert set(bare.resources) == {
        "Cluster", "WorkerLogs", "ExecutionRole", "WorkerRole", "WorkerTask", "Worker",
        "ScalableTarget", "BacklogPolicy", "FlowPolicy",
    }  # fmt: skip
    assert bare.deploy() == []
    assert bare.deploy(MaxTasks="20") == ["ScalableTarget"]


def test_a_queue_of_a_function_is_refused(cloud: Cloud) -> None:
    queue = cloud.stack("queue.yaml", QueueName=f"q-{uuid.uuid4().hex[:8]}", Consumer="function")
    with pytest.raises(Exception, match="WorkerQueueArn"):
        cloud.stack(
            "service.yaml",
            QueueStack=queue.name,
            ImageUri="registry.example.com/worker:1",
            MongoSecretArn=secret(cloud),
            **network(cloud),
        )
