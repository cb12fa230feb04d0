"""The settings of workers, producers and commands, which the other programs have too."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import SettingsError
from app.settings.fields import Region, Secret, Url, capitals
from app.settings.function import is_function
from sqs_broker.limits import (
    LONGEST_POLL,
    LONGEST_RETENTION,
    LONGEST_VISIBILITY,
    MOST_BYTES,
    MOST_IN_FLIGHT,
)
from sqs_broker.machine.address import is_loopback
from sqs_broker.rules.policy import SPARE_DELIVERIES

#: Seconds by which the default visibility timeout is longer than the hard time limit of a task:
#: time to end the task and settle its message, and for small differences between clocks.
VISIBILITY_MARGIN = 30

#: The database if MONGO_URI names none.
DEFAULT_DATABASE = "registrations"

HOW_TO_SET = (
    "Set {} in the environment or in .env; `make run` writes all variables to .local/stack.env."
)


class QueueSettings(BaseModel):
    """One queue of `SQS_QUEUES`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Url
    dead_letter_url: Url | None = None
    tasks: tuple[str, ...] = Field((), description="Task names, or globs, sent to this queue.")


class Settings(BaseSettings):
    """Each field is an environment variable with the same name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    aws_region: Region | None = Field(None, description="AWS region of the queues.")
    aws_sqs_queue_url: Url | None = Field(None, description="URL of the main queue.")
    aws_sqs_dlq_url: Url | None = Field(
        None, description="URL of the dead-letter queue. Required by the worker."
    )
    sqs_queues: dict[str, QueueSettings] = Field(
        {},
        description="Additional queues, as JSON: "
        '`{"name": {"url": …, "dead_letter_url": …, "tasks": ["import*"]}}`.',
    )
    aws_endpoint_url: Url | None = Field(
        None, description="URL of an SQS server other than AWS, such as the one `make run` starts."
    )
    aws_access_key_id: Secret | None = Field(
        None, description="Static credentials. Default: boto3 searches its own credential chain."
    )
    aws_secret_access_key: Secret | None = Field(
        None, description="Secret for `AWS_ACCESS_KEY_ID`."
    )
    aws_session_token: Secret | None = Field(
        None, description="Session token for `AWS_ACCESS_KEY_ID`, if it is temporary."
    )

    mongo_uri: Secret | None = Field(
        None,
        description="URI of a MongoDB replica set, with the database name. Required by the worker.",
    )

    control_database: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,63}$")] | None = (
        Field(
            None,
            description="Database for events and remote control. Default: the database name in "
            "`MONGO_URI` with `_control` appended.",
        )
    )
    control_size_mib: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        64,
        description="Size in MiB of each of the two collections in that database that hold the "
        "latest events and the latest commands.",
    )

    starting_money: Annotated[int, Field(ge=0, le=2**53)] = Field(
        1_000_000, description="Initial `money` of a user if the registration does not set it."
    )
    once_retention_days: Annotated[int, Field(ge=43)] = Field(
        45,
        description="How long `@once` remembers a message id, in days. Must exceed the time a "
        "message can stay in the queue, in the dead-letter queue and, after a redrive, in the "
        "queue again: 14 days each.",
    )

    mongo_transaction_lifetime: Annotated[int, Field(ge=1)] = Field(
        60,
        description="Value of MongoDB's `transactionLifetimeLimitSeconds`: how long the "
        "transaction of a killed process keeps its locks, in seconds.",
    )

    worker_concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Number of tasks that run at the same time. Default: the number of CPU cores.",
    )
    worker_health_file: str | None = Field(
        None,
        description="File that the worker updates and `celery -A app sqs health` reads. Each "
        "worker needs its own file.",
    )
    worker_unhealthy_exit: Annotated[int, Field(ge=0)] = Field(
        300,
        description="Time after which a worker that is not healthy ends with exit status 75, so "
        "that its supervisor starts another, in seconds. 0: never.",
    )
    worker_metrics_seconds: Annotated[int, Field(ge=0, le=300)] = Field(
        0,
        description="Period of the metric lines that the worker writes to stdout for CloudWatch, "
        "in seconds. 0: no lines.",
    )
    worker_metrics_port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        None,
        description="Port on which the worker serves `/metrics` for Prometheus. Each worker of a "
        "machine needs its own. Default: none.",
    )
    worker_metrics_address: str = Field(
        "127.0.0.1",
        description="Address of that port. An address other than loopback requires a login.",
    )
    worker_metrics_login: Secret | None = Field(
        None, description="Login of that page: `user:password`."
    )
    worker_opentelemetry: bool = Field(
        False,
        description="Whether the meter provider of OpenTelemetry gets the figures. `true` needs "
        "opentelemetry-api, and a provider, such as `opentelemetry-instrument` sets.",
    )
    tracing: bool = Field(
        False,
        description="Whether requests, messages and runs have spans of OpenTelemetry, whose own "
        "variables say where they go to.",
    )
    worker_shutdown_timeout: Annotated[int, Field(ge=0)] = Field(
        90,
        description="Time that running tasks have to finish after the stop signal, in seconds. "
        "Then the worker ends them and releases their messages, which may take 25 more seconds.",
    )
    task_soft_time_limit: Annotated[int, Field(ge=1)] = Field(
        25, description="Time after which `SoftTimeLimitExceeded` is raised in a task, in seconds."
    )
    task_time_limit: Annotated[int, Field(ge=1)] = Field(
        30, description="Time after which a task is killed and its message is retried, in seconds."
    )
    sqs_visibility_timeout: Annotated[int, Field(ge=1, le=LONGEST_VISIBILITY)] | None = Field(
        None, description="Visibility timeout, in seconds. Default: `TASK_TIME_LIMIT` + 30."
    )
    sqs_max_attempts: Annotated[int, Field(ge=1)] = Field(
        3,
        description="Number of failed runs after which a message goes to the dead-letter queue. "
        "Earlier failures are retried.",
    )
    sqs_max_receive_count: Annotated[int, Field(ge=1, le=1000)] = Field(
        10,
        description="`maxReceiveCount` in the queue's redrive policy. At least "
        "`SQS_MAX_ATTEMPTS` + 3.",
    )
    sqs_backoff_base: Annotated[float, Field(gt=0)] = Field(
        2.0,
        description="Longest delay before the first retry, in seconds. This limit doubles with "
        "each attempt.",
    )
    sqs_backoff_max: Annotated[int, Field(ge=1, le=LONGEST_VISIBILITY)] = Field(
        600, description="Upper limit of that delay, in seconds."
    )
    sqs_unknown_task_grace: Annotated[int, Field(ge=0)] = Field(
        600,
        description="Time from the first receive of a message whose task the worker does not know "
        "until it is dead-lettered, in seconds. Until then it is released, for a worker that has "
        "the task.",
    )
    sqs_eta_max: Annotated[int, Field(ge=1)] = Field(
        LONGEST_RETENTION,
        description="Longest time until the `eta` of a message or the end of its countdown, in "
        "seconds (14 days).",
    )
    sqs_most_in_flight: Annotated[int, Field(ge=1, le=MOST_IN_FLIGHT)] = Field(
        60_000,
        description="Number of messages of a queue in flight from which on retries wait as delayed "
        "copies. SQS allows 120,000.",
    )
    sqs_wait_time: Annotated[int, Field(ge=0, le=LONGEST_POLL)] = Field(
        LONGEST_POLL, description="Time a receive call waits for a message (long poll), in seconds."
    )
    sqs_max_message_bytes: Annotated[int, Field(ge=1024, le=MOST_BYTES)] = Field(
        MOST_BYTES, description="`MaximumMessageSize` of the queue, in bytes."
    )
    sqs_client: Literal["curl", "boto3"] | None = Field(
        None,
        description="What calls SQS: `curl` (libcurl, which takes less of a CPU) or `boto3`. "
        "Default: `curl` if this machine has a libcurl that can sign calls.",
    )
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(capitals)
    ] = Field("INFO", description="Log level of the worker.")

    @property
    def queues(self) -> dict[str, QueueSettings]:
        """Queues by name, the default one first. The default queue's name is the end of its URL."""
        if self.aws_sqs_queue_url is None:
            return dict(self.sqs_queues)
        name = self.aws_sqs_queue_url.rstrip("/").rsplit("/", 1)[-1]
        default = QueueSettings(url=self.aws_sqs_queue_url, dead_letter_url=self.aws_sqs_dlq_url)
        return {name: default} | self.sqs_queues

    @property
    def visibility_timeout(self) -> int:
        """Length of a lease, in seconds."""
        return self.sqs_visibility_timeout or self.task_time_limit + VISIBILITY_MARGIN

    @property
    def credentials(self) -> dict[str, str]:
        """boto3's arguments for static credentials; empty if boto3's own chain must find some, as
        in a Lambda function, where Lambda sets and changes the variables."""
        if is_function() or self.aws_access_key_id is None or self.aws_secret_access_key is None:
            return {}
        given = {
            "aws_access_key_id": self.aws_access_key_id,
            "aws_secret_access_key": self.aws_secret_access_key,
            "aws_session_token": self.aws_session_token,
        }
        return {name: value.get_secret_value() for name, value in given.items() if value}

    def require_queue(self) -> Self:
        """Check the settings of every process that sends or receives. Raises SettingsError with all
        missing variables."""
        _require_none(self._missing_for_queue())
        return self

    def require_worker(self) -> Self:
        """Check the settings of a worker. Raises SettingsError with all missing variables."""
        _require_none([*self._missing_for_queue(), *self._missing_for_worker()])
        self._check_metrics()
        self._check_attempts()
        for name, queue in self.sqs_queues.items():
            if queue.dead_letter_url is None:
                raise SettingsError(f"SQS_QUEUES has no dead_letter_url for queue {name!r}.")
        return self

    def require_function(self) -> Self:
        """Check the settings of a Lambda function, except for the URI of MongoDB. Raises
        SettingsError with all missing variables."""
        missing = [*self._missing_for_queue(), *self._missing_for_worker()]
        _require_none(name for name in missing if name != "MONGO_URI")
        self._check_attempts()
        return self

    def require_flower(self) -> Self:
        """Check the settings of Flower, which shows queues (SQS), and events and replies of workers
        (MongoDB). Raises SettingsError with all missing variables."""
        _require_none([*self._missing_for_queue(), *self._missing_mongo_uri()])
        return self

    def require_api(self) -> Self:
        """Check the settings of the HTTP API, which sends to queues (SQS), and reads users and
        outcomes (MongoDB). Raises SettingsError with all missing variables."""
        _require_none([*self._missing_for_queue(), *self._missing_mongo_uri()])
        return self

    def require_mongo_uri(self) -> str:
        """The MongoDB URI. Raises SettingsError if there is none."""
        _require_none(self._missing_mongo_uri())
        assert self.mongo_uri is not None
        return self.mongo_uri.get_secret_value()

    def _check_metrics(self) -> None:
        if self.worker_metrics_login is not None:
            login = self.worker_metrics_login.get_secret_value()
            if not all(login.partition(":")):
                raise SettingsError("WORKER_METRICS_LOGIN must be user:password.")
        elif self.worker_metrics_port and not is_loopback(self.worker_metrics_address):
            raise SettingsError(
                f"The worker would serve /metrics at {self.worker_metrics_address} without a "
                "login. Set WORKER_METRICS_LOGIN=user:password, or "
                "WORKER_METRICS_ADDRESS=127.0.0.1."
            )

    def _check_attempts(self) -> None:
        # As the broker checks its options: here with the names of the variables.
        most = self.sqs_max_receive_count - SPARE_DELIVERIES
        if self.sqs_max_attempts > most:
            raise SettingsError(
                f"SQS_MAX_ATTEMPTS ({self.sqs_max_attempts}) must be at most {most}, which is "
                f"SQS_MAX_RECEIVE_COUNT ({self.sqs_max_receive_count}) minus {SPARE_DELIVERIES}. "
                "Otherwise SQS dead-letters messages before they have failed so often. Lower it, "
                "or raise SQS_MAX_RECEIVE_COUNT and maxReceiveCount of the queue."
            )

    def _missing_for_queue(self) -> Iterable[str]:
        if self.aws_region is None:
            yield "AWS_REGION"
        if not self.queues:
            yield "AWS_SQS_QUEUE_URL"
        if (self.aws_access_key_id is None) != (self.aws_secret_access_key is None):
            yield f"AWS_{'SECRET_ACCESS_KEY' if self.aws_access_key_id else 'ACCESS_KEY_ID'}"

    def _missing_for_worker(self) -> Iterable[str]:
        # Without a queue URL it is still likely that the variable of the default queue is missing.
        has_default_queue = self.aws_sqs_queue_url is not None or not self.sqs_queues
        if has_default_queue and self.aws_sqs_dlq_url is None:
            yield "AWS_SQS_DLQ_URL"
        yield from self._missing_mongo_uri()

    def _missing_mongo_uri(self) -> Iterable[str]:
        if self.mongo_uri is None:
            yield "MONGO_URI"


def _require_none(missing: Iterable[str]) -> None:
    names = list(missing)
    if len(names) == 1:
        raise SettingsError(f"{names[0]} is not set. {HOW_TO_SET.format('it')}")
    if names:
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        raise SettingsError(f"{listed} are not set. {HOW_TO_SET.format('them')}")
