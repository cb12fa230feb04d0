"""What is known about the earlier deliveries of a message: how many of them were failed runs.

SQS counts receives, and stores nothing else about a message. An attempt is a run that failed, which
SQS does not count. So workers record in a store which deliveries of a message failed. If a message
is replaced by a copy, the copy carries the sums in one attribute, because SQS counts the copy's
deliveries from one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from math import isfinite
from typing import Any, Protocol

from sqs_broker.limits import MOST_ATTRIBUTES
from sqs_broker.rules.attributes import ATTEMPTS, DEAD_LETTER, Attributes, size
from sqs_broker.rules.envelope import LONGEST_ID

#: Most failed runs that a record describes: the latest.
MOST_RUNS = 20


@dataclass(frozen=True)
class Run:
    """A run that failed, for a person who asks what happened. Nothing is counted by it."""

    delivery: int
    """The number of the delivery (ApproximateReceiveCount)."""
    at: datetime
    """When it was recorded, in UTC."""
    error: str
    """The class of the exception."""


@dataclass(frozen=True)
class Record:
    """What a store has about one message: numbers of deliveries (ApproximateReceiveCount)."""

    failed: frozenset[int] = frozenset()
    """The deliveries in which the run failed, or asked for a retry."""
    released: frozenset[int] = frozenset()
    """The deliveries in which the message was released."""
    runs: tuple[Run, ...] = field(default=(), compare=False)
    """The latest of the failed runs. Workers do not read them."""
    id: str | None = field(default=None, compare=False)
    """The id that the producer gave the message, by which a person asks for its runs."""

    def __or__(self, other: "Record") -> "Record":
        runs = {run.delivery: run for run in (*self.runs, *other.runs)}
        return Record(
            self.failed | other.failed,
            self.released | other.released,
            tuple(runs[number] for number in sorted(runs)[-MOST_RUNS:]),
            other.id or self.id,
        )


class AttemptStore(Protocol):
    """Keeps records of messages, by SQS's MessageId. Thread-safe.

    Best effort: neither method raises, and what cannot be written or read is missing. So failed
    runs may be missing from a record, but never are there too many.
    """

    def read(self, message_ids: Sequence[str]) -> Mapping[str, Record]:
        """The records of these messages."""

    def add(self, changes: Mapping[str, Record]) -> None:
        """Add these numbers to the records. To add a number again changes nothing."""


@dataclass(frozen=True)
class Carried:
    """What a copy says about the deliveries of the messages that it replaces."""

    failed: int = 0
    """Number of failed runs."""
    released: int = 0
    """Number of deliveries that ended without a failed run."""
    deliveries: int = 0
    """Number of all deliveries."""
    first: float | None = None
    """When the first of these messages was received, by SQS's clock, in seconds since 1970."""
    due: float | None = None
    """When the copy may run, in seconds since 1970, if SQS cannot delay it for so long."""
    id: str | None = None
    """The id of a message that its producer gave none: the MessageId of the first message."""
    sent: float | None = None
    """When the producer sent the first message, by SQS's clock, in seconds since 1970."""


NOTHING = Carried()


def carried_in(attributes: Mapping[str, Mapping[str, Any]]) -> Carried:
    """What a message carries. Whatever cannot be read is nothing.

    A message that was redriven together with its reason begins from zero.
    """
    if ATTEMPTS not in attributes or DEAD_LETTER in attributes:
        return NOTHING
    try:
        content = json.loads(attributes[ATTEMPTS].get("StringValue", ""))
    except (ValueError, RecursionError):
        return NOTHING
    if not isinstance(content, dict):
        return NOTHING
    return Carried(
        failed=_count(content.get("failed")),
        released=_count(content.get("released")),
        deliveries=_count(content.get("deliveries")),
        first=_time(content.get("first")),
        due=_time(content.get("due")),
        id=_id(content.get("id")),
        sent=_time(content.get("sent")),
    )


def with_carried(
    attributes: Mapping[str, Mapping[str, Any]], carried: Carried, body: str, limit: int
) -> Attributes:
    """The attributes of a copy that carries this.

    If the message has ten attributes of its own, or if the copy would be larger than `limit` bytes,
    the copy carries nothing: its attempts count from one.
    """
    own = without_ours(attributes)
    if carried == NOTHING or len(own) >= MOST_ATTRIBUTES:
        return own
    # ASCII only: SQS allows every character that this JSON can contain.
    content = {name: value for name, value in asdict(carried).items() if value is not None}
    added = {**own, ATTEMPTS: {"DataType": "String", "StringValue": json.dumps(content)}}
    return added if size(body, added) <= limit else own


def without_ours(attributes: Mapping[str, Mapping[str, Any]]) -> Attributes:
    """The attributes that the message's producer gave it."""
    return {n: value for n, value in attributes.items() if n not in (ATTEMPTS, DEAD_LETTER)}


def _count(value: object) -> int:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else 0  # type: ignore[return-value]  # mypy does not follow is_count


def _time(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:
        return None


def _id(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_ID else None
