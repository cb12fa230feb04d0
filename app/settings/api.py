"""The settings of the HTTP API."""

from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ApiSettings(BaseSettings):
    """Each field is an environment variable: `API_` and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="API_", env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    address: str = Field(
        "127.0.0.1",
        description="Address the API listens on. An address other than loopback requires "
        "`API_KEYS`.",
    )
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        8000, description="Port the API listens on. 0: any free port."
    )
    processes: Annotated[int, Field(ge=1, le=64)] = Field(
        1,
        description="Processes that serve the port, each on a core of its own. Above 1: only on "
        "Linux.",
    )
    keys: SecretStr | None = Field(
        None,
        description="API keys, separated by commas: `name:sha256` or `name:scope+scope:sha256`, "
        "as `python -m app.api key` prints them. Without keys, everything is open to this machine.",
    )
    rate_limit: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Items per second that one API key may send to one process: each registration "
        "of a batch is an item, and so is each other request. Default: no limit.",
    )
    cors_origins: str | None = Field(
        None,
        description="Origins whose pages may call the API, separated by commas, such as "
        "`https://example.com`. Default: none.",
    )
    send_timeout: Annotated[float, Field(ge=1, le=60)] = Field(
        10.0,
        description="Time after which a request is answered with 503 if SQS has not taken its "
        "message, in seconds.",
    )
    most_waiting: Annotated[int, Field(ge=10)] = Field(
        10_000,
        description="Messages that may wait for a call to SQS. Above it, a request is answered "
        "with 503 at once.",
    )
    keep_alive: Annotated[int, Field(ge=1)] = Field(
        75,
        description="Time after which an idle connection is closed, in seconds. It must be longer "
        "than the idle timeout of a load balancer.",
    )
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Time after the stop signal in which the API still serves while `/readyz` "
        "fails, in seconds: as long as a load balancer needs to notice.",
    )

    @property
    def origins(self) -> list[str]:
        """The origins whose pages may call the API."""
        return [origin.strip() for origin in (self.cors_origins or "").split(",") if origin.strip()]
