"""What every command needs: the broker's options, a client, and words for what SQS refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from botocore.exceptions import BotoCoreError, ClientError

from sqs_broker.options import Options
from sqs_broker.sqs.calls import NO_QUEUE, error_code
from sqs_broker.sqs.clients import new_client
from sqs_broker.tools.permissions import DENIED

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient


def options_of(celery_app: Any) -> Options:
    """The broker's options of the app that `celery -A` names.

    Raises ClickException where that app is not on this broker, and SettingsError.
    """
    if celery_app.conf.broker_transport != "sqs_broker:Transport":
        raise click.ClickException(
            "This app is not on the SQS broker. Name one that is: `celery -A app sqs …`."
        )
    return Options.read(celery_app.conf.broker_transport_options)


def client_of(options: Options) -> "SQSClient":
    """A client for a command, which says a failure within seconds."""
    return new_client(options)


@contextmanager
def asking(action: str, url: str) -> Iterator[None]:
    """Turn what SQS refuses inside the block into one line that names the action and the queue."""
    try:
        yield
    except (ClientError, BotoCoreError) as exc:
        raise click.ClickException(refusal(exc, action, url)) from exc


def refusal(exc: Exception, action: str, url: str) -> str:
    """What a failed call means, and the way out."""
    code = error_code(exc)
    if isinstance(exc, ClientError) and exc.response["Error"].get("Code", "").startswith("KMS."):
        return f"{url}: {action}: its KMS key: {code}. Allow kms:Decrypt and kms:GenerateDataKey."
    if code in DENIED:
        return f"{url}: these credentials do not allow sqs:{action} there. Allow it to their role."
    if code in NO_QUEUE:
        return f"{url}: there is no such queue. Check the URL and AWS_REGION, or make the queue."
    if isinstance(exc, ClientError):
        return f"{url}: {action} was refused: {code}."
    return f"{url}: {action} got no answer: {code}. Check the network and AWS_ENDPOINT_URL."
