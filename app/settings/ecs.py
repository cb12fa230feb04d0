"""The settings of a worker on Amazon ECS."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.settings.fields import Url


class EcsSettings(BaseSettings):
    """The settings that only a worker on Amazon ECS has. Each field is an environment variable."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    ecs_scale_in_protection: bool = Field(
        False,
        description="Whether a worker asks ECS not to stop it while a task runs for longer than "
        "5 s. Needed only if tasks run for longer than `WORKER_SHUTDOWN_TIMEOUT`.",
    )
    ecs_agent_uri: Url | None = Field(
        None, description="URL of ECS's agent, which ECS itself sets in each container."
    )
