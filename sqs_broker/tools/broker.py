"""What every command needs: the broker's options, a driver, and error texts for failed calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import click

from sqs_broker.options import Options
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import SqsError
from sqs_broker.worker.defaults import uses_sqs


def options_of(celery_app: Any) -> Options:
    """The broker's options of the app that `celery -A` names.

    Raises ClickException if that app does not use this broker, and ConfigurationError.
    """
    if not uses_sqs(celery_app):
        raise click.ClickException(
            "This app does not use the SQS broker. Name one that does: `celery -A app sqs …`."
        )
    return Options.read(celery_app.conf.broker_transport_options)


def driver_of(options: Options) -> Driver:
    """An open driver. A call that fails, fails within seconds.

    Raises ConfigurationError, and ClickException if there are no credentials.
    """
    driver = driver_for(options)
    try:
        driver.open()
    except SqsError as exc:
        raise click.ClickException(without_credentials(exc)) from exc
    return driver


def is_aws(endpoint_url: str | None) -> bool:
    """Whether the endpoint is one of AWS, also one in a private network."""
    host = urlsplit(endpoint_url).hostname if endpoint_url else None
    return endpoint_url is None or (host or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))


@contextmanager
def asking(action: str, url: str) -> Iterator[None]:
    """Turn an SqsError of the block into one line that names the action and the queue."""
    try:
        yield
    except SqsError as exc:
        raise click.ClickException(refusal(exc, action, url)) from exc


def refusal(error: SqsError, action: str, url: str) -> str:
    """What a failed call means, and what to do."""
    code = error.code
    if error.is_of_key:
        return f"{url}: {action}: KMS key: {code}. Allow kms:Decrypt and kms:GenerateDataKey."
    if error.is_denied:
        return f"{url}: these credentials may not call sqs:{action} there. Allow it for their role."
    if error.is_no_queue:
        return f"{url}: there is no such queue. Check its URL and `region`, or create it."
    if error.has_reached:
        return f"{url}: {action} was refused: {code}."
    if error.has_no_credentials:
        return f"{url}: {action}: {without_credentials(error)}"
    return f"{url}: {action} got no answer: {code}. Check the network and `endpoint_url`."


def without_credentials(error: SqsError) -> str:
    """That this process has no credentials, and the way out."""
    return (
        f"this process has no credentials for AWS that it can use ({error.code}). Set "
        "the option `credentials`, or AWS_PROFILE, or give this machine a role."
    )
