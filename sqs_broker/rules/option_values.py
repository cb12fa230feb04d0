"""Which values the options take: numbers within their bounds, switches, names, lists, dictionaries.

A value that comes from an environment variable is a text. It would be compared with a number much
later, in a receiver or in a task, if it were not refused here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from sqs_broker.errors import ConfigurationError
from sqs_broker.limits import LONGEST_POLL, LONGEST_VISIBILITY, MOST_BYTES


@dataclass(frozen=True)
class Number:
    """A number from `lowest` to `highest`."""

    lowest: float = 0
    highest: float = inf
    is_whole: bool = False
    is_above: bool = False
    """Whether `lowest` itself is too low."""
    unit: str = "seconds"
    may_be_none: ClassVar[bool] = False

    def accepts(self, value: Any) -> bool:
        """Whether an option with this value is one. True and False are not."""
        kinds = int if self.is_whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        is_low_enough = value < inf if self.highest == inf else value <= self.highest
        is_high_enough = value > self.lowest if self.is_above else value >= self.lowest
        return is_low_enough and is_high_enough

    def __str__(self) -> str:
        what = f"a {'whole ' if self.is_whole else ''}number of {self.unit}"
        if self.highest < inf:
            return f"{what} from {self.lowest} to {self.highest}"
        return f"{what} {'above' if self.is_above else 'of at least'} {self.lowest}"


@dataclass(frozen=True)
class Kind:
    """A value of one of these classes."""

    classes: tuple[type, ...]
    name: str
    may_be_none: bool = True

    def accepts(self, value: Any) -> bool:
        """Whether an option with this value is one."""
        return isinstance(value, self.classes)

    def __str__(self) -> str:
        return self.name


def _count(unit: str, lowest: int = 1, highest: float = inf) -> Number:
    return Number(lowest, highest, is_whole=True, unit=unit)


_SECONDS = Number()
_SOME_SECONDS = Number(is_above=True)
_SWITCH = Kind((bool,), "True or False", may_be_none=False)
_TEXT = Kind((str,), "a text")
_DICTIONARY = Kind((Mapping,), "a dictionary")
_LIST = Kind((list, tuple), "a list")

#: Of `broker_transport_options`. Options that are not here are checked by what reads them.
VALUES: Mapping[str, Number | Kind] = {
    "backoff_base": _SECONDS,
    "backoff_max": _SECONDS,
    "brackets": _LIST,
    "cancel_on_lease_loss": _SWITCH,
    "client-config": _DICTIONARY,
    "control": Kind((str, Mapping), "a dictionary, or the import path of a function"),
    "credentials": _DICTIONARY,
    "endpoint_url": _TEXT,
    "eta_max": _SECONDS,
    "heartbeat": _SWITCH,
    "log_texts": _SWITCH,
    "longest_wait": _SOME_SECONDS,
    "max_attempts": _count("failed runs"),
    "max_message_bytes": _count("bytes", highest=MOST_BYTES),
    "max_receive_count": _count("deliveries"),
    "max_receivers": _count("calls"),
    "metrics": _DICTIONARY,
    "most_in_flight": _count("messages", lowest=0),
    "observers": _LIST,
    "predefined_queues": _DICTIONARY,
    "publish_timeout": _SOME_SECONDS,
    "receive_pause_max": _SECONDS,
    "region": _TEXT,
    "schemas": _DICTIONARY,
    "shutdown_timeout": _SECONDS,
    "sts_role_arn": _TEXT,
    "unhealthy_exit": _SECONDS,
    "unknown_task_grace": _SECONDS,
    "visibility_timeout": _count("seconds", highest=LONGEST_VISIBILITY),
    "wait_time_seconds": _count("seconds", lowest=0, highest=LONGEST_POLL),
}


#: The options that have another name in the code.
NAMES = {"uri": "database_uri"}

#: Of `control`.
CONTROL_VALUES: Mapping[str, Number | Kind] = {
    "control_exchange": _TEXT,
    "database": _TEXT,
    "event_exchange": _TEXT,
    "event_queue_prefix": _TEXT,
    "how_to_set": _TEXT,
    "revokes_seconds": _count("seconds"),
    "size_bytes": _count("bytes"),
    "uri": _TEXT,
}


def check_values(
    given: Mapping[str, Any],
    values: Mapping[str, Number | Kind] = VALUES,
    where: str = "broker_transport_options",
) -> None:
    """Raise ConfigurationError for the first option whose value is of another kind, or out of
    bounds. None stands for the default of a text, a list or a dictionary. The value itself is never
    in the text, which begins with `where`."""
    for name, value in given.items():
        wanted = values.get(name)
        if wanted is None or wanted.accepts(value):
            continue
        if value is None and wanted.may_be_none:
            continue
        is_text = isinstance(value, str) and wanted is not _TEXT
        raise ConfigurationError(
            f"{where}: `{NAMES.get(name, name)}` must be {wanted}{', not a text' * is_text}."
        )
