"""What may run, and why not: first on arrival, then by the tasks that are here. Pure functions.

arrival = arrive(delivery, decode_json)     # on arrival: what the body is, and whether it is due
answer = admit(arrival, tasks)              # the task that runs it, or what happened instead
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqs_broker.rules import time_limits
from sqs_broker.rules.decoding import Payload, decode
from sqs_broker.rules.due import CLOCK_TOLERANCE, seconds_until_due
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.foreign import DecodeJson
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import Happened, NotDue, Refused, UnknownTask
from sqs_broker.rules.provenance import Provenance, Source


class TaskMessage(Protocol):
    """A decoded message: kombu's, or an Arrival."""

    @property
    def headers(self) -> Any:
        """Celery's headers, by name."""

    @property
    def payload(self) -> Any:
        """What the task is called with: [args, kwargs, embed]."""


@dataclass(frozen=True)
class Arrival:
    """A decoded message for the worker, unless its delivery `ended` on arrival."""

    content: dict[str, Any] = field(default_factory=dict)
    """The message as kombu's `virtual.Message` takes it."""
    ended: Happened | None = None

    @property
    def headers(self) -> dict[str, Any] | None:
        """The headers of its task; None if they could not be read."""
        return self.content.get("headers")

    @property
    def payload(self) -> Payload:
        """What its task is called with: [args, kwargs, embed]."""
        payload: Payload = self.content["body"]
        return payload


@dataclass(frozen=True)
class Admitted:
    """A message that may run."""

    task: Any
    """The Celery task."""
    headers: dict[str, Any]
    """Headers that hold in place of the message's own: its time limits, and the arguments as logs
    and events may show them."""


def arrive(delivery: Delivery, decode_json: DecodeJson | None) -> Arrival:
    """Decode a delivery. Never raises: no body may stop a receiver."""
    try:
        content = decode(delivery, decode_json)
        due_in = seconds_until_due(content["headers"])
    except Exception as exc:
        # Broad on purpose: whatever it is, what becomes of the message says it.
        return Arrival(ended=untaken(exc))
    if due_in > CLOCK_TOLERANCE:
        return Arrival(content, NotDue(due_in))
    # Celery would hold a task with an eta in memory (celery 5.7 worker/strategy.py).
    content["headers"]["eta"] = None
    return Arrival(content)


def admit(message: TaskMessage, tasks: Mapping[str, Any]) -> Admitted | UnknownTask | Refused:
    """The task that runs a message, by its name among `tasks`; or why none does."""
    headers = message.headers
    task = tasks.get(headers["task"])
    if task is None:
        return UnknownTask(headers["task"])
    provenance: Provenance = headers["delivery"]
    if provenance.source is not Source.CELERY and getattr(task, "model", None) is None:
        return Refused(f"task {task.name} cannot be reached by plain JSON")
    own = task.time_limit, task.soft_time_limit
    changed: dict[str, Any] = {"timelimit": list(time_limits.of_message(headers["timelimit"], own))}
    if hasattr(task, "shown"):
        args, kwargs, _ = message.payload
        changed["argsrepr"], changed["kwargsrepr"] = task.shown(args, kwargs)
    return Admitted(task, changed)
