"""What moto's IAM gets wrong about who may call what.

- SQS has no actions for batches: "the permission for SendMessage" covers SendMessageBatch.
  https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-batch-api.html
- It takes the name that signs a call for the name of the service, which is another for CloudWatch.
- Of some services, moto asks for each action on the resource `*`.
- It signs Lambda's calls, which have no body, as if they had one.
- A refusal is XML, also for a client that speaks JSON, which then reads no error code.
"""

import json
from typing import Any

from moto.awslambda.responses import LambdaResponse
from moto.core.exceptions import JsonRESTError
from moto.iam import access_control
from moto.iam.models import iam_backends
from moto.secretsmanager.responses import SecretsManagerResponse
from moto.sns.responses import SNSResponse

#: The credentials of the account's owner, who may do everything.
KEY = "AKIAOWNER00000000000"
SECRET = "owner"

ACCOUNT = "123456789012"
EVERYTHING = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
}


class Denied(JsonRESTError):
    """The refusal, as a client that speaks JSON reads it."""

    code = 403


def _check(check: Any) -> Any:
    def check_action_permitted(self: Any, resource: str) -> None:
        if self._service == "sqs":
            self._action = self._action.removesuffix("Batch")
        self._action = self._action.replace("monitoring:", "cloudwatch:")
        check(self, resource)

    return check_action_permitted


def _but_of_lambda(check: Any) -> Any:
    def check_signature(self: Any) -> None:
        if self._service != "lambda":
            check(self)

    return check_signature


def _raise(refuse: Any) -> Any:
    def raise_access_denied(self: Any) -> None:
        if "json" in self._headers.get("Content-Type", ""):
            raise Denied("AccessDeniedException", f"not authorized to perform: {self._action}")
        refuse(self)

    return raise_access_denied


def _secret_of(self: Any) -> str:
    name = self._get_param("SecretId") or "*"
    for secret in self.backend.secrets.values():
        if name in (secret.arn, secret.name):
            return str(secret.arn)
    return str(name)


def _topic_of(self: Any) -> str:
    return str(self._get_param("TopicArn") or "*")


def _mapping_of(self: Any) -> str:
    """Of an event source mapping, its name."""
    _, is_one, id_ = str(self.parsed_url.path).partition("/event-source-mappings/")
    of_it = f"arn:aws:lambda:{self.region}:{ACCOUNT}:event-source-mapping:{id_}"
    return of_it if is_one and id_.strip("/") else "*"


def complete() -> None:
    """Make moto ask as IAM does."""
    base: Any = access_control.IAMRequestBase
    request: Any = access_control.IAMRequest
    base.check_action_permitted = _check(base.check_action_permitted)
    base.check_signature = _but_of_lambda(base.check_signature)
    request._raise_access_denied = _raise(request._raise_access_denied)
    SecretsManagerResponse._determine_resource = _secret_of  # type: ignore[attr-defined]
    LambdaResponse._determine_resource = _mapping_of  # type: ignore[attr-defined]
    SNSResponse._determine_resource = _topic_of  # type: ignore[attr-defined]


def add_owner() -> None:
    """Make the user to whom the account belongs."""
    iam = iam_backends[ACCOUNT]["aws"]
    iam.create_user("us-east-1", "owner")
    iam.put_user_policy("owner", "everything", json.dumps(EVERYTHING))
    key = iam.get_user("owner").create_access_key(prefix="AKIA")
    key.access_key_id, key.secret_access_key = KEY, SECRET
