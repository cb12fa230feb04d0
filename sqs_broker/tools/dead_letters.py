"""The messages of a dead-letter queue, as the commands list and redrive them.

SQS has no way to read a message without receiving it. So a read hides each message until the end of
the read, and adds one to its receive count. This count has no effect, unless the dead-letter queue
has a redrive policy of its own.

A read takes the same memory for any number of messages.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from time import monotonic
from types import TracebackType
from typing import Any, Self

from sqs_broker.errors import Undecodable
from sqs_broker.limits import BATCH, LONGEST_VISIBILITY, MOST_IN_FLIGHT
from sqs_broker.machine.spool import Spool
from sqs_broker.options import Options
from sqs_broker.rules.dead_letter import has_room_for_note, read_note
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.trace_context import context_of
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import NOT_VISIBLE, VISIBLE, Queue
from sqs_broker.sqs.receiver import delivery_of
from sqs_broker.sqs.requests import ALL, Received, name_of

#: The reason that is shown for a message without a note.
MOVED_BY_SQS = "moved by SQS itself after maxReceiveCount deliveries"

#: The reason that is shown for a message that is so large that a note did not fit beside it.
NO_ROOM = "the message has no room for its reason: see `message.dead-letter` in the log"

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
    system: Mapping[str, str]
    """The system attributes, as SQS returned them."""
    context: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Says which trace and request it belongs to (rules/trace_context.py), among other things."""

    @property
    def duplicate_key(self) -> bytes:
        """Equal for two dead letters of one message: they have the same id and the same body."""
        # A digest, because a command may see as many bodies as do not fit into memory.
        text = f"{len(self.id)}:{self.id}{self.delivery.body}"
        return sha256(text.encode("utf-8", "surrogatepass")).digest()

    @property
    def dead_since(self) -> datetime:
        """When it was dead-lettered, as the note says. Without a note, when it was sent: for a
        message that SQS itself moved, that was to its first queue."""
        with suppress(ValueError):
            at = datetime.fromisoformat(self.at or "")
            return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return self.delivery.enqueued_at


def read_message(
    received: Received, dead_letter_url: str, options: Options, asked_at: float
) -> DeadLetterMessage:
    """Interpret a message that was received from a dead-letter queue."""
    delivery = delivery_of(received, name_of(dead_letter_url), asked_at)
    headers: dict[str, Any] = {}
    with suppress(Undecodable):  # Then everything that is known is in the note.
        headers = decode(delivery, options.decode_json)["headers"]
    arn = received.system.get("DeadLetterQueueSourceArn", "")
    note = read_note(delivery.attributes)
    if not note:
        task, limit = headers.get("task"), options.max_message_bytes
        is_moved = arn or has_room_for_note(delivery, task, limit)
        note = {"reason": MOVED_BY_SQS if is_moved else NO_ROOM}
    return DeadLetterMessage(
        delivery=delivery,
        id=_text(note.get("message_id")) or headers.get("id") or delivery.message_id,
        task=_text(note.get("task")) or headers.get("task"),
        queue=_source(_text(note.get("source_queue")), arn, dead_letter_url, options),
        reason=_text(note.get("reason")) or "",
        error=_text(note.get("error")),
        deliveries=note.get("deliveries") if isinstance(note.get("deliveries"), int) else None,
        at=_text(note.get("at")),
        system=received.system,
        context=headers or context_of(delivery),
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
    asked = dead_letters.attributes(VISIBLE, NOT_VISIBLE, "RedrivePolicy")
    return Counts(
        visible=int(asked.values[VISIBLE]),
        in_flight=int(asked.values[NOT_VISIBLE]),
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
        per_message: float = TIMEOUT_PER_MESSAGE,
        more_time: float = 0.0,
    ) -> None:
        """`expected`: about how many messages will be received, and `per_message` the seconds that
        each of them takes. `more_time`: seconds for which messages are hidden longer. The reader
        calls `is_stopping` before each receive."""
        #: Seconds for which messages are hidden.
        self.visibility_timeout = min(
            int(LEAST_TIMEOUT + more_time + max(per_message, TIMEOUT_PER_MESSAGE) * expected),
            LONGEST_VISIBILITY,
        )
        #: Number of messages that were received.
        self.read = 0
        #: Messages that SQS did not make visible again: they stay hidden for that time.
        self.still_hidden = 0
        #: Whether the time ended before the queue did.
        self.is_out_of_time = False
        #: Whether SQS returned no more, because it hides no more messages at one time.
        self.is_full = False
        self._queue = dead_letters
        self._options = options
        self._clock = clock
        self._is_stopping = is_stopping
        self._handles = Spool()
        self._ends_at = clock() + self.visibility_timeout - TIMEOUT_MARGIN

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            self._make_visible()
        finally:
            self._handles.close()

    def batches(self) -> Iterator[list[DeadLetterMessage]]:
        """Up to ten messages at a time, each once, until the queue is empty. Raises SqsError."""
        while not self._is_stopping():
            asked_at = self._clock()
            if asked_at >= self._ends_at:
                self.is_out_of_time = True
                return
            try:
                received = self._queue.receive(
                    BATCH, WAIT, visibility=self.visibility_timeout, system=(ALL,)
                )
            except SqsError as exc:
                if not exc.is_over_limit:
                    raise
                self.is_full = True
                return
            if not received:
                self.is_full = self.read >= MOST_IN_FLIGHT
                return
            new = [each for each in received if each.message_id not in self._handles]
            self.read += len(new)
            self._handles.add((each.message_id, each.receipt_handle) for each in received)
            yield [read_message(each, self._queue.url, self._options, asked_at) for each in new]

    def seconds_left(self) -> float:
        """Seconds in which the messages that were read are still hidden from others."""
        return self._ends_at - self._clock()

    def forget(self, message_ids: Iterable[str]) -> None:
        """The messages with these MessageIds were deleted: do not make them visible again."""
        self._handles.discard(message_ids)

    def _make_visible(self) -> None:
        for rows in self._handles.packs(BATCH):
            errors = self._queue.change_visibility([(handle, 0) for _, handle in rows])
            # A failure does no harm: these messages are visible again when their timeout ends.
            self.still_hidden += sum(error is not None for error in errors)
