"""The requests to SQS, and how to read its answers: pure functions for any driver.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_Operations.html
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from sqs_broker.limits import BATCH
from sqs_broker.rules.attributes import size
from sqs_broker.sqs.errors import UNANSWERED, Errors, SqsError

T = TypeVar("T")

#: X-Ray's tracing header: the only system attribute that a sender can give a message.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
TRACE_HEADER = "AWSTraceHeader"

#: The system attributes that a worker needs of each message.
COUNT_AND_TIME = (
    "ApproximateReceiveCount",
    "SentTimestamp",
    "ApproximateFirstReceiveTimestamp",
    "MessageGroupId",
    TRACE_HEADER,
)

#: The name that stands for all attributes of a message or a queue.
ALL = "All"

Attribute = Mapping[str, Any]
"""A message attribute as SendMessage takes it: DataType, and StringValue or BinaryValue."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of SQS: the JSON content of the action, with bytes in place of base64."""

    content: Mapping[str, Any]
    date: str | None = None
    """The header `Date`."""


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One call of SQS's API."""

    action: str
    """Its name in the API, such as `SendMessage`."""
    parameters: Mapping[str, Any]
    """The JSON content of the action, with bytes in place of base64."""
    read: Callable[[Answer], T]
    """Reads an answer. May raise KeyError or ValueError if it is not one of SQS."""
    wait: int = 0
    """Seconds that SQS may wait before it answers."""
    on_late: Callable[[T], None] | None = None
    """Called, on another thread, with the result of a call that ends after its deadline."""
    seconds: float | None = None
    """Seconds until the deadline of this call; None for the driver's own deadline."""


class Received(NamedTuple):
    """A message that was received."""

    message_id: str
    """SQS's MessageId."""
    receipt_handle: str
    body: str
    attributes: Mapping[str, Attribute]
    """Its message attributes, as SendMessage takes them."""
    receives: int
    """ApproximateReceiveCount, this receive included."""
    sent_at: datetime
    system: Mapping[str, str]
    """The system attributes that the receive asked for."""
    answered_at: datetime | None = None
    """When SQS answered, by its own clock, in whole seconds; None if the answer has no date."""

    @property
    def group(self) -> str | None:
        """The message group; None if the message has none."""
        return self.system.get("MessageGroupId")

    @property
    def trace_header(self) -> str | None:
        """X-Ray's tracing header; None if the message has none."""
        return self.system.get(TRACE_HEADER)

    @property
    def first_received_at(self) -> float:
        """When SQS first delivered the message, in seconds since 1970. A server that does not say:
        when it was sent."""
        first = self.system.get("ApproximateFirstReceiveTimestamp", self.system["SentTimestamp"])
        return int(first) / 1000


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to send."""

    body: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    delay: int | None = None
    """Seconds; None for the delay of the queue."""
    group: str | None = None
    """The message group. In a standard queue it has no order ("fair queues")."""
    deduplication_id: str | None = None
    """Of two messages with the same id within 5 minutes, a FIFO queue keeps one."""
    trace_header: str | None = None
    """X-Ray's tracing header. SQS counts neither it nor its bytes."""

    @property
    def size(self) -> int:
        """Bytes, as SQS counts them."""
        return size(self.body, self.attributes)


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes of a queue."""

    values: Mapping[str, str]
    at: datetime | None
    """When SQS answered, by its own clock, in whole seconds; None if the answer has no date."""


def name_of(url: str) -> str:
    """A queue's name: the end of its URL."""
    return url.rstrip("/").rpartition("/")[2]


@lru_cache(maxsize=16)  # It has whole seconds, so many answers have the same.
def date_in(text: str | None) -> datetime | None:
    """The time in a header `Date`; None if there is none."""
    try:
        return parsedate_to_datetime(text).astimezone(UTC) if text else None
    except ValueError:
        return None


# One call each -----------------------------------------------------------------------------------


def receive(
    url: str,
    most: int,
    wait: int,
    *,
    visibility: int | None = None,
    system: Sequence[str] = COUNT_AND_TIME,
    on_late: Callable[[list[Received]], None] | None = None,
) -> Request[list[Received]]:
    """Receive up to `most` messages (at most ten), with their attributes and these system
    attributes, which must include COUNT_AND_TIME. `wait`: seconds of the long poll. `visibility`:
    seconds; without it, the visibility timeout of the queue. `on_late`: see Request."""
    parameters = {
        "QueueUrl": url,
        "MaxNumberOfMessages": most,
        "WaitTimeSeconds": wait,
        "MessageAttributeNames": [ALL],
        "MessageSystemAttributeNames": list(system),
    }
    if visibility is not None:
        parameters["VisibilityTimeout"] = visibility
    return Request("ReceiveMessage", parameters, _received, wait, on_late)


def send(url: str, message: Outgoing) -> Request[None]:
    """Send one message."""
    return Request("SendMessage", {"QueueUrl": url} | _sent(message), nothing)


def send_many(url: str, messages: Sequence[Outgoing]) -> Request[Errors]:
    """Send at most ten messages, which together fit into one call (see `Pack`)."""
    entries = [{"Id": str(n), **_sent(message)} for n, message in enumerate(messages)]
    return Request("SendMessageBatch", {"QueueUrl": url, "Entries": entries}, _taken(len(messages)))


def delete_many(url: str, receipt_handles: Sequence[str]) -> Request[Errors]:
    """Delete at most ten messages."""
    entries = [{"Id": str(n), "ReceiptHandle": h} for n, h in enumerate(receipt_handles)]
    return Request("DeleteMessageBatch", {"QueueUrl": url, "Entries": entries}, _done(len(entries)))


def change_many(url: str, changes: Sequence[tuple[str, int]]) -> Request[Errors]:
    """Make at most ten messages visible after the given seconds from now. Each change is a receipt
    handle and the seconds."""
    entries = [
        {"Id": str(n), "ReceiptHandle": handle, "VisibilityTimeout": seconds}
        for n, (handle, seconds) in enumerate(changes)
    ]
    parameters = {"QueueUrl": url, "Entries": entries}
    return Request("ChangeMessageVisibilityBatch", parameters, _done(len(entries)))


def attributes(url: str, *names: str) -> Request[Attributes]:
    """Get these attributes of the queue."""
    parameters = {"QueueUrl": url, "AttributeNames": list(names)}
    return Request("GetQueueAttributes", parameters, _attributes)


def purge(url: str) -> Request[None]:
    """Delete all messages."""
    return Request("PurgeQueue", {"QueueUrl": url}, nothing)


def create(url: str, attributes: Mapping[str, str]) -> Request[None]:
    """Create the queue of this URL."""
    parameters = {"QueueName": name_of(url), "Attributes": dict(attributes)}
    return Request("CreateQueue", parameters, nothing)


def set_attributes(url: str, attributes: Mapping[str, str]) -> Request[None]:
    """Change these attributes of the queue."""
    parameters = {"QueueUrl": url, "Attributes": dict(attributes)}
    return Request("SetQueueAttributes", parameters, nothing)


def tags(url: str) -> Request[Mapping[str, str]]:
    """Get the tags of the queue."""
    return Request("ListQueueTags", {"QueueUrl": url}, _tags)


# Many --------------------------------------------------------------------------------------------


def tens(given: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split a sequence into parts of at most ten, for batch calls."""
    return (given[start : start + BATCH] for start in range(0, len(given), BATCH))


class Pack:
    """Messages for one SendMessageBatch: at most ten, and together at most `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self.messages: list[Outgoing] = []
        self._left = most_bytes

    def add(self, message: Outgoing) -> bool:
        """Add a message if it fits. Returns whether it was added. The first one always is."""
        bytes_ = message.size
        if self.messages and (len(self.messages) >= BATCH or bytes_ > self._left):
            return False
        self.messages.append(message)
        self._left -= bytes_
        return True


def packed(messages: Iterable[Outgoing], most_bytes: int) -> Iterator[list[Outgoing]]:
    """Split messages into parts for SendMessageBatch."""
    pack = Pack(most_bytes)
    for message in messages:
        if not pack.add(message):
            yield pack.messages
            pack = Pack(most_bytes)
            pack.add(message)
    if pack.messages:
        yield pack.messages


# Answers -----------------------------------------------------------------------------------------


def nothing(answer: Answer) -> None:
    """Read an answer without content."""


def _received(answer: Answer) -> list[Received]:
    at = date_in(answer.date)
    return [_message(message, at) for message in answer.content.get("Messages", ())]


def _message(message: Mapping[str, Any], answered_at: datetime | None) -> Received:
    system = message["Attributes"]
    given = message.get("MessageAttributes")
    return Received(
        message["MessageId"],
        message["ReceiptHandle"],
        message["Body"],
        {name: _sendable(value) for name, value in given.items()} if given else {},
        int(system["ApproximateReceiveCount"]),
        _time(system["SentTimestamp"]),
        system,
        answered_at,
    )


def _time(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def _sendable(attribute: Attribute) -> dict[str, Any]:
    """The attribute as SendMessage accepts it. SQS returns empty lists that it would refuse."""
    wanted = ("DataType", "StringValue", "BinaryValue")
    return {key: attribute[key] for key in wanted if key in attribute}


def _sent(message: Outgoing) -> dict[str, Any]:
    call: dict[str, Any] = {"MessageBody": message.body, "MessageAttributes": message.attributes}
    if message.delay is not None:
        call["DelaySeconds"] = message.delay
    if message.group is not None:
        call["MessageGroupId"] = message.group
    if message.deduplication_id is not None:
        call["MessageDeduplicationId"] = message.deduplication_id
    if message.trace_header is not None:
        header = {"DataType": "String", "StringValue": message.trace_header}
        call["MessageSystemAttributes"] = {TRACE_HEADER: header}
    return call


def _done(count: int) -> Callable[[Answer], Errors]:
    """Read the errors of a batch. An entry succeeded unless the answer says that it failed."""

    def read(answer: Answer) -> Errors:
        errors: Errors = [None] * count
        for entry in answer.content.get("Failed", ()):
            errors[int(entry["Id"])] = SqsError.of_entry(
                entry["Code"],
                entry.get("Message") or "",
                is_sender_fault=entry.get("SenderFault", False),
            )
        return errors

    return read


def _taken(count: int) -> Callable[[Answer], Errors]:
    """Read the errors of a batch. An entry succeeded only if the answer says so: otherwise its
    message might exist nowhere."""

    def read(answer: Answer) -> Errors:
        errors = _done(count)(answer)
        taken = {int(entry["Id"]) for entry in answer.content.get("Successful", ())}
        return [
            error or (None if place in taken else SqsError.of_entry(UNANSWERED))
            for place, error in enumerate(errors)
        ]

    return read


def _tags(answer: Answer) -> Mapping[str, str]:
    found: Mapping[str, str] = answer.content.get("Tags", {})
    return found


def _attributes(answer: Answer) -> Attributes:
    return Attributes(answer.content.get("Attributes", {}), date_in(answer.date))
