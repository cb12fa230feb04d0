"""A record of an event, decoded and admitted by the rules of the worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqs_broker.function.sandbox import Sandbox
from sqs_broker.rules.admission import Admitted, Arrival, admit, arrive
from sqs_broker.rules.due import has_expired
from sqs_broker.rules.facts import Facts, facts_of
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import Copied, Happened, Succeeded
from sqs_broker.rules.policy import Policy


@dataclass(frozen=True)
class Message:
    """A record that can be read, and what its body is."""

    delivery: Delivery
    arrival: Arrival
    admitted: Admitted | None
    """The task that runs it; None if no task may run it."""
    ended: Happened | None
    """What happened to it already; None if its task must run."""
    started_at: float | None = None
    """When its task started, in monotonic seconds; None if it did not."""

    @property
    def facts(self) -> Facts:
        """What observers get."""
        return facts_of(self.delivery, self.arrival.headers, self.started_at)

    @property
    def task(self) -> Any:
        """The task of a message that may run."""
        assert self.admitted is not None
        return self.admitted.task

    @property
    def policy(self) -> Policy | None:
        """The policy of its task."""
        return None if self.admitted is None else self.task.policy

    @property
    def asked_limits(self) -> Sequence[float | None]:
        """The hard and the soft time limit of this message, if they are lower than the task's."""
        assert self.admitted is not None
        limits: Sequence[float | None] = self.admitted.headers["timelimit"]
        return limits

    @property
    def may_share(self) -> bool:
        """Whether it may run with others: the rule of the worker (sqs_broker/worker/batches.py)."""
        return (
            self.ended is None
            and self.delivery.group is None
            and self.task.many is not None
            and bool(self.task.acks_late)
            and self.delivery.may_share
            and not any(self.asked_limits)
        )


def message_of(delivery: Delivery, sandbox: Sandbox) -> Message:
    """Decode a delivery and find its task. Never raises."""
    if sandbox.reporter.copies.are_sent(delivery):
        return Message(delivery, Arrival(), None, Copied())
    arrival = arrive(delivery, sandbox.options.decode_json)
    if arrival.ended is not None:
        return Message(delivery, arrival, None, arrival.ended)
    try:
        admitted = admit(arrival, sandbox.app.tasks, sandbox.options.canvas)
    except Exception as exc:
        # Broad on purpose: the other records must be handled.
        return Message(delivery, arrival, None, untaken(exc))
    if not isinstance(admitted, Admitted):
        return Message(delivery, arrival, None, admitted)
    expired = Succeeded() if has_expired(arrival.headers or {}) else None
    return Message(delivery, arrival, admitted, expired)
