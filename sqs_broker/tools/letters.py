"""Dead letters as an operator meets them: read, held while they are looked at, and let go.

To look takes a receive, for SQS has no other way to read. It hides a letter until the look ends,
and adds one to its receive count, which means nothing as long as the dead-letter queue has no
redrive policy of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from types import TracebackType
from typing import Any, Self

from sqs_broker.errors import Undecodable
from sqs_broker.limits import BATCH, LONGEST_VISIBILITY
from sqs_broker.options import Options
from sqs_broker.rules.dead_letter import read_note
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.lease import Delivery
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.receiver import delivery_of
from sqs_broker.sqs.requests import ALL, Received, name_of

#: What is said in place of a reason where there is no note.
MOVED_BY_SQS = "moved by SQS itself after maxReceiveCount deliveries"

#: Seconds that a look hides letters for, and what each of them adds: one that is killed cannot let
#: go. A look that takes longer ends before the first of them shows up again.
LEAST_HOLD = 30
HOLD_A_LETTER = 0.05

#: Seconds before the end of the hold in which no more letters are taken.
HOLD_MARGIN = 10

#: Seconds a receive waits. A long poll, since a short one asks some of SQS's servers only.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-short-and-long-polling.html
WAIT = 1


@dataclass(frozen=True)
class Letter:
    """One message of a dead-letter queue."""

    delivery: Delivery
    id: str
    """The message id: the producer's, or SQS's MessageId where the producer gave none."""
    task: str | None
    """None where the body names none."""
    queue: str | None
    """The configured queue it came from; None where several share the dead-letter queue and
    nothing says which."""
    reason: str
    error: str | None
    deliveries: int | None
    at: str | None
    """When it was dead-lettered, as its note says. None, as the two before, without a note."""

    @property
    def twin_key(self) -> tuple[str, str]:
        """Equal for two letters of one message."""
        return self.id, self.delivery.body


def read_letter(
    message: Received, dead_letter_url: str, options: Options, asked_at: float
) -> Letter:
    """The letter that a received message is."""
    delivery = delivery_of(message, name_of(dead_letter_url), asked_at)
    note = read_note(delivery.attributes) or {"reason": MOVED_BY_SQS}
    headers: dict[str, Any] = {}
    with suppress(Undecodable):  # Then the note says what is known of it.
        headers = decode(delivery, options.decode_json)["headers"]
    arn = message.system.get("DeadLetterQueueSourceArn", "")
    return Letter(
        delivery=delivery,
        id=_text(note.get("message_id")) or headers.get("id") or delivery.message_id,
        task=_text(note.get("task")) or headers.get("task"),
        queue=_source(_text(note.get("source_queue")), arn, dead_letter_url, options),
        reason=_text(note.get("reason")) or "",
        error=_text(note.get("error")),
        deliveries=note.get("deliveries") if isinstance(note.get("deliveries"), int) else None,
        at=_text(note.get("at")),
    )


def _text(value: object) -> str | None:
    # Anybody may have written the note.
    return value if isinstance(value, str) and value else None


def _source(noted: str | None, arn: str, dead_letter_url: str, options: Options) -> str | None:
    its = {name: q for name, q in options.queues.items() if q.dead_letter_url == dead_letter_url}
    if noted in its:
        return noted
    by_arn = [name for name, q in its.items() if name_of(q.url) == arn.rpartition(":")[2]]
    candidates = by_arn or list(its)
    return candidates[0] if len(candidates) == 1 else None


@dataclass(frozen=True)
class Counts:
    """A dead-letter queue before a look."""

    visible: int
    in_flight: int
    """Held by somebody else's look, so that this one does not see them."""
    has_redrive_policy: bool
    at: datetime
    """By SQS's clock, whole seconds."""


def count_letters(dead_letters: Queue) -> Counts:
    """Ask SQS. Raises SqsError."""
    asked = dead_letters.attributes(
        "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "RedrivePolicy"
    )
    return Counts(
        visible=int(asked.values["ApproximateNumberOfMessages"]),
        in_flight=int(asked.values["ApproximateNumberOfMessagesNotVisible"]),
        has_redrive_policy=bool(asked.values.get("RedrivePolicy")),
        at=asked.at or datetime.now(UTC).replace(microsecond=0),
    )


class Look:
    """Takes letters of one dead-letter queue, and at the end of its block lets go of all that were
    not deleted.

        with Look(dead_letters, options, expected=120) as look:
            for letters in look.batches():
                ...
    """

    def __init__(
        self,
        dead_letters: Queue,
        options: Options,
        *,
        expected: int,
        is_stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`expected` letters will be taken, about; `is_stopping` is asked before each call."""
        self.hold = min(int(LEAST_HOLD + HOLD_A_LETTER * expected), LONGEST_VISIBILITY)
        #: Letters that could not be let go, and stay hidden for `hold` seconds.
        self.still_held = 0
        self.is_cut_short = False
        self._queue = dead_letters
        self._options = options
        self._clock = clock
        self._is_stopping = is_stopping
        self._handles: dict[str, str] = {}
        self._ends_at = clock() + self.hold - HOLD_MARGIN

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self._let_go()

    def batches(self) -> Iterator[list[Letter]]:
        """Up to ten letters at a time, each once, until no more are there. Raises
        SqsError."""
        while not self._is_stopping():
            asked_at = self._clock()
            if asked_at >= self._ends_at:
                self.is_cut_short = True
                return
            messages = self._queue.receive(BATCH, WAIT, visibility=self.hold, system=(ALL,))
            if not messages:
                return
            new = [m for m in messages if m.message_id not in self._handles]
            self._handles |= {m.message_id: m.receipt_handle for m in messages}
            yield [read_letter(m, self._queue.url, self._options, asked_at) for m in new]

    def deleted(self, letters: Iterable[Letter]) -> None:
        """These are gone from the queue: there is nothing to let go."""
        for letter in letters:
            self._handles.pop(letter.delivery.message_id, None)

    def _let_go(self) -> None:
        errors = self._queue.change_visibility([(h, 0) for h in self._handles.values()])
        # They show up by themselves when the hold ends.
        self.still_held += sum(error is not None for error in errors)
