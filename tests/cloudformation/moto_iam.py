"""What moto's IAM gets wrong about who may call what.

- SQS has no actions for batches: "the permission for SendMessage" covers SendMessageBatch.
  https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-batch-api.html
- Of some services, moto asks for each action on the resource `*`.
- A refusal is XML, also for a client that speaks JSON, which then reads no error code.
"""

from typing import Any

from moto.core.exceptions import JsonRESTError
from moto.iam import access_control
from moto.secretsmanager.responses import SecretsManagerResponse
from moto.sns.responses import SNSResponse


class Denied(JsonRESTError):
    """The refusal, as a client that speaks JSON reads it."""

    code = 403


def _check(check: Any) -> Any:
    def check_action_permitted(self: Any, resource: str) -> None:
        if self._service == "sqs":
            self._action = self._action.removesuffix("Batch")
        check(self, resource)

    return check_action_permitted


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


def complete() -> None:
    """Make moto ask as IAM does."""
    base: Any = access_control.IAMRequestBase
    request: Any = access_control.IAMRequest
    base.check_action_permitted = _check(base.check_action_permitted)
    request._raise_access_denied = _raise(request._raise_access_denied)
    SecretsManagerResponse._determine_resource = _secret_of  # type: ignore[attr-defined]
    SNSResponse._determine_resource = _topic_of  # type: ignore[attr-defined]
