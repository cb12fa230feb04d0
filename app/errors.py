"""The errors of the domain, by what the worker must do.

    AppError
    ├── TransientError   retry: the same message may succeed later
    ├── PermanentError   dead-letter: the message can never succeed
    │   └── Conflict     another payload came first
    ├── Unavailable      answer 503: SQS or MongoDB does not answer, or the process stops
    └── SettingsError    exit: a person must change something

Logs, Flower and dead letters show the text of these errors, so it contains names of fields,
settings and ids, but never user input.
"""

from sqs_broker.errors import ConfigurationError

#: Why a worker does not receive while MongoDB is down or accepts no writes.
AWAY = "MongoDB is unavailable"


class AppError(Exception):
    """An error that this application knows and handles."""


class TransientError(AppError):
    """The message may succeed later: retry it, after `retry_after` seconds or with backoff."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class PermanentError(AppError):
    """The message can never succeed: dead-letter it with this text as the reason."""


class Conflict(PermanentError):
    """The same key arrived before with another payload. The first one stays."""


class Unavailable(AppError):
    """What a client asked for is not possible now: ask again later. For the HTTP API."""


class SettingsError(AppError, ConfigurationError):
    """The process cannot run with this configuration: it exits and prints this one line."""
