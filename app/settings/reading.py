"""Reads the environment, and `.env` in the current directory if it exists."""

from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings
from pydantic_settings import SettingsError as UnreadableSettings

from app.errors import SettingsError
from app.settings.api import ApiSettings
from app.settings.common import Settings
from app.settings.ecs import EcsSettings
from app.settings.flower import FlowerSettings
from app.settings.function import FunctionSettings

NO_JSON = "Invalid settings. SQS_QUEUES: should be JSON"

#: The variables that every producer needs.
FOR_PRODUCERS = frozenset(
    {
        "aws_region",
        "aws_sqs_queue_url",
        "sqs_queues",
        "aws_endpoint_url",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
        "sqs_eta_max",
        "sqs_max_message_bytes",
    }
)

#: Settings that do not come from the environment, by field.
_given: dict[str, str] = {}


@cache
def get_settings() -> Settings:
    """The settings of this process, read at the first call.

    Raises SettingsError with the name of each variable whose value is invalid, never the value.
    """
    return _read(Settings, **_given)


def use_mongo_uri(uri: str | None) -> None:
    """Use this URI of MongoDB in place of the variable; None to use the variable again."""
    _given.clear()
    if uri is not None:
        _given["mongo_uri"] = uri
    get_settings.cache_clear()


def get_function_settings() -> FunctionSettings:
    """The function's settings. Raises SettingsError as `get_settings` does."""
    return _read(FunctionSettings)


def get_ecs_settings() -> EcsSettings:
    """The settings of a worker on ECS. Raises SettingsError as `get_settings` does."""
    return _read(EcsSettings)


@cache
def get_producer_settings() -> Settings:
    """The settings of a process that may be another program's, read at the first call. A variable
    that no producer needs has its default if its value is invalid, and a `.env` that cannot be read
    is not used.

    Raises SettingsError with the name of each other variable whose value is invalid.
    """
    try:
        return Settings()
    except (OSError, UnicodeError):
        return _read(Settings, _env_file=None, **_defaults_of_invalid(_env_file=None))
    except (ValidationError, UnreadableSettings):
        return _read(Settings, **_defaults_of_invalid())


def _defaults_of_invalid(**source: Any) -> dict[str, Any]:
    """The default of each variable that has an invalid value and that no producer needs."""
    try:
        Settings(**source)
    except UnreadableSettings:
        return {}  # Of SQS_QUEUES, which a producer needs.
    except ValidationError as exc:
        invalid = {str(fault["loc"][0]) for fault in exc.errors()} - FOR_PRODUCERS
        return {name: Settings.model_fields[name].default for name in invalid}
    return {}


@cache
def get_flower_settings() -> FlowerSettings:
    """Flower's settings, read at the first call. Raises SettingsError as `get_settings` does."""
    return _read(FlowerSettings)


@cache
def get_api_settings() -> ApiSettings:
    """The API's settings, read at the first call. Raises SettingsError as `get_settings` does."""
    return _read(ApiSettings)


Read = TypeVar("Read", bound=BaseSettings)


def _read(model: type[Read], **given: Any) -> Read:
    try:
        return model(**given)
    except UnreadableSettings:
        raise SettingsError(NO_JSON) from None
    except (OSError, UnicodeError) as exc:
        raise SettingsError(
            f".env in the current directory cannot be read ({type(exc).__name__}). Correct or "
            "remove it."
        ) from None
    except ValidationError as exc:
        prefix = model.model_config.get("env_prefix", "")
        faults = exc.errors(include_input=False, include_url=False)
        text = "; ".join(f"{prefix}{_variable(fault['loc'])}: {fault['msg']}" for fault in faults)
        raise SettingsError(f"Invalid settings. {text}") from None


def _variable(location: tuple[int | str, ...]) -> str:
    first, *rest = (str(part) for part in location)
    return ".".join([first.upper(), *rest])
