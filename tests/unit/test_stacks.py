"""Change sets: what they say is shown, and what would leave messages behind is refused."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from infra.stacks import Change, StackError, Stacks

ROOT = Path(__file__).parents[2]

STACK = "registrations-dev-queue"

#: As CloudFormation names a change set. Its `Id` has at least one character.
ID = "arn:aws:cloudformation:us-east-1:123456789012:changeSet/deploy-1/1"

QUEUE = "AWS::SQS::Queue"


@pytest.fixture
def cloudformation() -> Iterator[Stubber]:
    """CloudFormation, which answers as a test says, in this order, and to nothing else."""
    client = boto3.client(
        "cloudformation", "us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    with Stubber(client) as stubber:
        yield stubber
    stubber.assert_no_pending_responses()


@pytest.fixture
def stacks(cloudformation: Stubber) -> Stacks:
    return Stacks(cloudformation.client, pause=0)


def exists(cloudformation: Stubber, status: str = "CREATE_COMPLETE", **given: str) -> None:
    """The answer about a stack with these parameters."""
    parameters = [{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()]
    stack = {"StackName": STACK, "StackStatus": status, "CreationTime": 0, "Parameters": parameters}
    cloudformation.add_response("describe_stacks", {"Stacks": [stack]}, {"StackName": STACK})


def is_missing(cloudformation: Stubber) -> None:
    cloudformation.add_client_error(
        "describe_stacks", "ValidationError", f"Stack with id {STACK} does not exist"
    )


def makes(cloudformation: Stubber, *changes: dict[str, Any], status: str = "CREATE_COMPLETE",
          reason: str = "") -> None:  # fmt: skip
    """The answers while a change set is made."""
    cloudformation.add_response("create_change_set", {"Id": ID})
    answer = {"Status": status, "StatusReason": reason, "Changes": [
        {"Type": "Resource", "ResourceChange": change} for change in changes
    ]}  # fmt: skip
    cloudformation.add_response("describe_change_set", {"Status": "CREATE_IN_PROGRESS"})
    cloudformation.add_response("describe_change_set", answer)
    if status != "FAILED":
        cloudformation.add_response("describe_change_set", answer)


def is_deleted(cloudformation: Stubber) -> None:
    cloudformation.add_response("delete_change_set", {}, {"ChangeSetName": ID, "StackName": STACK})


def change(action: str, replacement: str | None, type_: str = QUEUE) -> dict[str, Any]:
    found = {"Action": action, "LogicalResourceId": "Queue", "ResourceType": type_}
    return found | ({"Replacement": replacement} if replacement else {})


@pytest.mark.parametrize(
    "found", [change("Modify", "True"), change("Modify", "Conditional"), change("Remove", None)]
)
def test_a_change_that_would_leave_a_queue_behind_is_refused_and_deleted(
    cloudformation: Stubber, stacks: Stacks, found: dict[str, Any]
) -> None:
    exists(cloudformation)
    makes(cloudformation, change("Modify", "False", "AWS::IAM::ManagedPolicy"), found)
    is_deleted(cloudformation)
    with pytest.raises(StackError, match="leave messages behind in Queue"):
        stacks.plan(STACK, "{}", {})


def test_a_change_that_would_take_the_key_of_messages_away_is_refused_and_deleted(
    cloudformation: Stubber, stacks: Stacks
) -> None:
    exists(cloudformation)
    makes(cloudformation, change("Modify", "False"), change("Remove", None, "AWS::KMS::Key"))
    is_deleted(cloudformation)
    with pytest.raises(StackError, match="nobody can read the messages"):
        stacks.plan(STACK, "{}", {})


@pytest.mark.parametrize(
    "found",
    [
        change("Modify", "False"),
        change("Add", None),
        change("Import", None),
        change("Modify", "True", "AWS::ECS::TaskDefinition"),
        change("Remove", None, "AWS::CloudWatch::Alarm"),
    ],
)
def test_any_other_change_is_planned(
    cloudformation: Stubber, stacks: Stacks, found: dict[str, Any]
) -> None:
    exists(cloudformation)
    makes(cloudformation, found)
    plan = stacks.plan(STACK, "{}", {})
    assert plan is not None
    assert [each.action for each in plan.changes] == [found["Action"]]


@pytest.mark.parametrize(
    "reason",
    [
        "The submitted information didn't contain changes. Submit different information to create "
        "a change set.",
        "No updates are to be performed.",
    ],
)
def test_a_change_set_without_changes_is_no_error(
    cloudformation: Stubber, stacks: Stacks, reason: str
) -> None:
    exists(cloudformation)
    makes(cloudformation, status="FAILED", reason=reason)
    is_deleted(cloudformation)
    assert stacks.plan(STACK, "{}", {}) is None


def test_a_change_set_that_fails_otherwise_is_an_error_and_leaves_no_new_stack(
    cloudformation: Stubber, stacks: Stacks
) -> None:
    is_missing(cloudformation)
    makes(cloudformation, status="FAILED", reason="Transform failed")
    is_deleted(cloudformation)
    exists(cloudformation, "REVIEW_IN_PROGRESS")
    cloudformation.add_response("delete_stack", {}, {"StackName": STACK})
    with pytest.raises(StackError, match="Transform failed"):
        stacks.plan(STACK, "{}", {})


def test_parameters_that_nobody_gave_keep_their_value(
    cloudformation: Stubber, stacks: Stacks
) -> None:
    for _ in range(2):
        exists(cloudformation, MongoSecretArn="arn:x")
    cloudformation.add_response(
        "create_change_set",
        {"Id": ID},
        {
            "StackName": STACK,
            "ChangeSetName": ANY,
            "ChangeSetType": "UPDATE",
            "TemplateBody": "{}",
            "Parameters": [
                {"ParameterKey": "MaxTasks", "ParameterValue": "7"},
                {"ParameterKey": "MongoSecretArn", "UsePreviousValue": True},
            ],
            "Capabilities": ["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
        },
    )
    for _ in range(2):
        cloudformation.add_response("describe_change_set", {"Status": "CREATE_COMPLETE"} | {
            "Changes": []
        })  # fmt: skip
    assert stacks.plan(STACK, "{}", {"MaxTasks": "7", "MongoSecretArn": None}) is not None


def test_what_an_old_stack_has_left_is_imported_by_its_identifier(
    cloudformation: Stubber, stacks: Stacks
) -> None:
    template = json.dumps({"Resources": {"Queue": {"Type": QUEUE}}})
    names = ("StackName", "ChangeSetName", "TemplateBody", "Parameters", "Capabilities")
    imported = {
        "ResourceType": QUEUE,
        "LogicalResourceId": "Queue",
        "ResourceIdentifier": {"QueueUrl": "https://q"},
    }
    cloudformation.add_response(
        "create_change_set",
        {"Id": ID},
        dict.fromkeys(names, ANY) | {"ChangeSetType": "IMPORT", "ResourcesToImport": [imported]},
    )
    answer = {"Status": "CREATE_COMPLETE", "Changes": [
        {"Type": "Resource", "ResourceChange": change("Import", None)}
    ]}  # fmt: skip
    for _ in range(2):
        cloudformation.add_response("describe_change_set", answer)
    plan = stacks.plan_import(STACK, template, {}, {"Queue": {"QueueUrl": "https://q"}})
    assert plan.is_new
    assert str(plan.changes[0]) == "  Import  Queue (AWS::SQS::Queue)"


def test_a_stack_whose_first_creation_failed_is_made_again(
    cloudformation: Stubber, stacks: Stacks
) -> None:
    for _ in range(2):
        exists(cloudformation, "ROLLBACK_COMPLETE")
    cloudformation.add_response("delete_stack", {}, {"StackName": STACK})
    exists(cloudformation, "DELETE_IN_PROGRESS")
    is_missing(cloudformation)
    makes(cloudformation, change("Add", None))
    plan = stacks.plan(STACK, "{}", {})
    assert plan is not None
    assert plan.is_new


def test_a_stack_that_is_made_again_has_the_values_that_were_given_before(
    cloudformation: Stubber, stacks: Stacks
) -> None:
    for _ in range(3):
        exists(cloudformation, "ROLLBACK_COMPLETE", MongoSecretArn="arn:x")
    cloudformation.add_response("delete_stack", {}, {"StackName": STACK})
    is_missing(cloudformation)
    parameters = [{"ParameterKey": "MongoSecretArn", "ParameterValue": "arn:x"}]
    names = ("StackName", "ChangeSetName", "TemplateBody", "Capabilities")
    cloudformation.add_response(
        "create_change_set",
        {"Id": ID},
        dict.fromkeys(names, ANY) | {"ChangeSetType": "CREATE", "Parameters": parameters},
    )
    for _ in range(2):
        cloudformation.add_response(
            "describe_change_set", {"Status": "CREATE_COMPLETE", "Changes": []}
        )
    assert stacks.plan(STACK, "{}", {"MongoSecretArn": None}) is not None


def test_a_stack_that_is_changing_is_left_alone(cloudformation: Stubber, stacks: Stacks) -> None:
    exists(cloudformation, "UPDATE_IN_PROGRESS")
    with pytest.raises(StackError, match="Try again later"):
        stacks.plan(STACK, "{}", {})


def event(status: str, reason: str, name: str = "Worker", type_: str = "AWS::ECS::Service") -> Any:
    return {
        "StackId": STACK, "EventId": "1", "StackName": STACK, "Timestamp": 0,
        "LogicalResourceId": name, "ResourceType": type_, "ResourceStatus": status,
        "ResourceStatusReason": reason,
    }  # fmt: skip


def test_a_failure_names_what_failed_first_in_this_change(
    cloudformation: Stubber, stacks: Stacks
) -> None:
    exists(cloudformation)
    makes(cloudformation, change("Modify", "False"))
    plan = stacks.plan(STACK, "{}", {})
    assert plan is not None
    cloudformation.add_response("execute_change_set", {})
    exists(cloudformation, "UPDATE_IN_PROGRESS")
    exists(cloudformation, "UPDATE_ROLLBACK_COMPLETE")
    stack = "AWS::CloudFormation::Stack"
    # CloudFormation gives a hundred of them at a time.
    cloudformation.add_response("describe_stack_events", {"NextToken": "more", "StackEvents": [
        event("UPDATE_ROLLBACK_COMPLETE", "", STACK, stack),
        event("UPDATE_FAILED", "Resource update cancelled", "Other"),
    ]})  # fmt: skip
    cloudformation.add_response("describe_stack_events", {"StackEvents": [
        event("UPDATE_FAILED", "the circuit breaker was triggered"),
        event("UPDATE_IN_PROGRESS", "User Initiated", STACK, stack),
        event("UPDATE_FAILED", "an older failure"),
    ]})  # fmt: skip
    with pytest.raises(StackError, match=r"Worker: the circuit breaker was triggered$"):
        stacks.execute(plan)


def test_a_change_is_shown_with_what_it_does_to_the_resource() -> None:
    assert str(Change("Modify", "Task", "T", "True")) == "  Modify  Task (T, is replaced)"
    assert str(Change("Add", "Task", "T")) == "  Add     Task (T)"


# The targets of make -----------------------------------------------------------------------------


def made(*arguments: str) -> str:
    """The command of `infra.deploy` that make would run."""
    printed = subprocess.check_output(["make", "-n", *arguments], cwd=ROOT, text=True, timeout=60)
    (line,) = re.findall(r"-m infra\.deploy (.*?)\s*$", printed.replace("\\\n", " "), re.MULTILINE)
    return " ".join(line.split())


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (
            [
                "deploy",
                "STAGE=try",
                "CONSUMER=function",
                "NETWORK=1",
                "DRY_RUN=1",
                "PARAMETERS=A=b C=d",
            ],
            'deploy --stage "try" --consumer function --network --dry-run A=b C=d',
        ),
        (["destroy", "STAGE=try"], 'destroy --stage "try"'),
    ],
)
def test_make_passes_what_it_was_given(arguments: list[str], command: str) -> None:
    assert made(*arguments) == command
