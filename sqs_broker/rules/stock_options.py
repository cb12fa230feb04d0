"""The options of kombu's SQS transport that this broker does not have, and what to do instead.

Names: kombu 5.7 transport/SQS/__init__.py, transport/virtual/base.py, connection.py. Those that
both have are in sqs_broker/options.py. docs/migrate.md lists all of them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from sqs_broker.errors import ConfigurationError


@dataclass(frozen=True)
class Refused:
    """An option that this broker does not have."""

    instead: str
    """What to do. A whole sentence."""
    harmless: tuple[Any, ...] = ()
    """Values that ask for what this broker does anyway. They are accepted."""


_TRIES = Refused("How long a call may take is the option `publish_timeout`.")
_CONNECTS = Refused("kombu calls it while it connects; here that opens nothing. Remove it.")
_CREATED = Refused("Queues are not created at run time. Set it where the queue is created.")
_SNS = "Subscribe the queue to the topic in SNS. Events and remote control use `control`."

#: Of `broker_transport_options`.
OF_TRANSPORT: Mapping[str, Refused] = {
    "body_encoding": Refused("Bodies are JSON text, which kombu reads too. Remove it."),
    "callback": _CONNECTS,
    "connect_retries_timeout": _TRIES,
    "deadletter_queue": Refused("A message without a queue raises PublishError. Remove it."),
    "errback": _CONNECTS,
    "fetch_message_attributes": Refused("The broker always fetches all of them. Remove it."),
    "interval_max": _TRIES,
    "interval_start": _TRIES,
    "interval_step": _TRIES,
    "is_secure": Refused("The scheme of `endpoint_url` decides. Remove it.", (True,)),
    "max_retries": _TRIES,
    "polling_interval": Refused(
        "There is no pause between two receive calls; `wait_time_seconds` is the long poll. "
        "Remove it.",
        (0,),
    ),
    "port": Refused("Write it into `endpoint_url`."),
    "predefined_exchanges": Refused(_SNS, ({},)),
    "queue_name_prefix": Refused("Write the whole names into `predefined_queues`.", ("",)),
    "queue_tags": _CREATED,
    "regioninfo": Refused("kombu does not use it either. Set `region`."),
    "sqs-creation-attributes": _CREATED,
    "sqs_base64_encoding": Refused("Bodies are JSON text, which kombu reads too.", (False,)),
    "supports_fanout": Refused(_SNS, (False,)),
}

_BACKOFF = Refused(
    "Set the options `backoff_base` and `backoff_max`, or call `self.retry(countdown=…)` in the "
    "task."
)

#: Of a queue in `predefined_queues`.
OF_QUEUE: Mapping[str, Refused] = {"backoff_policy": _BACKOFF, "backoff_tasks": _BACKOFF}

#: What kombu adds to the options of a connection whenever it publishes with a retry policy (kombu
#: 5.7 messaging.py), whatever the project has configured.
RETRY_POLICY = frozenset(
    {"interval_max", "interval_start", "interval_step", "max_retries", "retry_errors"}
)


def check_names(
    given: Mapping[str, Any],
    known: Collection[str],
    where: str,
    refused: Mapping[str, Refused] | None = None,
) -> None:
    """Raise ConfigurationError for the first name that is refused or unknown. `where` begins the
    sentence; a value is never in it."""
    for name, value in given.items():
        foreign = (refused or {}).get(name)
        if foreign is None and name not in known:
            raise ConfigurationError(f"{where} has no option {name!r}{_hint(str(name), known)}")
        if foreign is not None and value is not None and value not in foreign.harmless:
            raise ConfigurationError(f"{where}: {name!r} is not supported. {foreign.instead}")


def _hint(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f". It has: {', '.join(sorted(known))}."
