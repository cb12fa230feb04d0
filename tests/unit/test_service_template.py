"""infra/service.yaml: does it agree with the settings, and with how a worker stops and reports?"""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from app.api.server import STOP_SECONDS
from app.errors import SettingsError
from app.loader import check_flower
from app.settings import ApiSettings, EcsSettings, FlowerSettings, Settings, get_flower_settings
from infra.templates import MOST_BYTES, path_of, read
from sqs_broker.rules.policy import SPARE_DELIVERIES
from tests.cloudformation import template as templates

TEMPLATE = read("service")
RESOURCES: dict[str, Any] = dict(TEMPLATE["Resources"])
PARAMETERS: dict[str, Any] = dict(TEMPLATE["Parameters"])

#: Most seconds that Fargate waits between SIGTERM and SIGKILL.
#: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task_definition_parameters.html
MOST_STOP_TIMEOUT = 120

#: Seconds that a stop may take after its deadline (docs/shutdown.md).
AFTER_DEADLINE = 25

TASKS = ("WorkerTask", "ApiTask", "FlowerTask")


def container(task: str) -> dict[str, Any]:
    (found,) = RESOURCES[task]["Properties"]["ContainerDefinitions"]
    return dict(found)


def variables(task: str) -> dict[str, Any]:
    """The container's variables; those from a secret have the reference to it."""
    found = container(task)
    plain = {each["Name"]: each["Value"] for each in found["Environment"]}
    return plain | {each["Name"]: each["ValueFrom"] for each in found["Secrets"]}


def values(given: Any) -> Iterator[Any]:
    """All values in a part of a template."""
    if isinstance(given, dict | list):
        for each in given.values() if isinstance(given, dict) else given:
            yield from values(each)
    yield given


def test_a_template_fits_into_the_call_that_sends_it() -> None:
    for name in ("service", "network"):
        assert path_of(name).stat().st_size <= MOST_BYTES


@pytest.mark.parametrize(
    ("task", "prefix", "own"),
    [
        ("WorkerTask", "", EcsSettings),
        ("ApiTask", "API_", ApiSettings),
        ("FlowerTask", "FLOWER_", FlowerSettings),
    ],
)
def test_containers_are_given_only_what_the_settings_declare(
    task: str, prefix: str, own: Any
) -> None:
    declared = {name.upper() for name in Settings.model_fields}
    declared |= {f"{prefix}{name}".upper() for name in own.model_fields}
    assert set(variables(task)) <= declared


def test_passwords_and_keys_come_from_secrets() -> None:
    for task in TASKS:
        plain = {each["Name"] for each in container(task)["Environment"]}
        assert plain.isdisjoint({"MONGO_URI", "API_KEYS", "FLOWER_BASIC_AUTH"})
        assert "MONGO_URI" in variables(task)


def test_a_worker_is_given_the_time_that_its_stop_takes_and_no_more_than_fargate_has() -> None:
    timeout = container("WorkerTask")["StopTimeout"]
    deadline = int(variables("WorkerTask")["WORKER_SHUTDOWN_TIMEOUT"])
    assert deadline + AFTER_DEADLINE <= timeout <= MOST_STOP_TIMEOUT
    assert deadline == Settings().worker_shutdown_timeout


def test_the_api_is_given_the_time_that_its_stop_takes() -> None:
    timeout = container("ApiTask")["StopTimeout"]
    assert STOP_SECONDS + ApiSettings().send_timeout <= timeout <= MOST_STOP_TIMEOUT


def test_idle_connections_are_closed_by_the_load_balancer_and_not_by_the_api() -> None:
    attributes = RESOURCES["Balancer"]["Properties"]["LoadBalancerAttributes"]
    idle = {each["Key"]: each["Value"] for each in attributes}["idle_timeout.timeout_seconds"]
    assert 60 < int(idle) < int(variables("ApiTask")["API_KEEP_ALIVE"])


def test_the_defaults_are_those_of_the_settings() -> None:
    settings = Settings()
    assert PARAMETERS["WorkerVisibilityTimeout"]["Default"] == settings.visibility_timeout
    assert PARAMETERS["MaxReceiveCount"]["Default"] == settings.sqs_max_receive_count
    least = settings.sqs_max_attempts + SPARE_DELIVERIES
    assert PARAMETERS["MaxReceiveCount"]["MinValue"] == least


@pytest.mark.parametrize(
    ("name", "login"), [("Api", "ApiKeysSecretArn"), ("Flower", "FlowerLoginSecretArn")]
)
@pytest.mark.parametrize("given", list(itertools.product(("", "x"), repeat=3)))
def test_the_api_and_flower_exist_only_with_a_host_a_login_and_a_certificate(
    name: str, login: str, given: tuple[str, str, str]
) -> None:
    template = templates.read("service.yaml")
    values = dict(zip((f"{name}Host", login, "CertificateArn"), given, strict=True))
    made = set(templates.fold(template, values))
    parts = {name, f"{name}Task", f"{name}Targets", f"{name}Rule", f"{name}Logs"}
    assert made & parts == (parts if all(given) else set())
    assert ("Balancer" in made) == all(given)
    # Without a host it is not wanted. Otherwise a missing login or certificate is named.
    missing = {key for key, value in values.items() if not value and key != f"{name}Host"}
    refused = templates.refusals(template, values)
    named = {key for key in values for each in refused if key in each}
    assert named == (missing if given[0] else set())


@pytest.mark.parametrize("secret", ["", " ", "user:", ":x", "user"])
def test_flower_does_not_start_if_its_secret_holds_no_login(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = variables("FlowerTask")
    assert given["FLOWER_BASIC_AUTH"] == {"Ref": "FlowerLoginSecretArn"}
    assert not {"FLOWER_AUTH", "FLOWER_AUTH_PROVIDER"} & set(given)
    monkeypatch.setenv("FLOWER_ADDRESS", given["FLOWER_ADDRESS"])
    monkeypatch.setenv("FLOWER_BASIC_AUTH", secret)
    settings = get_flower_settings()
    options = SimpleNamespace(
        address=settings.address,
        basic_auth=settings.logins,
        unix_socket="",
        auth="",
        auth_provider=None,
    )
    with pytest.raises(SettingsError, match="FLOWER_BASIC_AUTH"):
        check_flower(options, [])


def test_they_are_reached_by_tls_only() -> None:
    listeners = [
        each["Properties"]
        for each in RESOURCES.values()
        if each["Type"] == "AWS::ElasticLoadBalancingV2::Listener"
    ]
    assert [each["Protocol"] for each in listeners] == ["HTTPS"]
    ingress = RESOURCES["BalancerSecurityGroup"]["Properties"]["SecurityGroupIngress"]
    assert [each["FromPort"] for each in ingress] == [443]
    for group in ("WebSecurityGroup",):
        for each in RESOURCES[group]["Properties"]["SecurityGroupIngress"]:
            assert each["SourceSecurityGroupId"] == {"Ref": "BalancerSecurityGroup"}


def test_no_permission_is_for_all_resources_but_where_aws_has_none_else() -> None:
    for name, resource in RESOURCES.items():
        if resource["Type"] != "AWS::IAM::Role":
            continue
        for each in values(resource["Properties"].get("Policies", [])):
            if isinstance(each, dict) and each.get("Resource") == "*":
                assert each["Action"] == "ecr:GetAuthorizationToken", name


def test_a_deploy_leaves_the_number_of_workers_to_the_scaling_policies() -> None:
    assert "DesiredCount" not in RESOURCES["Worker"]["Properties"]


def test_the_network_has_what_the_service_needs() -> None:
    outputs = set(read("network")["Outputs"])
    assert {"VpcId", "TaskSubnetIds", "TaskSecurityGroupIds", "PublicSubnetIds"} <= outputs
    assert "AssignPublicIp" in outputs & set(PARAMETERS)
