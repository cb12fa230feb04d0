"""Redrive: sends dead letters back to their queue, unchanged, and only then deletes them.

A redriven message has its original body and attributes, without the note, so it keeps its own id.
If SQS's answer to a send is lost, the message may be sent twice. Then `@once` and the unique keys
ensure that it takes effect once. SQS gives it a new MessageId, and counts its deliveries from one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from sqs_broker.machine.spool import Spool
from sqs_broker.observers.observer import Observers
from sqs_broker.options import Options
from sqs_broker.rules.dead_letter import restored
from sqs_broker.rules.facts import Facts
from sqs_broker.sqs.driver import SECONDS, Driver
from sqs_broker.sqs.publisher import Batch, Published
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing
from sqs_broker.tools.dead_letters import DeadLetterMessage
from sqs_broker.tools.ledger import Ledger, NoLedger

#: How often a message is redriven at most. One that fails again and again needs another cure.
MOST_REDRIVES = 5

#: How often a delete is tried if SQS fails it for one message of a batch.
DELETE_TRIES = 3

#: Seconds for which a message must still be hidden when it is sent: the longest send, and the
#: longest delete with one more try. Otherwise another reader could receive it meanwhile, and send
#: it again.
HELD = 3 * SECONDS

#: Why a message is not sent that is not hidden for so long.
OUT_OF_TIME = "the time of this redrive is over: redrive again"


class Result(StrEnum):
    """The result of the redrive of one message."""

    REDRIVEN = "redriven"
    """Sent to its queue and deleted here."""
    DROPPED = "dropped"
    """A duplicate: another dead letter of the same message was redriven. This one was deleted."""
    NOT_SENT = "not sent"
    """SQS refused it, or did not answer. It is still here."""
    NOT_DELETED = "not deleted"
    """Sent to its queue, but still here. A further redrive would send it twice."""


@dataclass(frozen=True)
class Redriven:
    """One message and its result."""

    message: DeadLetterMessage
    result: Result
    why: str | None = None


@dataclass
class Redrive:
    """Redrives messages in batches. Each of them must have a queue. Takes the same memory for any
    number of them. Call `close` at the end."""

    driver: Driver
    options: Options
    dead_letter_url: str
    seconds_left: Callable[[], float]
    """Seconds for which the messages are still hidden from other readers."""
    keeps_duplicates: bool = False
    is_dry: bool = False
    """If so, nothing is sent, deleted or recorded, and each result is what it would be."""
    ledger: Ledger = field(default_factory=NoLedger)
    most_redrives: int = MOST_REDRIVES
    """A message that was redriven so often before is not redriven again."""
    _sent: Spool = field(default_factory=Spool, init=False)
    _observers: Observers = field(init=False)
    #: Whether SQS accepted none of the messages of the last batch.
    is_refused: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._observers = Observers(self.options.observers)

    def close(self) -> None:
        """Free what it has."""
        self._sent.close()

    def __call__(self, messages: Sequence[DeadLetterMessage]) -> list[Redriven]:
        """Send up to ten messages, then delete those that were sent. If SQS refuses a message, that
        is in its result. Raises ClickException if the ledger fails; then nothing was sent."""
        first, duplicates = self._split(messages)
        first, worn = self._under_cap(first)
        began_at = datetime.now(UTC)
        if first and not self.is_dry:
            # First: if this process is killed now, the next run counts the same dead letters once.
            self.ledger.redriving(first)
        failed = {} if self.is_dry else self._send(first)
        self.is_refused = bool(first) and len(failed) == len(first)
        sent = [message for n, message in enumerate(first) if n not in failed]
        # If the first one was not sent, its duplicate stays: it is a copy of the only message.
        keys = {message.duplicate_key for message in sent}
        dropped = [
            message
            for message in duplicates
            if message.duplicate_key in keys or message.duplicate_key in self._sent
        ]
        kept = {} if self.is_dry else self._delete([*sent, *dropped])
        # After the delete: if it fails, as on a full disk, what was sent is not sent again.
        self._sent.add((key, "") for key in keys)
        if sent and not self.is_dry:
            # Last: an observer may take its time, and a message that is not deleted yet would be
            # sent twice if this process were killed.
            self._observers.redriven([_facts_of(message) for message in sent], began_at)
        return [
            *worn,
            *(Redriven(first[n], Result.NOT_SENT, why) for n, why in failed.items()),
            *(self._redriven(message, Result.REDRIVEN, kept) for message in sent),
            *(self._redriven(message, Result.DROPPED, kept) for message in dropped),
        ]

    def _split(
        self, messages: Sequence[DeadLetterMessage]
    ) -> tuple[list[DeadLetterMessage], list[DeadLetterMessage]]:
        """The first dead letter of each message, and the duplicates."""
        if self.keeps_duplicates:
            return list(messages), []
        first: list[DeadLetterMessage] = []
        duplicates: list[DeadLetterMessage] = []
        seen: set[bytes] = set()
        for message in messages:
            key = message.duplicate_key
            (duplicates if key in seen or key in self._sent else first).append(message)
            seen.add(key)
        return first, duplicates

    def _under_cap(
        self, messages: Sequence[DeadLetterMessage]
    ) -> tuple[list[DeadLetterMessage], list[Redriven]]:
        """Those that may be redriven again, and the results of the others."""
        counts = self.ledger.counts(messages) if messages else {}
        may, worn = [], []
        for message in messages:
            if (count := counts.get(message.id, 0)) < self.most_redrives:
                may.append(message)
            else:
                why = f"redriven {count} times before: see --max-redrives"
                worn.append(Redriven(message, Result.NOT_SENT, why))
        return may, worn

    def _send(self, messages: Sequence[DeadLetterMessage]) -> dict[int, str]:
        """Why each message was not sent, by its place."""
        published = Published()
        batch = Batch(published)
        for batch.place, message in enumerate(messages):
            if self.seconds_left() < HELD:
                published.failed[batch.place] = OUT_OF_TIME
                continue
            assert message.queue is not None
            queue = Queue(self.options.queue(message.queue).url, self.driver)
            delivery = message.delivery
            own = restored(delivery.attributes)
            outgoing = Outgoing(
                delivery.body,
                own,
                group=delivery.fair_group,
                trace_header=delivery.trace_header,
            )
            batch.add(queue, outgoing, self.options.max_message_bytes)
        batch.flush()
        return published.failed

    def _delete(self, messages: Sequence[DeadLetterMessage]) -> dict[str, str]:
        """Why each message was not deleted, by its SQS MessageId."""
        handles = [message.delivery.receipt_handle for message in messages]
        errors = Queue(self.dead_letter_url, self.driver).delete(handles, DELETE_TRIES)
        return {
            message.delivery.message_id: error.code
            for message, error in zip(messages, errors, strict=True)
            if error is not None
        }

    @staticmethod
    def _redriven(message: DeadLetterMessage, result: Result, kept: dict[str, str]) -> Redriven:
        why = kept.get(message.delivery.message_id)
        return Redriven(message, Result.NOT_DELETED if why else result, why)


def _facts_of(message: DeadLetterMessage) -> Facts:
    return Facts(message.delivery, message.task, message.id, None, context=message.context)
