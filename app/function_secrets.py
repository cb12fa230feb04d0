"""What a Lambda function reads from Secrets Manager."""

import json
from contextlib import suppress

from app.celery import app
from app.errors import SettingsError
from app.mongo import address_of
from app.settings import get_function_settings, get_settings, is_function
from sqs_broker.options import Options
from sqs_broker.sqs.boto import read_secret
from sqs_broker.sqs.errors import SqsError

PLAIN = (
    "MONGO_URI holds a password, and everybody who may see the function can read its variables. "
    "Put the URI into a secret of Secrets Manager, and set MONGO_SECRET_ARN instead."
)


def read_mongo_uri() -> str:
    """The URI of MongoDB: from the secret, or from the variable if it holds no password. Raises
    SettingsError."""
    arn = get_function_settings().mongo_secret_arn
    if arn is not None:
        uri = _read("MONGO_SECRET_ARN", arn, "MONGO_URI", "a URI")
        address_of(uri)
        return uri
    uri = get_settings().require_mongo_uri()
    if is_function() and ":" in address_of(uri).base.partition("://")[2].rpartition("@")[0]:
        raise SettingsError(PLAIN)
    return uri


def read_api_keys() -> str | None:
    """The entries of the API keys, from their secret; None if no secret is named. Raises
    SettingsError."""
    arn = get_function_settings().api_keys_secret_arn
    if arn is None:
        return None
    return _read("API_KEYS_SECRET_ARN", arn, "API_KEYS", "the entries of API keys")


def _read(setting: str, arn: str, name: str, what: str) -> str:
    """The text of a secret, or what a JSON object in it has under this name."""
    options = Options.read(app.conf.broker_transport_options, accepts_fifo=True)
    try:
        text = read_secret(options, arn)
    except SqsError as exc:
        raise SettingsError(
            f"{setting}: the secret cannot be read ({exc.code}). Check the ARN, and the "
            "permission secretsmanager:GetSecretValue of the function's role."
        ) from None
    found: object = text
    with suppress(ValueError):
        found = json.loads(text or "")
    if isinstance(found, dict):
        found = found.get(name)
    if not isinstance(found, str) or not found:
        raise SettingsError(
            f"{setting}: the secret is neither {what} nor a JSON object with {name}."
        )
    return found
