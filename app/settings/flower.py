"""The settings of Flower."""

from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.settings.fields import Url


class FlowerSettings(BaseSettings):
    """Each field is an environment variable: `FLOWER_` and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="FLOWER_", env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    address: str = Field(
        "127.0.0.1",
        description="Address Flower listens on. An address other than loopback requires a login.",
    )
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(
        5555, description="Port Flower listens on."
    )
    basic_auth: SecretStr | None = Field(
        None, description="Login by password: `user:password`; separate several with commas."
    )
    auth_provider: str | None = Field(
        None, description="Login by an OAuth provider: the path of a class in `flower.views.auth`."
    )
    auth: str | None = Field(
        None,
        description="E-mail addresses that may log in through the provider: one address, several "
        "separated by a vertical bar, or `.*@example.com`.",
    )
    oauth2_key: str | None = Field(
        None, description="Client ID that the provider gave this Flower."
    )
    oauth2_secret: SecretStr | None = Field(
        None, description="Client secret for `FLOWER_OAUTH2_KEY`."
    )
    oauth2_redirect_uri: Url | None = Field(
        None, description="URL the provider redirects to after the login: `https://…/login`."
    )
    db: str = Field("flower.db", description="File in which Flower keeps its data across restarts.")

    @property
    def logins(self) -> list[str]:
        """The logins by password, each `user:password`."""
        return self.basic_auth.get_secret_value().split(",") if self.basic_auth else []
