"""The errors of the domain, split by what the worker must do.

    AppError
    ├── TransientError   retry: the same message may succeed later
    ├── PermanentError   dead-letter: it never will
    │   └── Conflict     another payload came first
    └── SettingsError    stop: a person has to change something

The text of each is shown in logs, in Flower and on dead letters, so it names fields, settings
and ids, never a value that a user typed.
"""

from sqs_broker.errors import ConfigurationError


class AppError(Exception):
    """Something this application can name and act upon."""


class TransientError(AppError):
    """The message may succeed later: retry it, after `retry_after` seconds or with backoff."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class PermanentError(AppError):
    """The message can never succeed: dead-letter it with this text as the reason."""


class Conflict(PermanentError):
    """The same key arrived before with another payload. The first one stays."""


class SettingsError(AppError, ConfigurationError):
    """The process cannot run as it is configured: it stops with this one line."""
