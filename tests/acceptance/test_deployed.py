"""A worker, the function and the HTTP API on the queues of the templates, with the roles of the
templates and nothing else: each call needs a policy that allows it."""

import io
import json
import os
import sys
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from devstack.mongo import MongoServer
from tests.acceptance.function import event_of, sandbox
from tests.acceptance.worker import FOR_TESTS, workers
from tests.cloudformation import cloud as clouds
from tests.cloudformation.cloud import Cloud, Identity, Stack
from tests.services import Queues, wait_until
from tests.unit.api_service import API_KEYS, KEYS
from tests.unit.test_gateway import event

# Starts a local AWS, and several processes.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

API = "app.api_handler.handler"

#: The permission to read a secret, and the variables that name the secrets.
READ = "secretsmanager:GetSecretValue"
VARIABLES = {"MongoSecretArn": "MONGO_SECRET_ARN", "ApiKeysSecretArn": "API_KEYS_SECRET_ARN"}

USER = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": "Kim-1f9c"}}
REGISTRATION = json.dumps({"id": "id-1", "action": "registerUser", "data": USER})


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with clouds.running(tmp_path_factory.mktemp("cloud")) as made:
        yield made


class Site:
    """What the stacks of a queue and of its consumer made."""

    def __init__(self, cloud: Cloud, consumer: str) -> None:
        self.cloud = cloud
        name = f"q-{uuid.uuid4().hex[:8]}"
        self.stack = cloud.stack("queue.yaml", QueueName=name, Consumer=consumer)
        outputs = self.stack.outputs
        owner = cloud.owner
        urls = outputs["QueueUrl"], outputs["DeadLetterQueueUrl"]
        self.queues = Queues(owner.client("sqs"), owner.endpoint_url, *urls)
        for url in urls:
            # A look into an empty queue would take as long as a long poll.
            self.queues.client.set_queue_attributes(
                QueueUrl=url, Attributes={"ReceiveMessageWaitTimeSeconds": "0"}
            )

    def function(self, mongo_uri: str) -> Stack:
        """The stack of the function with the API, whose secrets exist."""
        s3, name = self.cloud.client("s3"), uuid.uuid4().hex
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("x.py", "")
        s3.create_bucket(Bucket=name)
        s3.put_object(Bucket=name, Key="zip", Body=content.getvalue())
        return self.cloud.stack(
            "function.yaml",
            QueueStack=self.stack.name,
            CodeBucket=name,
            CodeKey="zip",
            MongoSecretArn=self._secret(mongo_uri),
            ApiKeysSecretArn=self._secret(json.dumps({"API_KEYS": API_KEYS})),
        )

    def _secret(self, text: str) -> str:
        made = self.cloud.client("secretsmanager").create_secret(
            Name=uuid.uuid4().hex, SecretString=text
        )
        return str(made["ARN"])


def role_of(stack: Stack, name: str) -> Identity:
    """Somebody with the policies of a role of the stack."""
    return stack.cloud.role(*documents_of(stack, name))


def documents_of(stack: Stack, name: str) -> list[dict[str, Any]]:
    """The policies of a role of the stack."""
    iam, role = stack.cloud.client("iam"), stack.resources[name]
    documents: list[dict[str, Any]] = [
        iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
        for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]
    ]
    for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        documents.append(document_of(iam, policy["PolicyArn"]))
    return documents


def without(stack: Stack, role: str, action: str, resource: str) -> Identity:
    """Somebody with the policies of a role of the stack, but for one permission."""
    documents = [
        {
            **document,
            "Statement": [
                {"Effect": "Allow", "Action": each, "Resource": where}
                for statement in document["Statement"]
                for each in _list(statement["Action"])
                for where in _list(statement["Resource"])
                if (each, where) != (action, resource)
            ],
        }
        for document in documents_of(stack, role)
    ]
    return stack.cloud.role(*documents)


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def document_of(iam: Any, arn: str) -> dict[str, Any]:
    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    found = iam.get_policy_version(PolicyArn=arn, VersionId=version)
    return dict(found["PolicyVersion"]["Document"])


def variables_of(stack: Stack, function: str) -> dict[str, str]:
    """The environment of a function of the stack."""
    found = stack.cloud.client("lambda").get_function_configuration(
        FunctionName=stack.resources[function]
    )
    return {name: str(value) for name, value in found["Environment"]["Variables"].items()}


def process(tmp_path: Path, identity: Identity, variables: Mapping[str, str]) -> dict[str, str]:
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        **identity.environment,
        **variables,
    }


def users(mongo_client: MongoClient[Any], mongo_uri: str) -> int:
    database = mongo_uri.rsplit("/", 1)[1].split("?")[0]
    return mongo_client[database].users.count_documents({})


def test_a_worker_does_its_job_with_the_policy_of_a_consumer(
    cloud: Cloud, tmp_path: Path, mongo_uri: str, mongo_client: MongoClient[Any]
) -> None:
    site = Site(cloud, "worker")
    identity = cloud.role(site.stack.document("ConsumerPolicyArn"))
    variables = {
        "AWS_SQS_QUEUE_URL": site.queues.url,
        "AWS_SQS_DLQ_URL": site.queues.dead_letter_url,
        "MONGO_URI": mongo_uri,
        **FOR_TESTS,
    }
    with cloud.enforced(), workers(tmp_path) as start:
        worker = start(process(tmp_path, identity, variables))
        for body in (REGISTRATION, "nonsense"):
            site.queues.client.send_message(QueueUrl=site.queues.url, MessageBody=body)
        worker.wait_for(site.queues.is_empty, 30, "an empty queue")
        assert users(mongo_client, mongo_uri) == 1
        assert worker.stop() == 0
        assert "AccessDenied" not in worker.log_text()
    assert len(site.queues.dead_letters()) == 1


def test_the_function_does_its_job_with_its_role_and_its_variables(
    cloud: Cloud,
    tmp_path: Path,
    mongo_uri: str,
    mongo_client: MongoClient[Any],
) -> None:
    site = Site(cloud, "function")
    stack = site.function(mongo_uri)
    identity = role_of(stack, "FunctionRole")
    for body in (REGISTRATION, "nonsense"):
        site.queues.client.send_message(QueueUrl=site.queues.url, MessageBody=body)
    # Lambda receives with the role of the function.
    seen = Queues(
        identity.client("sqs"),
        identity.endpoint_url,
        site.queues.url,
        site.queues.dead_letter_url,
    )
    given = process(tmp_path, identity, variables_of(stack, "Function"))
    with cloud.enforced(), sandbox(tmp_path, given, root=ROOT) as function:
        function.wait_until_ready()
        assert function.invoke(event_of(seen)).returned == []
        assert "AccessDenied" not in function.log_text()
    assert users(mongo_client, mongo_uri) == 1
    assert site.queues.is_empty()
    assert len(site.queues.dead_letters()) == 1


def test_without_the_permission_for_its_secret_the_function_does_not_work(
    cloud: Cloud, tmp_path: Path, mongo_uri: str
) -> None:
    site = Site(cloud, "function")
    stack = site.function(mongo_uri)
    identity = without(stack, "FunctionRole", READ, stack.given["MongoSecretArn"])
    site.queues.client.send_message(QueueUrl=site.queues.url, MessageBody=REGISTRATION)
    given = process(tmp_path, identity, variables_of(stack, "Function"))
    with cloud.enforced(), sandbox(tmp_path, given, root=ROOT) as function:
        function.wait_until_ready()
        assert function.invoke(event_of(site.queues)).kind == "error"
        (line,) = function.log_lines("function.away")
        assert "MONGO_SECRET_ARN: the secret cannot be read (AccessDenied" in line["error"]


def test_the_api_does_its_job_with_its_role_and_its_variables(
    cloud: Cloud, tmp_path: Path, mongo_uri: str
) -> None:
    site = Site(cloud, "function")
    stack = site.function(mongo_uri)
    given = process(tmp_path, role_of(stack, "ApiRole"), variables_of(stack, "ApiFunction"))
    with cloud.enforced(), sandbox(tmp_path, given, root=ROOT, handler=API) as api:
        api.wait_until_ready()
        headers = {"x-api-key": KEYS["all"], "content-type": "application/json"}
        body = json.dumps(USER)
        answer = api.invoke(event("POST", "/registrations", body=body, headers=headers))
        assert answer.content["statusCode"] == 202, answer.content
        queues = api.invoke(event(path="/queues", headers=headers)).content
        assert [each["visible"] for each in json.loads(queues["body"])["queues"]] == [1, 0]
        denied = api.invoke(event("POST", "/registrations", body=body)).content
        assert denied["statusCode"] == 401


@pytest.mark.parametrize("secret", ["MongoSecretArn", "ApiKeysSecretArn"])
def test_without_the_permission_for_a_secret_the_api_does_not_start(
    cloud: Cloud, tmp_path: Path, mongo_server: MongoServer, secret: str
) -> None:
    site = Site(cloud, "function")
    stack = site.function(mongo_server.uri("test"))
    identity = without(stack, "ApiRole", READ, stack.given[secret])
    given = process(tmp_path, identity, variables_of(stack, "ApiFunction"))
    with cloud.enforced(), sandbox(tmp_path, given, root=ROOT, handler=API) as api:
        what = f"{VARIABLES[secret]}: the secret cannot be read (AccessDenied"
        wait_until(lambda: what in api.log_text(), 30, "the refusal")
