"""Redrive: dead letters go back to their queue as they were, and only then leave this one.

Body and attributes are the original ones, without the note, so a message keeps its own id: should
it be sent twice, for a call whose answer was lost, `@once` and unique keys absorb the second. What
SQS gives anew is its MessageId, and a count of deliveries that starts at one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sqs_broker.options import Options
from sqs_broker.rules.dead_letter import restored
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.publisher import Batch, Published
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing
from sqs_broker.tools.letters import Letter

#: Times a delete is tried that SQS fails for one letter of a batch.
DELETE_TRIES = 3


class Became(StrEnum):
    """What became of a letter."""

    REDRIVEN = "redriven"
    """Sent to its queue and deleted here."""
    DROPPED = "dropped"
    """A twin: another letter of the same message was redriven, and this one is deleted."""
    NOT_SENT = "not sent"
    """SQS refused it, or gave no answer: it is still here."""
    NOT_DELETED = "not deleted"
    """Sent to its queue, and still here: to redrive it again would send it twice."""


@dataclass(frozen=True)
class Redriven:
    """One letter and what became of it."""

    letter: Letter
    became: Became
    why: str | None = None


@dataclass
class Redrive:
    """Redrives letters, batch by batch, each of which has a queue."""

    driver: Driver
    options: Options
    dead_letter_url: str
    keeps_twins: bool = False
    is_dry: bool = False
    """Whether nothing is sent or deleted: the result says what would become of each."""
    _sent: set[tuple[str, str]] = field(default_factory=set)

    def __call__(self, letters: Sequence[Letter]) -> list[Redriven]:
        """Send up to ten letters, then delete those that were sent. Never raises for what SQS
        refuses: it is in the result."""
        first, twins = self._without_twins(letters)
        failed = {} if self.is_dry else self._send(first)
        sent = [letter for n, letter in enumerate(first) if n not in failed]
        self._sent |= {letter.twin_key for letter in sent}
        # The twin of a letter that was not sent stays: nobody has its message.
        dropped = [letter for letter in twins if letter.twin_key in self._sent]
        kept = {} if self.is_dry else self._delete([*sent, *dropped])
        return [
            *(Redriven(first[n], Became.NOT_SENT, why) for n, why in failed.items()),
            *(self._result(letter, Became.REDRIVEN, kept) for letter in sent),
            *(self._result(letter, Became.DROPPED, kept) for letter in dropped),
        ]

    def _without_twins(self, letters: Sequence[Letter]) -> tuple[list[Letter], list[Letter]]:
        if self.keeps_twins:
            return list(letters), []
        first: list[Letter] = []
        twins: list[Letter] = []
        seen = set(self._sent)
        for letter in letters:
            (twins if letter.twin_key in seen else first).append(letter)
            seen.add(letter.twin_key)
        return first, twins

    def _send(self, letters: Sequence[Letter]) -> dict[int, str]:
        """Why each letter was not sent, by its place."""
        published = Published()
        batch = Batch(published)
        for batch.place, letter in enumerate(letters):
            assert letter.queue is not None
            queue = Queue(self.options.queue(letter.queue).url, self.driver)
            message = Outgoing(letter.delivery.body, restored(letter.delivery.attributes))
            batch.add(queue, message, self.options.max_message_bytes)
        batch.flush()
        return published.failed

    def _delete(self, letters: Sequence[Letter]) -> dict[str, str]:
        """Why each letter was not deleted, by SQS's MessageId."""
        handles = [letter.delivery.receipt_handle for letter in letters]
        errors = Queue(self.dead_letter_url, self.driver).delete(handles, DELETE_TRIES)
        return {
            letter.delivery.message_id: error.code
            for letter, error in zip(letters, errors, strict=True)
            if error is not None
        }

    @staticmethod
    def _result(letter: Letter, became: Became, kept: dict[str, str]) -> Redriven:
        why = kept.get(letter.delivery.message_id)
        return Redriven(letter, Became.NOT_DELETED if why else became, why)
