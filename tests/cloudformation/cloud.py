"""An AWS account on this machine, the stacks in it, and roles whose policies are enforced."""

import json
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
from botocore.config import Config

from devstack import ports
from devstack.process import Process
from devstack.sqs import REGION
from tests.cloudformation.moto_iam import KEY, SECRET

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "infra"

#: Seconds until the server listens.
START_SECONDS = 30

#: How CloudFormation says that a change set changes nothing.
NOTHING = "didn't contain changes"

ANYBODY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}],
}


@dataclass(frozen=True)
class Identity:
    """Credentials, and the account's endpoint."""

    endpoint_url: str
    key: str
    secret: str
    token: str | None = None

    def client(self, service: str) -> Any:
        """A boto3 client of one service. It tries each call once."""
        return _client(self, service)

    @property
    def credentials(self) -> dict[str, str]:
        """The option `credentials` of the broker."""
        given = {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret}
        return given | ({"aws_session_token": self.token} if self.token else {})

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make a process use these credentials."""
        given = {
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }
        return given | ({"AWS_SESSION_TOKEN": self.token} if self.token else {})


@cache
def _client(identity: Identity, service: str) -> Any:
    return boto3.client(
        service,  # type: ignore[call-overload]  # the stubs accept literal names only
        region_name=REGION,
        endpoint_url=identity.endpoint_url,
        aws_access_key_id=identity.key,
        aws_secret_access_key=identity.secret,
        aws_session_token=identity.token,
        config=Config(retries={"total_max_attempts": 1}),
    )


@dataclass(frozen=True)
class Cloud:
    """The account."""

    owner: Identity

    def client(self, service: str) -> Any:
        """A client of the account's owner."""
        return self.owner.client(service)

    def stack(self, template: str, **parameters: str) -> "Stack":
        """Deploy a template of `infra/` as a new stack."""
        stack = Stack(self, f"s{uuid.uuid4().hex[:8]}", template)
        stack.deploy(**parameters)
        return stack

    def role(self, *documents: Mapping[str, Any]) -> Identity:
        """A new role with these policies and nothing else, and its credentials."""
        iam, name = self.client("iam"), f"r{uuid.uuid4().hex[:8]}"
        made = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(ANYBODY))
        for number, document in enumerate(documents):
            iam.put_role_policy(
                RoleName=name, PolicyName=f"p{number}", PolicyDocument=json.dumps(document)
            )
        given = self.client("sts").assume_role(RoleArn=made["Role"]["Arn"], RoleSessionName="test")[
            "Credentials"
        ]
        return Identity(
            self.owner.endpoint_url,
            given["AccessKeyId"],
            given["SecretAccessKey"],
            given["SessionToken"],
        )

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Within the block, each call needs a policy that allows it."""
        self._enforce_after("0")
        try:
            yield
        finally:
            self._enforce_after("inf")

    def _enforce_after(self, calls: str) -> None:
        url = f"{self.owner.endpoint_url}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        urlopen(Request(url, calls.encode(), headers), timeout=10).close()


@dataclass
class Stack:
    """One stack."""

    cloud: Cloud
    name: str
    template: str
    given: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> str:
        return (TEMPLATES / self.template).read_text()

    def deploy(self, **parameters: str) -> list[str]:
        """Create or update the stack. Returns the logical names of what was changed; of a new stack
        none, as it is made without a change set, whose outputs moto forgets."""
        self.given |= parameters
        cloudformation = self.cloud.client("cloudformation")
        arguments: dict[str, Any] = {
            "StackName": self.name,
            "TemplateBody": self.body,
            "Parameters": [
                {"ParameterKey": key, "ParameterValue": value} for key, value in self.given.items()
            ],
            "Capabilities": ["CAPABILITY_IAM"],
        }
        if not self._exists():
            cloudformation.create_stack(**arguments)
            return []
        return self._change(cloudformation, arguments)

    def delete(self) -> None:
        """Delete the stack."""
        self.cloud.client("cloudformation").delete_stack(StackName=self.name)

    @property
    def outputs(self) -> dict[str, str]:
        """The outputs by name."""
        (stack,) = self._describe()
        return {each["OutputKey"]: each["OutputValue"] for each in stack.get("Outputs", ())}

    @property
    def resources(self) -> dict[str, str]:
        """The physical id of each resource, by its logical name."""
        found = self.cloud.client("cloudformation").describe_stack_resources(StackName=self.name)
        return {
            each["LogicalResourceId"]: each["PhysicalResourceId"]
            for each in found["StackResources"]
            # moto lists those that do not exist, too, without a name, and gives some none.
            if "LogicalResourceId" in each and "PhysicalResourceId" in each
        }

    def document(self, policy: str) -> dict[str, Any]:
        """The document of a managed policy that an output names."""
        iam, arn = self.cloud.client("iam"), self.outputs[policy]
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        found = iam.get_policy_version(PolicyArn=arn, VersionId=version)
        return dict(found["PolicyVersion"]["Document"])

    def _describe(self) -> Sequence[Any]:
        # Not all: moto cannot describe one that imports from a stack that is deleted.
        client = self.cloud.client("cloudformation")
        try:
            return list(client.describe_stacks(StackName=self.name)["Stacks"])
        except client.exceptions.ClientError as exc:
            if "does not exist" not in str(exc):
                raise
            return []

    def _exists(self) -> bool:
        return bool(self._describe())

    def _change(self, cloudformation: Any, arguments: Mapping[str, Any]) -> list[str]:
        name = f"c{uuid.uuid4().hex[:8]}"
        where = {"StackName": self.name, "ChangeSetName": name}
        cloudformation.create_change_set(**arguments, ChangeSetName=name, ChangeSetType="UPDATE")
        made = cloudformation.describe_change_set(**where)
        if made["Status"] == "FAILED":
            assert NOTHING in made["StatusReason"], made["StatusReason"]
            cloudformation.delete_change_set(**where)
            return []
        cloudformation.execute_change_set(**where)
        return [each["ResourceChange"]["LogicalResourceId"] for each in made["Changes"]]


@contextmanager
def running(directory: Path) -> Iterator[Cloud]:
    """An account, until the end of the block."""
    port = ports.preferred_or_any(None)
    command = [sys.executable, "-m", "tests.cloudformation.server", str(port)]
    log = directory / "moto.log"
    with Process("moto", command, log=log, grace=1, directory=ROOT) as process:
        process.wait_until_listening(port, START_SECONDS)
        yield Cloud(Identity(f"http://{ports.HOST}:{port}", KEY, SECRET))
