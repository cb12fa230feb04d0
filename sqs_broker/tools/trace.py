"""All that is known of one message: in the control database, in a log, and as a dead letter.

Nothing here receives from a main queue: a message that waits there would lose a delivery.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqs_broker.tools.dead_letters import DeadLetterMessage

if TYPE_CHECKING:
    from sqs_broker.control.store import Store

#: The fields of a log line that are shown. None of them holds personal data.
SHOWN = ("task", "queue", "deliveries", "attempt", "outcome", "error", "reason", "delay")


@dataclass(frozen=True)
class Fact:
    """One thing that is known of a message."""

    source: str
    """Who knows it."""
    text: str
    at: datetime | None = None
    """When it happened; None if that is not known."""


@dataclass(frozen=True)
class Logged:
    """What a log says about a message."""

    facts: tuple[Fact, ...]
    sqs_ids: frozenset[str]
    """SQS's MessageIds of the message and of its copies."""


def in_log(lines: Iterable[str], id_: str) -> Logged:
    """The events of a message in lines of JSON. Other lines are left out."""
    facts, sqs_ids = [], set()
    for line in lines:
        if id_ not in line:
            continue
        content: Any = None
        with suppress(ValueError, RecursionError):
            content = json.loads(line)
        if not isinstance(content, dict) or id_ not in _ids_in(content):
            continue
        if isinstance(found := content.get("sqs_message_id"), str):
            sqs_ids.add(found)
        shown = [f"{name}={content[name]}" for name in SHOWN if content.get(name) is not None]
        text = " ".join([str(content.get("event") or "(no event)"), *shown])
        facts.append(Fact("log", text, time_in(content.get("time"))))
    return Logged(tuple(facts), frozenset(sqs_ids))


def _ids_in(content: dict[str, Any]) -> set[Any]:
    ids = (content.get("message_id"), content.get("sqs_message_id"), content.get("task_id"))
    return {each for each in ids if isinstance(each, str)}


def time_in(value: object) -> datetime | None:
    """A time in ISO's form; None for anything else."""
    if isinstance(value, str):
        with suppress(ValueError):
            at = datetime.fromisoformat(value)
            return at if at.tzinfo else at.replace(tzinfo=UTC)
    return None


def insights_query(id_: str) -> str:
    """The query of CloudWatch Logs Insights that finds the lines of a message."""
    quoted = json.dumps(id_)
    return (
        f"fields @timestamp, event, {', '.join(SHOWN)}, sqs_message_id\n"
        f"| filter message_id = {quoted} or sqs_message_id = {quoted}\n"
        "| sort @timestamp asc | limit 1000"
    )


def in_control(store: "Store", id_: str, sqs_ids: Iterable[str]) -> Iterator[Fact]:
    """What the control database knows. Raises pymongo's errors."""
    from sqs_broker.control.audit import Audit  # These need pymongo.
    from sqs_broker.control.redrives import Redrives

    if (revoked_at := store.revoked_at(id_)) is not None:
        text = "revoked: it does not run, unless a worker had already taken it"
        yield Fact("control", text, _utc(revoked_at))
    for sqs_id, record in store.histories(id_, sqs_ids).items():
        for run in record.runs:
            text = f"delivery {run.delivery} of {sqs_id} failed: {run.error or 'unknown'}"
            yield Fact("attempt", text, run.at)
        failed, released = _listed(record.failed), _listed(record.released)
        text = f"of {sqs_id}: deliveries that failed: {failed}; that were released: {released}"
        yield Fact("attempts", text)
    if count := Redrives(store).counts([id_]).get(id_):
        yield Fact("redrives", f"redriven {count} times")
    for entry in Audit(store).of_message(id_):
        changed = f", changed: {', '.join(entry['changed'])}" if entry.get("changed") else ""
        yield Fact("audit", f"{entry['action']} by {entry['by']}{changed}", _utc(entry["at"]))


def of_letter(message: DeadLetterMessage) -> Fact:
    """What a dead letter says."""
    why = f"{message.error}: {message.reason}" if message.error else message.reason
    deliveries = "" if message.deliveries is None else f" after {message.deliveries} deliveries"
    text = f"task {message.task or 'unknown'}, from {message.queue or 'an unknown queue'}"
    return Fact("dead letter", f"{text}{deliveries}: {why}", message.dead_since)


def in_order(facts: Iterable[Fact]) -> Sequence[Fact]:
    """By time; those without a time last."""
    return sorted(facts, key=lambda fact: (fact.at is None, fact.at or datetime.now(UTC)))


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
