"""deploy/kubernetes/: valid manifests that agree with the settings and the stop of a worker."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from app.settings import EcsSettings, Settings
from infra.templates import read

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
SCHEMA = json.loads((ROOT / "tests" / "kubernetes" / "schema-1.34.json").read_text())

#: Seconds that a stop may take after its deadline (docs/shutdown.md).
AFTER_DEADLINE = 25

TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}

#: What this project uses of KEDA's ScaledObject, and of its SQS trigger:
#: https://keda.sh/docs/latest/reference/scaledobject-spec/
#: https://keda.sh/docs/latest/scalers/aws-sqs/
COUNT = {"type": "integer", "minimum": 0}
SCALED_OBJECT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["scaleTargetRef", "triggers"],
    "properties": {
        "scaleTargetRef": {"type": "object", "required": ["name"]},
        "minReplicaCount": COUNT,
        "maxReplicaCount": COUNT,
        "pollingInterval": COUNT,
        "cooldownPeriod": COUNT,
        "advanced": {"type": "object"},
        "triggers": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "metadata"],
                "properties": {
                    "type": {"const": "aws-sqs-queue"},
                    "authenticationRef": {"type": "object", "required": ["name"]},
                    "metadata": TEXTS
                    | {
                        "required": ["awsRegion"],
                        "propertyNames": {
                            "enum": [
                                "queueURL", "queueURLFromEnv", "queueLength",
                                "activationQueueLength", "awsRegion", "awsEndpoint",
                                "scaleOnInFlight", "scaleOnDelayed",
                            ]
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip


def documents() -> dict[str, Any]:
    found = {}
    for path in sorted(MANIFESTS.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found[document["kind"]] = document
    return found


FOUND = documents()


def faults(schema: Any, document: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(schema).iter_errors(document)]


def pod() -> dict[str, Any]:
    return dict(FOUND["Deployment"]["spec"]["template"]["spec"])


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return dict(found)


def given() -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container()["env"]}


@pytest.mark.parametrize("kind", ["Deployment", "ServiceAccount"])
def test_kubernetes_accepts_the_manifests(kind: str) -> None:
    schema = SCHEMA["kinds"][kind] | {"$defs": SCHEMA["$defs"]}
    assert faults(schema, FOUND[kind]) == []
    assert faults(schema, FOUND[kind] | {"spek": {}})
    assert faults(schema, FOUND[kind] | {"metadata": {"nam": "x"}})


def test_keda_accepts_the_scaled_object() -> None:
    document = FOUND["ScaledObject"]
    assert faults(SCALED_OBJECT, document["spec"]) == []
    assert document["spec"]["scaleTargetRef"]["name"] == FOUND["Deployment"]["metadata"]["name"]
    (trigger,) = document["spec"]["triggers"]
    assert trigger["metadata"]["queueURLFromEnv"] in given()
    assert trigger["metadata"]["scaleOnInFlight"] == "true"
    assert (
        trigger["authenticationRef"]["name"] == FOUND["TriggerAuthentication"]["metadata"]["name"]
    )
    wanted = read("service")["Parameters"]["BacklogPerTask"]["Default"]
    assert trigger["metadata"]["queueLength"] == str(wanted)


def test_the_pod_is_given_only_what_the_settings_declare() -> None:
    declared = {*Settings.model_fields, *EcsSettings.model_fields}
    assert set(given()) <= {name.upper() for name in declared}
    assert given()["MONGO_URI"] is None


def test_the_pod_has_the_time_that_a_stop_takes() -> None:
    deadline = int(given()["WORKER_SHUTDOWN_TIMEOUT"])
    assert pod()["terminationGracePeriodSeconds"] >= deadline + AFTER_DEADLINE


def test_the_images_init_stays_in_its_place() -> None:
    assert "command" not in container()
    assert container()["args"] == ["celery", "-A", "app", "worker"]


def test_the_probes_are_the_health_check_of_the_template() -> None:
    (task,) = read("service")["Resources"]["WorkerTask"]["Properties"]["ContainerDefinitions"]
    for probe in ("startupProbe", "livenessProbe"):
        assert ["CMD", *container()[probe]["exec"]["command"]] == task["HealthCheck"]["Command"]
    assert given()["WORKER_HEALTH_FILE"] in container()["livenessProbe"]["exec"]["command"][-1]


def test_scaling_is_left_to_keda_and_no_pod_is_missing_during_a_deploy() -> None:
    spec = FOUND["Deployment"]["spec"]
    assert "replicas" not in spec
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
