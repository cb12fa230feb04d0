"""The settings of the Lambda function."""

import os

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.settings.fields import Arn


class FunctionSettings(BaseSettings):
    """The settings that only the Lambda function has. Each field is an environment variable."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    mongo_secret_arn: Arn | None = Field(
        None,
        description="ARN of the secret in Secrets Manager that holds the URI of MongoDB: as its "
        "text, or as `MONGO_URI` in a JSON object.",
    )
    api_keys_secret_arn: Arn | None = Field(
        None,
        description="ARN of the secret that holds the keys of the HTTP API: as its text, or as "
        "`API_KEYS` in a JSON object. For the function that is the API.",
    )


def is_function() -> bool:
    """Whether this process is a Lambda function."""
    # https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html
    return bool(os.environ.get("AWS_LAMBDA_FUNCTION_NAME"))
