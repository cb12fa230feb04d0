"""Changes stacks of CloudFormation: by change sets, which are shown before they are executed."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

#: Seconds between two looks at a change that is under way, and for all of it.
PAUSE = 5.0
TIMEOUT = 3600.0

#: How CloudFormation says that a change set is empty. There is no code for it.
NO_CHANGES = ("didn't contain changes", "No updates are to be performed")

#: What must never be replaced or removed, and why.
KEPT = {
    "AWS::SQS::Queue": (
        "would leave messages behind in {}, and continue with another queue. Nothing was changed. "
        "For another name, deploy another stage, let its queue take over, and destroy this one "
        "when it is empty."
    ),
    "AWS::KMS::Key": (
        "would take away the permission for {}, without which nobody can read the messages that it "
        "has encrypted. Nothing was changed. For other encryption, deploy another stage, let its "
        "queue take over, and destroy this one when it is empty."
    ),
}

Parameters = Mapping[str, str | None]
"""The values of parameters. None: the value that the stack has, or had when its creation failed."""


class StackError(Exception):
    """A stack was not changed as it should be. The text says why, and what to do."""


@dataclass(frozen=True)
class Change:
    """What a change set does to one resource."""

    action: str
    """`Add`, `Modify`, `Remove` or `Import`."""
    name: str
    type: str
    replacement: str = "False"
    """`True`, `False` or `Conditional`."""

    @property
    def is_refused(self) -> bool:
        """Whether messages would be left behind in a queue, or without their key."""
        is_lost = self.action == "Remove" or self.replacement != "False"
        return self.type in KEPT and self.action in ("Modify", "Remove") and is_lost

    def __str__(self) -> str:
        notes = {"True": ", is replaced", "Conditional": ", may be replaced"}
        return f"  {self.action:7} {self.name} ({self.type}{notes.get(self.replacement, '')})"


@dataclass(frozen=True)
class Plan:
    """A change set that has not been executed."""

    stack: str
    id: str
    is_new: bool
    """Whether the stack does not exist yet."""
    changes: list[Change] = field(default_factory=list)


class Stacks:
    """The stacks of an account in a region. `pause`: seconds between two looks at a change."""

    def __init__(self, client: Any, *, pause: float = PAUSE, timeout: float = TIMEOUT) -> None:
        self._client = client
        self._pause = pause
        self._timeout = timeout

    def status(self, stack: str) -> str | None:
        """CloudFormation's status of a stack; None if there is no such stack."""
        described = self._describe(stack)
        return None if described is None else str(described["StackStatus"])

    def outputs(self, stack: str) -> dict[str, str]:
        """The outputs of a stack; none if there is no such stack."""
        described = self._describe(stack) or {}
        return {out["OutputKey"]: out["OutputValue"] for out in described.get("Outputs", [])}

    def parameters(self, stack: str) -> dict[str, str]:
        """The values of a stack's parameters; none if there is no such stack."""
        described = self._describe(stack) or {}
        given = described.get("Parameters", [])
        return {one["ParameterKey"]: one["ParameterValue"] for one in given}

    def is_new(self, stack: str) -> bool:
        """Whether there is no such stack. What a failed creation has left is deleted. Raises
        StackError if another change is under way."""
        status = self.status(stack)
        if status == "ROLLBACK_COMPLETE":
            # It has nothing, and CloudFormation accepts no change of it.
            self.delete(stack)
            return True
        if status is not None and status.endswith("_IN_PROGRESS") and "REVIEW" not in status:
            raise StackError(f"{stack}: {status}: another change is under way. Try again later.")
        return status in (None, "REVIEW_IN_PROGRESS")

    def plan(self, stack: str, template: str, parameters: Parameters) -> Plan | None:
        """Create a change set; None if it would change nothing. Raises StackError if it would
        replace or remove a queue or its key, or if CloudFormation refuses it. Then nothing is left
        of it."""
        # What `is_new` deletes has no previous values any more.
        present = self.parameters(stack) if None in parameters.values() else {}
        is_new = self.is_new(stack)
        if is_new:
            parameters = {name: present.get(name, value) if value is None else value
                          for name, value in parameters.items()}  # fmt: skip
        kind = "CREATE" if is_new else "UPDATE"
        plan = self._plan(stack, template, parameters, is_new, {"ChangeSetType": kind})
        if plan is not None:
            self._refuse(plan)
        return plan

    def plan_import(
        self,
        stack: str,
        template: str,
        parameters: Parameters,
        identifiers: Mapping[str, Mapping[str, str]],
    ) -> Plan:
        """Create a change set that makes a new stack of resources that exist. The template has
        these alone, and no outputs: CloudFormation accepts nothing else in an import.
        `identifiers`: by the names of the resources, the property that identifies it, and its
        value.

        Raises StackError if CloudFormation refuses it. Then nothing is left of it.
        """
        resources = json.loads(template)["Resources"]
        imported = [
            {
                "ResourceType": resources[name]["Type"],
                "LogicalResourceId": name,
                "ResourceIdentifier": identifier,
            }
            for name, identifier in identifiers.items()
        ]
        how = {"ChangeSetType": "IMPORT", "ResourcesToImport": imported}
        plan = self._plan(stack, template, parameters, True, how)
        if plan is None:
            raise StackError(f"{stack}: CloudFormation finds nothing to import.")
        return plan

    def _plan(
        self,
        stack: str,
        template: str,
        parameters: Parameters,
        is_new: bool,
        how: Mapping[str, Any],
    ) -> Plan | None:
        try:
            created = self._client.create_change_set(
                StackName=stack,
                ChangeSetName=f"deploy-{time.time_ns()}",
                TemplateBody=template,
                Parameters=[_parameter(name, value) for name, value in parameters.items()],
                Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
                **how,
            )
        except ClientError as exc:
            reason = exc.response["Error"]["Message"]
            if any(words in reason for words in NO_CHANGES):
                return None
            raise StackError(f"{stack}: {reason}") from exc
        plan = Plan(stack, created["Id"], is_new)
        described = self._until_created(plan)
        reason = described.get("StatusReason", "")
        if described["Status"] == "FAILED":
            self.discard(plan)
            if any(words in reason for words in NO_CHANGES):
                return None
            raise StackError(f"{stack}: {reason}")
        plan.changes.extend(self._changes(plan))
        return plan

    def _refuse(self, plan: Plan) -> None:
        """Delete a change set that must not be executed, and raise StackError."""
        refused = [change for change in plan.changes if change.is_refused]
        if not refused:
            return
        self.discard(plan)
        reasons = [
            KEPT[type_].format(", ".join(each.name for each in refused if each.type == type_))
            for type_ in dict.fromkeys(change.type for change in refused)
        ]
        raise StackError("\n".join(f"{plan.stack}: this {reason}" for reason in reasons))

    def discard(self, plan: Plan) -> None:
        """Delete a change set. A new stack is deleted too: it consists of its change set."""
        self._client.delete_change_set(ChangeSetName=plan.id, StackName=plan.stack)
        if plan.is_new and self.status(plan.stack) == "REVIEW_IN_PROGRESS":
            self._client.delete_stack(StackName=plan.stack)

    def execute(self, plan: Plan) -> None:
        """Execute a change set, and wait for its end. Raises StackError with the first reason of a
        failure; CloudFormation has then restored what was before."""
        self._client.execute_change_set(ChangeSetName=plan.id, StackName=plan.stack)
        status = self._until_still(plan.stack)
        if status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE"):
            raise StackError(f"{plan.stack}: {status}: {self._first_failure(plan.stack)}")

    def delete(self, stack: str) -> bool:
        """Delete a stack, and wait for its end. Returns False if there is none.

        Raises StackError.
        """
        if self.status(stack) is None:
            return False
        self._client.delete_stack(StackName=stack)
        if (status := self._until_still(stack)) is not None:
            raise StackError(f"{stack}: {status}: {self._first_failure(stack)}")
        return True

    def _describe(self, stack: str) -> Mapping[str, Any] | None:
        try:
            stacks = self._client.describe_stacks(StackName=stack)["Stacks"]
        except ClientError as exc:
            if "does not exist" in exc.response["Error"]["Message"]:
                return None
            raise
        return next((one for one in stacks if one["StackStatus"] != "DELETE_COMPLETE"), None)

    def _until_created(self, plan: Plan) -> Mapping[str, Any]:
        for _ in self._while_waiting(plan.stack):
            found: Mapping[str, Any] = self._client.describe_change_set(
                ChangeSetName=plan.id, StackName=plan.stack
            )
            if found["Status"] not in ("CREATE_PENDING", "CREATE_IN_PROGRESS"):
                return found
        raise AssertionError

    def _changes(self, plan: Plan) -> Iterator[Change]:
        pages = self._client.get_paginator("describe_change_set")
        for page in pages.paginate(ChangeSetName=plan.id, StackName=plan.stack):
            for change in page["Changes"]:
                found = change["ResourceChange"]
                yield Change(
                    found["Action"],
                    found["LogicalResourceId"],
                    found["ResourceType"],
                    found.get("Replacement") or "False",
                )

    def _until_still(self, stack: str) -> str | None:
        for _ in self._while_waiting(stack):
            status = self.status(stack)
            if status is None or not status.endswith("_IN_PROGRESS"):
                return status
        raise AssertionError

    def _while_waiting(self, stack: str) -> Iterator[None]:
        end = time.monotonic() + self._timeout
        while True:
            yield
            if time.monotonic() > end:
                raise StackError(f"{stack}: CloudFormation has not ended after {self._timeout} s.")
            time.sleep(self._pause)

    def _first_failure(self, stack: str) -> str:
        """Why the last change failed. Events come newest first, and those after the first failure
        are cancellations."""
        reason = "see its events"
        pages = self._client.get_paginator("describe_stack_events").paginate(StackName=stack)
        for event in (event for page in pages for event in page["StackEvents"]):
            is_start = event.get("ResourceStatusReason") == "User Initiated"
            if event["ResourceStatus"].endswith("_FAILED"):
                reason = f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', '')}"
            if is_start and event["ResourceType"] == "AWS::CloudFormation::Stack":
                break
        return reason


def _parameter(name: str, value: str | None) -> dict[str, Any]:
    if value is None:
        return {"ParameterKey": name, "UsePreviousValue": True}
    return {"ParameterKey": name, "ParameterValue": value}
