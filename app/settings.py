"""The only reader of the environment.

Nothing is read at import. `get_settings()` reads the environment once, and `.env` in the current
directory where there is one. What is missing is an error only for the process that needs it:
a producer calls `require_queue()`, a worker `require_worker()`.
"""

from functools import cache
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableSettings

from app.errors import SettingsError

#: Seconds between the hard time limit of a task and the end of its message's visibility timeout:
#: time to stop the task, to settle its message, and for the clocks to disagree a little.
VISIBILITY_MARGIN = 30

#: The database where MONGO_URI names none.
DEFAULT_DATABASE = "registrations"

Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+")]

HOW_TO_SET = "Set it in the environment or in .env; `make run` writes .local/stack.env with all."


class QueueSettings(BaseModel):
    """One queue of `SQS_QUEUES`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Url
    dead_letter_url: Url | None = None
    tasks: tuple[str, ...] = Field((), description="Task names, or globs, sent to this queue.")


class Settings(BaseSettings):
    """Each field is the environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    aws_region: str | None = Field(None, description="Region of the queues.")
    aws_sqs_queue_url: Url | None = Field(None, description="URL of the queue.")
    aws_sqs_dlq_url: Url | None = Field(
        None, description="URL of its dead-letter queue. The worker needs it."
    )
    sqs_queues: dict[str, QueueSettings] = Field(
        {},
        description="More queues, as JSON: "
        '`{"name": {"url": …, "dead_letter_url": …, "tasks": ["import*"]}}`.',
    )
    aws_endpoint_url: Url | None = Field(
        None, description="An SQS server other than AWS, as `make run` starts."
    )
    aws_access_key_id: SecretStr | None = Field(
        None, description="Static credentials; without them boto3's own chain is used."
    )
    aws_secret_access_key: SecretStr | None = Field(None, description="Belongs to the key above.")
    aws_session_token: SecretStr | None = Field(None, description="Belongs to the key above.")

    mongo_uri: SecretStr | None = Field(
        None,
        description="MongoDB, a replica set, with the name of the database. The worker needs it.",
    )

    control_database: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,63}$")] | None = (
        Field(
            None,
            description="Database of events and remote control; without it, that of `MONGO_URI` "
            "with `_control` added.",
        )
    )
    control_size_mib: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        64, description="MiB of it that the latest events and commands may take."
    )

    starting_money: Annotated[int, Field(ge=0, le=2**53)] = Field(
        1_000_000, description="What a user starts with whose registration names no sum."
    )
    once_retention_days: Annotated[int, Field(ge=43)] = Field(
        45,
        description="Days a message id is remembered by `@once`: longer than queue, dead-letter "
        "queue and a redrive can keep a message (14 each).",
    )

    mongo_transaction_lifetime: Annotated[int, Field(ge=1)] = Field(
        60,
        description="MongoDB's `transactionLifetimeLimitSeconds`: how long the transaction of a "
        "killed process keeps its locks.",
    )

    worker_concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Tasks at a time; without it, the number of cores."
    )
    worker_health_file: str | None = Field(
        None,
        description="A file that the worker keeps writing and `celery -A app sqs health` reads; "
        "one for each worker.",
    )
    worker_shutdown_timeout: Annotated[int, Field(ge=0)] = Field(
        90,
        description="Seconds that running tasks have to finish once the worker is told to stop. "
        "Then they are cut off and their messages released, which may take 25 more.",
    )
    task_soft_time_limit: Annotated[int, Field(ge=1)] = Field(
        25, description="Seconds after which a task is told to stop."
    )
    task_time_limit: Annotated[int, Field(ge=1)] = Field(
        30, description="Seconds after which a task is killed, and its message retried."
    )
    sqs_visibility_timeout: Annotated[int, Field(ge=1, le=43_200)] | None = Field(
        None, description="Seconds of a lease; without it, the hard time limit and 30."
    )
    sqs_max_attempts: Annotated[int, Field(ge=1)] = Field(
        3, description="The failure in this delivery, or a later one, is dead-lettered."
    )
    sqs_max_receive_count: Annotated[int, Field(ge=1, le=1000)] = Field(
        10, description="`maxReceiveCount` of the queue's redrive policy, SQS's own backstop."
    )
    sqs_backoff_base: Annotated[float, Field(gt=0)] = Field(
        2.0, description="Seconds; the first retry waits up to this, each later one twice as long."
    )
    sqs_backoff_max: Annotated[int, Field(ge=1, le=43_200)] = Field(
        600, description="Seconds no retry waits longer than."
    )
    sqs_wait_time: Annotated[int, Field(ge=0, le=20)] = Field(
        20, description="Seconds a receive call waits for a message (long poll)."
    )
    sqs_max_message_bytes: Annotated[int, Field(ge=1024, le=1_048_576)] = Field(
        1_048_576, description="The queue's `MaximumMessageSize`."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Level of the worker's log."
    )

    @property
    def queues(self) -> dict[str, QueueSettings]:
        """Queues by name, the default one first. A queue is named by the end of its URL."""
        if self.aws_sqs_queue_url is None:
            return dict(self.sqs_queues)
        name = self.aws_sqs_queue_url.rstrip("/").rsplit("/", 1)[-1]
        default = QueueSettings(url=self.aws_sqs_queue_url, dead_letter_url=self.aws_sqs_dlq_url)
        return {name: default} | self.sqs_queues

    @property
    def visibility_timeout(self) -> int:
        """Seconds of a lease."""
        return self.sqs_visibility_timeout or self.task_time_limit + VISIBILITY_MARGIN

    @property
    def credentials(self) -> dict[str, str]:
        """boto3's arguments for static credentials; empty where its own chain is to find them."""
        if self.aws_access_key_id is None or self.aws_secret_access_key is None:
            return {}
        given = {
            "aws_access_key_id": self.aws_access_key_id,
            "aws_secret_access_key": self.aws_secret_access_key,
            "aws_session_token": self.aws_session_token,
        }
        return {name: value.get_secret_value() for name, value in given.items() if value}

    def require_queue(self) -> Self:
        """What everybody needs who sends or receives. Raises SettingsError naming the variable."""
        if self.aws_region is None:
            raise _missing("AWS_REGION")
        if not self.queues:
            raise _missing("AWS_SQS_QUEUE_URL")
        if (self.aws_access_key_id is None) != (self.aws_secret_access_key is None):
            half = "SECRET_ACCESS_KEY" if self.aws_access_key_id else "ACCESS_KEY_ID"
            raise _missing(f"AWS_{half}")
        return self

    def require_worker(self) -> Self:
        """What a worker needs beyond it. Raises SettingsError naming the variable."""
        self.require_queue()
        for name, queue in self.queues.items():
            if queue.dead_letter_url is None:
                if name in self.sqs_queues:
                    raise SettingsError(f"SQS_QUEUES gives no dead_letter_url for queue {name!r}.")
                raise _missing("AWS_SQS_DLQ_URL")
        self.require_mongo_uri()
        return self

    def require_mongo_uri(self) -> str:
        """The MongoDB URI. Raises SettingsError where there is none."""
        if self.mongo_uri is None:
            raise _missing("MONGO_URI")
        return self.mongo_uri.get_secret_value()


class FlowerSettings(BaseSettings):
    """Each field is the environment variable of the same name in capitals, after `FLOWER_`."""

    model_config = SettingsConfigDict(
        env_prefix="FLOWER_", env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    address: str = Field(
        "127.0.0.1",
        description="Where Flower listens. Beyond this machine (`0.0.0.0`) it wants a login.",
    )
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(5555, description="The port of it.")
    basic_auth: SecretStr | None = Field(
        None, description="Login by password: `user:password`, more of them after commas."
    )
    auth_provider: str | None = Field(
        None, description="Login by a provider: a class of `flower.views.auth`."
    )
    auth: str | None = Field(
        None,
        description="Whom the provider's login lets in: an address, several between bars, or "
        "`.*@example.com`.",
    )
    oauth2_key: str | None = Field(None, description="The provider's name for this Flower.")
    oauth2_secret: SecretStr | None = Field(None, description="Belongs to the key above.")
    oauth2_redirect_uri: Url | None = Field(
        None, description="Where the provider sends people back to: `https://…/login`."
    )
    db: str = Field(
        "flower.db", description="File with what Flower has seen, so that a restart forgets none."
    )

    @property
    def logins(self) -> list[str]:
        """`user:password` of each who may log in by password."""
        return self.basic_auth.get_secret_value().split(",") if self.basic_auth else []


@cache
def get_settings() -> Settings:
    """The settings of this process, read at the first call.

    Raises SettingsError naming each variable whose value is not possible, never the value.
    """
    return _read(Settings)


@cache
def get_flower_settings() -> FlowerSettings:
    """Those of Flower, read at the first call. Raises SettingsError as `get_settings` does."""
    return _read(FlowerSettings)


Read = TypeVar("Read", bound=BaseSettings)


def _read(model: type[Read]) -> Read:
    try:
        return model()
    except UnreadableSettings:
        raise SettingsError("Impossible settings. SQS_QUEUES: it should be JSON") from None
    except ValidationError as exc:
        prefix = model.model_config.get("env_prefix", "")
        faults = exc.errors(include_input=False, include_url=False)
        told = "; ".join(f"{prefix}{_variable(fault['loc'])}: {fault['msg']}" for fault in faults)
        raise SettingsError(f"Impossible settings. {told}") from None


def _variable(location: tuple[int | str, ...]) -> str:
    first, *rest = (str(part) for part in location)
    return ".".join([first.upper(), *rest])


def _missing(variable: str) -> SettingsError:
    return SettingsError(f"{variable} is not set. {HOW_TO_SET}")
