"""The observer that keeps the outcomes of a worker's registrations, off the path of a message."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from app.outcomes.outcome import CLOCKS, Seen, State, concerns, outcome_of
from app.settings import get_settings
from sqs_broker.observers.observer import Observer
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import DeadLetter, Happened, Outcome

if TYPE_CHECKING:
    from app.outcomes.writer import Writer


class OutcomeObserver(Observer):
    """Puts what it sees into a writer, which returns at once. Thread-safe."""

    def __init__(
        self,
        make_writer: "Callable[[], Writer]",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._make_writer = make_writer
        self._now = now

    @cached_property
    def writer(self) -> "Writer":
        """Made when it is first needed."""
        return self._make_writer()

    def received(self, message: Facts) -> None:
        """A message that was redriven or sent again is pending again."""
        if concerns(message):
            self.writer.put_pending(Seen(message.id, State.PENDING, self._now()))

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        """Keep every final state but that of a dead letter, which SQS may still refuse."""
        if isinstance(outcome, DeadLetter) or not concerns(message):
            return
        if (seen := outcome_of(message, happened, outcome, self._now())) is not None:
            self.writer.put(seen)

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        """Keep a dead letter that SQS has accepted."""
        if error is not None or not isinstance(outcome, DeadLetter) or not concerns(message):
            return
        if (seen := outcome_of(message, None, outcome, self._now())) is not None:
            self.writer.put(seen)

    def redriven(self, messages: Sequence[Facts], began_at: datetime) -> None:
        """What was a dead letter is pending again. Without MONGO_URI, which the command does not
        need, it is so once a worker has received it."""
        found = [message for message in messages if concerns(message)]
        if not found or get_settings().mongo_uri is None:
            return
        for message in found:
            self.writer.put(Seen(message.id, State.PENDING, began_at, margin=CLOCKS))
        self.writer.flush()


def _writer() -> "Writer":
    # A producer has this observer too, and needs no MongoDB driver.
    from app.outcomes.writer import Writer

    return Writer()


#: The worker's own (celeryconfig.py). It starts no thread and opens nothing before a message.
observer = OutcomeObserver(_writer)
