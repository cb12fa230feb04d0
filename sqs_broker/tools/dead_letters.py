"""The messages of a dead-letter queue, as the commands list and redrive them.

SQS has no way to read a message without receiving it. So a read hides each message until the end of
the read, and adds one to its receive count. This count has no effect, unless the dead-letter queue
has a redrive policy of its own.
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

#: The reason that is shown for a message without a note.
MOVED_BY_SQS = "moved by SQS itself after maxReceiveCount deliveries"

#: The visibility timeout of a read: its least seconds, and the seconds that each message adds. It
#: is short, because a process that is killed leaves its messages hidden until it ends.
LEAST_TIMEOUT = 30
TIMEOUT_PER_MESSAGE = 0.05

#: Seconds before the end of the visibility timeout in which no more messages are received. So a
#: read ends before its first message is visible again.
TIMEOUT_MARGIN = 10

#: Seconds of a long poll. A short poll asks only some of SQS's servers.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-short-and-long-polling.html
WAIT = 1


@dataclass(frozen=True)
class DeadLetterMessage:
    """One message of a dead-letter queue."""

    delivery: Delivery
    id: str
    """The message id: that of the producer, or SQS's MessageId if the producer gave none."""
    task: str | None
    """None if the body names no task."""
    queue: str | None
    """The configured queue that it came from. None if several queues share the dead-letter queue
    and the message does not say which one is its own."""
    reason: str
    error: str | None
    deliveries: int | None
    at: str | None
    """When it was dead-lettered. This, `error` and `deliveries` are from the note: None without."""

    @property
    def duplicate_key(self) -> tuple[str, str]:
        """Equal for two dead letters of one message: they have the same id and the same body."""
        return self.id, self.delivery.body


def read_message(
    received: Received, dead_letter_url: str, options: Options, asked_at: float
) -> DeadLetterMessage:
    """Interpret a message that was received from a dead-letter queue."""
    delivery = delivery_of(received, name_of(dead_letter_url), asked_at)
    note = read_note(delivery.attributes) or {"reason": MOVED_BY_SQS}
    headers: dict[str, Any] = {}
    with suppress(Undecodable):  # Then everything that is known is in the note.
        headers = decode(delivery, options.decode_json)["headers"]
    arn = received.system.get("DeadLetterQueueSourceArn", "")
    return DeadLetterMessage(
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
    # Another program may have written the note.
    return value if isinstance(value, str) and value else None


def _source(noted: str | None, arn: str, dead_letter_url: str, options: Options) -> str | None:
    sharing = {n: q for n, q in options.queues.items() if q.dead_letter_url == dead_letter_url}
    if noted in sharing:
        return noted
    by_arn = [name for name, q in sharing.items() if name_of(q.url) == arn.rpartition(":")[2]]
    candidates = by_arn or list(sharing)
    return candidates[0] if len(candidates) == 1 else None


@dataclass(frozen=True)
class Counts:
    """A dead-letter queue before a read."""

    visible: int
    in_flight: int
    """Messages that another reader has received. They are hidden, so this read does not see
    them."""
    has_redrive_policy: bool
    at: datetime
    """By SQS's clock, in whole seconds."""


def count_messages(dead_letters: Queue) -> Counts:
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


class Reader:
    """Receives the messages of one dead-letter queue. At the end of its block, it makes all
    messages visible again that were not deleted.

        with Reader(dead_letters, options, expected=120) as reader:
            for messages in reader.batches():
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
        """`expected`: about how many messages will be received. The reader calls `is_stopping`
        before each receive."""
        #: Seconds for which messages are hidden.
        self.visibility_timeout = min(
            int(LEAST_TIMEOUT + TIMEOUT_PER_MESSAGE * expected), LONGEST_VISIBILITY
        )
        #: Messages that SQS did not make visible again: they stay hidden for that time.
        self.still_hidden = 0
        #: Whether the time ended before the queue did.
        self.is_out_of_time = False
        self._queue = dead_letters
        self._options = options
        self._clock = clock
        self._is_stopping = is_stopping
        self._handles: dict[str, str] = {}
        self._ends_at = clock() + self.visibility_timeout - TIMEOUT_MARGIN

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self._make_visible()

    def batches(self) -> Iterator[list[DeadLetterMessage]]:
        """Up to ten messages at a time, each once, until the queue is empty. Raises SqsError."""
        while not self._is_stopping():
            asked_at = self._clock()
            if asked_at >= self._ends_at:
                self.is_out_of_time = True
                return
            received = self._queue.receive(
                BATCH, WAIT, visibility=self.visibility_timeout, system=(ALL,)
            )
            if not received:
                return
            new = [each for each in received if each.message_id not in self._handles]
            self._handles |= {each.message_id: each.receipt_handle for each in received}
            yield [read_message(each, self._queue.url, self._options, asked_at) for each in new]

    def forget(self, messages: Iterable[DeadLetterMessage]) -> None:
        """These messages were deleted: do not make them visible again."""
        for message in messages:
            self._handles.pop(message.delivery.message_id, None)

    def _make_visible(self) -> None:
        errors = self._queue.change_visibility([(h, 0) for h in self._handles.values()])
        # A failure does no harm: these messages are visible again when their timeout ends.
        self.still_hidden += sum(error is not None for error in errors)
