"""Decides whether a message may run: on arrival, then by the worker's tasks. Pure functions.

arrival = arrive(delivery, decode_json)     # decodes the body, and checks whether it is due
answer = admit(arrival, tasks, canvas)      # the task that runs it, or what happened instead
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqs_broker.rules import time_limits
from sqs_broker.rules.canvas import Canvas
from sqs_broker.rules.decoding import Payload, decode
from sqs_broker.rules.due import (
    CLOCK_TOLERANCE,
    ETA_MAX,
    MOST_SKEW,
    seconds_until,
    seconds_until_due,
)
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.foreign import DecodeJson
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import Happened, NotDue, Refused, UnknownTask
from sqs_broker.rules.provenance import Provenance, Source

#: All of Celery's canvas.
OPEN = Canvas()

TOO_FAR = "the message is due in more than {} s, which the option eta_max does not allow"


class TaskMessage(Protocol):
    """A decoded message: a message of kombu, or an Arrival."""

    @property
    def headers(self) -> Any:
        """Celery's headers, by name."""

    @property
    def payload(self) -> Any:
        """The arguments of the task: [args, kwargs, embed]."""


@dataclass
class Arrival:
    """A received message: decoded for the worker, or with the reason why it does not run. Nothing
    changes it. It is not frozen, for the same reason as a Delivery."""

    content: dict[str, Any] = field(default_factory=dict)
    """The payload of kombu's `virtual.Message`."""
    ended: Happened | None = None
    """What ended the delivery on arrival; None if the message may run."""

    @property
    def headers(self) -> dict[str, Any] | None:
        """The headers of the message; None if it could not be decoded."""
        return self.content.get("headers")

    @property
    def payload(self) -> Payload:
        """The arguments of the task: [args, kwargs, embed]."""
        payload: Payload = self.content["body"]
        return payload


@dataclass
class Admitted:
    """A message that may run. Nothing changes it; not frozen either."""

    task: Any
    """The Celery task."""
    headers: dict[str, Any]
    """Headers that replace those of the message: its time limits, and the arguments as logs and
    events may show them."""


def arrive(delivery: Delivery, decode_json: DecodeJson | None, eta_max: float = ETA_MAX) -> Arrival:
    """Decode a delivery. Never raises, because no body may stop a receiver. A message that is due
    in more than `eta_max` seconds is refused: it would be sent again and again."""
    try:
        content = decode(delivery, decode_json)
        if content["headers"]["eta"] is None and delivery.carried.due is None:
            return Arrival(content)
        due_in = max(seconds_until_due(content["headers"]), seconds_until(delivery.carried.due))
    except Exception as exc:
        # Broad on purpose: `untaken` turns each exception into an end of the delivery.
        return Arrival(ended=untaken(exc))
    if due_in > eta_max + MOST_SKEW:
        return Arrival(content, Refused(TOO_FAR.format(eta_max)))
    if due_in > CLOCK_TOLERANCE:
        return Arrival(content, NotDue(due_in))
    return Arrival(content)


def admit(
    message: TaskMessage, tasks: Mapping[str, Any], canvas: Canvas = OPEN
) -> Admitted | UnknownTask | Refused:
    """The task in `tasks` that runs a message, or the reason why no task may run it.

    `canvas` says which built-in tasks and callbacks a message may have. UnknownTask can name the
    task of a callback.
    """
    headers = message.headers
    task = tasks.get(headers["task"])
    if task is None:
        return UnknownTask(headers["task"])
    provenance: Provenance = headers["delivery"]
    if provenance.source is not Source.CELERY and getattr(task, "model", None) is None:
        return Refused(
            f"task {task.name} has no message model, so neither plain JSON nor SNS can call it"
        )
    if (refused := canvas.refuses(task.name, message.payload, tasks)) is not None:
        return refused
    own = task.time_limit, task.soft_time_limit
    changed: dict[str, Any] = {"timelimit": list(time_limits.of_message(headers["timelimit"], own))}
    if hasattr(task, "shown"):
        args, kwargs, _ = message.payload
        changed["argsrepr"], changed["kwargsrepr"] = task.shown(args, kwargs)
    return Admitted(task, changed)
