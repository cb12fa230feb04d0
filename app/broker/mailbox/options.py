"""`control` of broker_transport_options: where the control plane lives, and Celery's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Self

from app.broker.errors import ConfigurationError

#: Days a message can live: in its queue, in the dead-letter queue, and in its queue again, 14 each.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
LONGEST_LIFE_DAYS = 45


class Kind(Enum):
    """What an exchange of the control plane carries."""

    EVENTS = "events"
    COMMANDS = "commands"
    REPLIES = "replies"


@dataclass(frozen=True)
class ControlOptions:
    """Where the control plane lives. Equal for everybody who is to hear each other."""

    uri: str | None = field(default=None, repr=False)
    """MongoDB's. Without it there is no control plane, and only its clients are told so."""
    database: str = "celery_control"
    size_bytes: int = 64 * 1024 * 1024
    """Of the capped collection, which holds the latest events and commands."""
    revokes_seconds: int = LONGEST_LIFE_DAYS * 24 * 3600
    """How long a revoke is kept."""
    how_to_set: str = "Give broker_transport_options a `control` with a `database_uri`."
    event_exchange: str = "celeryev"
    event_queue_prefix: str = "celeryev"
    control_exchange: str = "celery"

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Read the option. `database_uri` may be a pydantic secret. Raises ConfigurationError."""
        values = dict(given)
        uri = values.pop("database_uri", None)
        # A name that Celery masks wherever it shows its configuration (celery 5.7 app/utils.py).
        values["uri"] = uri.get_secret_value() if hasattr(uri, "get_secret_value") else uri
        try:
            return cls(**values)
        except TypeError:
            known = ", ".join(sorted({"database_uri", *cls.__dataclass_fields__} - {"uri"}))
            raise ConfigurationError(
                f"broker_transport_options: control takes {known}, and nothing else."
            ) from None

    def kind(self, exchange: str) -> Kind | None:
        """What an exchange carries; None where it is none of the control plane's."""
        return self._kinds.get(exchange)

    def owns_queue(self, name: str) -> bool:
        """Whether a queue of this name is the control plane's: an allow-list of Celery's names."""
        return name.startswith(f"{self.event_queue_prefix}.") or name.endswith(
            f".{self.control_exchange}.pidbox"
        )

    def require_uri(self) -> str:
        """MongoDB's URI. Raises ConfigurationError where there is none."""
        if self.uri is None:
            raise ConfigurationError(
                f"Events, inspect and control go through MongoDB. {self.how_to_set}"
            )
        return self.uri

    @cached_property
    def _kinds(self) -> dict[str, Kind]:
        # kombu 5.7 pidbox.py, celery 5.7 events/event.py.
        return {
            self.event_exchange: Kind.EVENTS,
            f"{self.control_exchange}.pidbox": Kind.COMMANDS,
            f"reply.{self.control_exchange}.pidbox": Kind.REPLIES,
        }
