"""SECURITY.md names the permissions that the templates grant, and the files that are written."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cloudformation.template import fold, read

PAGE = (Path(__file__).parents[2] / "SECURITY.md").read_text()

#: Who has which managed policies of infra/queue.yaml.
POLICIES = {
    "sender": ["ProducerPolicy"],
    "worker": ["ConsumerPolicy"],
    "Lambda function": ["ConsumerPolicy"],
    "HTTP API": ["ProducerPolicy", "ReaderPolicy"],
    "Flower": ["OperatorPolicy"],
}

#: What a policy of ours lets a function do beyond the queues. AWS's own policy is another matter.
SECRETS_AND_LOGS = {
    "secretsmanager:GetSecretValue",
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "kms:Decrypt",
}


def rows(heading: str) -> Iterator[list[str]]:
    """The rows of the table with this heading."""
    _, _, after = PAGE.partition(f"{heading}\n")
    for line in after.splitlines()[1:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def actions(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+:\w+)`", cell))


def granted(policies: list[str]) -> tuple[set[str], set[str]]:
    """What the policies allow on the queue, and on the dead-letter queue."""
    resources = fold(read("queue.yaml"), {})
    found: tuple[set[str], set[str]] = (set(), set())
    for policy in policies:
        for statement in resources[policy]["Properties"]["PolicyDocument"]["Statement"]:
            for action in _list(statement["Action"]):
                for resource in _list(statement["Resource"]):
                    if isinstance(resource, dict):
                        found[resource["Fn::GetAtt"][0] == "DeadLetterQueue"].add(action)
    return found


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def inline(role: Mapping[str, Any]) -> set[str]:
    """The actions of the policies that only this role has."""
    return {
        action
        for policy in role["Properties"]["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
        for action in _list(statement["Action"])
    }


@pytest.mark.parametrize("who", POLICIES)
def test_the_permissions_on_the_queues_are_those_of_the_template(who: str) -> None:
    table = {
        name: cells for name, *cells in rows("| who | on the queue | on the dead-letter queue |")
    }
    on_queue, on_dead = map(actions, table[who])
    assert (on_queue, on_dead) == granted(POLICIES[who])


def test_the_permissions_of_the_functions_beyond_the_queues_are_those_of_the_template() -> None:
    given = {"ApiKeysSecretArn": "keys", "SecretsKmsKeyArn": "key"}
    resources = fold(read("function.yaml"), given)
    for role in ("FunctionRole", "ApiRole"):
        assert inline(resources[role]) == SECRETS_AND_LOGS
    section = PAGE.partition("Beyond the queues:")[2].partition("## Files")[0]
    assert actions(section) >= SECRETS_AND_LOGS | {"sts:AssumeRole", "cloudwatch:GetMetricData"}
    assert "AWSLambdaENIManagementAccess" in section


def test_what_the_managed_policies_allow_beyond_the_queues_is_in_the_table() -> None:
    documents = [
        resource["Properties"]["PolicyDocument"]
        for name in ("queue.yaml", "function.yaml")
        for resource in fold(read(name), {}).values()
        if resource["Type"] == "AWS::IAM::ManagedPolicy"
    ]
    allowed = {
        action
        for document in documents
        for statement in document["Statement"]
        for action in _list(statement["Action"])
    }
    section = PAGE.partition("Beyond the queues:")[2].partition("## Files")[0]
    beyond = {action for action in allowed if not action.startswith("sqs:")}
    assert "lambda:UpdateEventSourceMapping" in beyond
    assert beyond <= actions(section)


def test_the_permissions_of_a_protected_worker_are_those_of_the_template() -> None:
    role = fold(read("service.yaml"), {"ScaleInProtection": "true"})["WorkerRole"]
    section = PAGE.partition("Beyond the queues:")[2].partition("## Files")[0]
    assert inline(role) <= actions(section)


@pytest.mark.parametrize("directory", [".local/bench/", ".local/load/"])
def test_the_files_of_the_measurements_are_in_the_table(directory: str) -> None:
    assert any(directory in cells[0] for cells in rows("| file | written by | mode | how |"))
