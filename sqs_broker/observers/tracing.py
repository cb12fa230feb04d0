"""What the broker calls so that each message has spans: the option `tracing`.

Only sqs_broker/observers/spans/ knows a tracing library. Without the option none is imported.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqs_broker.observers.observer import Observer
from sqs_broker.rules.facts import Facts


class Tracing(Protocol):
    """Makes spans. A failure of the tracing library is logged; it affects no message. What a block
    raises leaves the context manager as it is."""

    @property
    def observer(self) -> Observer:
        """Is called at each step of a delivery."""

    def delivered(self, message: Facts, headers: dict[str, Any]) -> None:
        """Begin the span of a delivery whose message may run. Its headers, which go to the process
        of the pool, then name this span as the parent of what happens there."""

    def bracket(self, task: Any, request: Any) -> AbstractContextManager[Any]:
        """Around each run of a task: see observers/bracket.py."""

    def work(self, name: str, requests: Sequence[Any]) -> AbstractContextManager[Any]:
        """Around the work that the messages of a job share, inside their brackets."""

    def sending(
        self, queue: str, headers: dict[str, Any], *, is_collected: bool
    ) -> AbstractContextManager[Any]:
        """Around the send of a Celery message, whose headers get the trace. `is_collected`: whether
        the call to SQS comes later, with others."""
