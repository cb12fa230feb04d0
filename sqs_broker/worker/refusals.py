"""Shows in Flower the messages that are dead-lettered although no task ran: a body that cannot be
read, an unknown task, a callback that is not allowed.
"""

from collections.abc import Callable
from typing import Any

from sqs_broker.observers.observer import Observer
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import DeadLetter, Happened, Outcome

#: The name of a task that could not be read.
NO_TASK = "(no task)"


class Refusals(Observer):
    """Sends the events of such a message, as Celery sends those of a task that failed.

    `dispatcher` returns what sends events, or None; `soon` schedules a call on the event loop.
    """

    def __init__(self, dispatcher: Callable[[], Any], soon: Callable[..., Any]) -> None:
        self._dispatcher = dispatcher
        self._soon = soon

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        """Send the events if no other part of the worker does."""
        if isinstance(outcome, DeadLetter) and message.started_at is None:
            self._soon(self._send, message, outcome)

    def _send(self, message: Facts, outcome: DeadLetter) -> None:
        dispatcher = self._dispatcher()
        if dispatcher is None or not dispatcher.enabled:
            return
        name = message.task or NO_TASK
        dispatcher.send(
            "task-received",
            uuid=message.id,
            name=name,
            args="",
            kwargs="",
            retries=0,
            root_id=None,
            parent_id=None,
            eta=None,
            expires=None,
        )
        dispatcher.send(
            "task-failed",
            uuid=message.id,
            exception=f"{outcome.error}({outcome.reason!r})",
            traceback="",
        )
