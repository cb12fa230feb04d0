"""A kombu message that carries what happened to it.

Celery tells a channel only `ack` or `reject`, without a reason (kombu 5.7 `basic_reject`). So the
worker side writes what happened on the message first, and the channel reads it when it settles.
"""

from typing import Any

from kombu.transport import virtual

from sqs_broker.rules.outcomes import Happened
from sqs_broker.rules.policy import Policy


class Message(virtual.Message):
    """One delivery of a task message."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        super().__init__(payload, channel=channel, **kwargs)
        #: What happened; the first word counts. None means what ack or reject says by itself.
        self.happened: Happened | None = None
        #: The policy of the message's task, where it differs from the queue's.
        self.policy: Policy | None = None

    @property
    def deliveries(self) -> int:
        """How often SQS has delivered the message, this one included."""
        return int(self.headers["delivery"].deliveries)

    def note(self, happened: Happened, policy: Policy | None = None) -> None:
        """Say what happened, before ack or reject."""
        if self.happened is None:
            self.happened, self.policy = happened, policy
