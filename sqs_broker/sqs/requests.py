"""What is asked of SQS, and what its answers say: pure functions, for drivers of any kind.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_Operations.html
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, NamedTuple, TypeVar

from sqs_broker.limits import BATCH
from sqs_broker.rules.dead_letter import size
from sqs_broker.sqs.errors import UNANSWERED, Errors, SqsError

T = TypeVar("T")

#: What a worker asks of each message, besides the message.
COUNT_AND_TIME = ("ApproximateReceiveCount", "SentTimestamp")

#: All that SQS knows of a message or a queue.
ALL = "All"

Attribute = Mapping[str, Any]
"""A message attribute as SendMessage takes it: DataType, and StringValue or BinaryValue."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What SQS answered: the content of the action's JSON, with bytes where that has base64."""

    content: Mapping[str, Any]
    date: str | None = None
    """The header of this name."""


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One call of SQS's API."""

    action: str
    """Its name there, such as `SendMessage`."""
    parameters: Mapping[str, Any]
    """The content of the action's JSON, with bytes where that has base64."""
    read: Callable[[Answer], T]
    """What an answer says. May raise KeyError and ValueError where it is not SQS's."""


class Received(NamedTuple):
    """A message that a receive brought."""

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
    """What SQS knows of it, as far as it was asked for."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to send."""

    body: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    delay: int | None = None
    """Seconds; None leaves it to the queue."""

    @property
    def size(self) -> int:
        """Bytes, as SQS counts them."""
        return size(self.body, self.attributes)


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes of a queue."""

    values: Mapping[str, str]
    at: datetime | None
    """When SQS answered, by its own clock, in whole seconds; None where it does not say."""


def name_of(url: str) -> str:
    """A queue's name: the end of its URL."""
    return url.rstrip("/").rpartition("/")[2]


def date_in(text: str | None) -> datetime | None:
    """The time in a header `Date`; None where it has none."""
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
) -> Request[list[Received]]:
    """Up to `most` messages, ten at the most, with their attributes and what SQS knows of them,
    which has to include COUNT_AND_TIME. `wait`: seconds of a long poll. `visibility`: seconds;
    without it, the queue's."""
    parameters = {
        "QueueUrl": url,
        "MaxNumberOfMessages": most,
        "WaitTimeSeconds": wait,
        "MessageAttributeNames": [ALL],
        "MessageSystemAttributeNames": list(system),
    }
    if visibility is not None:
        parameters["VisibilityTimeout"] = visibility
    return Request("ReceiveMessage", parameters, _received)


def send(url: str, message: Outgoing) -> Request[None]:
    """Send one message."""
    return Request("SendMessage", {"QueueUrl": url} | _sent(message), nothing)


def send_many(url: str, messages: Sequence[Outgoing]) -> Request[Errors]:
    """Send messages, ten at the most, which are together within what SQS takes (see `Pack`)."""
    entries = [{"Id": str(n), **_sent(message)} for n, message in enumerate(messages)]
    return Request("SendMessageBatch", {"QueueUrl": url, "Entries": entries}, _taken(len(messages)))


def delete_many(url: str, receipt_handles: Sequence[str]) -> Request[Errors]:
    """Delete messages, ten at the most."""
    entries = [{"Id": str(n), "ReceiptHandle": h} for n, h in enumerate(receipt_handles)]
    return Request("DeleteMessageBatch", {"QueueUrl": url, "Entries": entries}, _done(len(entries)))


def change_many(url: str, changes: Sequence[tuple[str, int]]) -> Request[Errors]:
    """Let messages be visible in so many seconds from now: receipt handle and seconds of each, ten
    at the most."""
    entries = [
        {"Id": str(n), "ReceiptHandle": handle, "VisibilityTimeout": seconds}
        for n, (handle, seconds) in enumerate(changes)
    ]
    parameters = {"QueueUrl": url, "Entries": entries}
    return Request("ChangeMessageVisibilityBatch", parameters, _done(len(entries)))


def attributes(url: str, *names: str) -> Request[Attributes]:
    """Attributes of the queue."""
    parameters = {"QueueUrl": url, "AttributeNames": list(names)}
    return Request("GetQueueAttributes", parameters, _attributes)


def purge(url: str) -> Request[None]:
    """Delete all messages."""
    return Request("PurgeQueue", {"QueueUrl": url}, nothing)


# Many --------------------------------------------------------------------------------------------


def tens(given: Sequence[T]) -> Iterator[Sequence[T]]:
    """What is given, in the parts that one batch call takes."""
    return (given[start : start + BATCH] for start in range(0, len(given), BATCH))


class Pack:
    """Messages that fit into one SendMessageBatch: ten, and `most_bytes` together."""

    def __init__(self, most_bytes: int) -> None:
        self.messages: list[Outgoing] = []
        self._left = most_bytes

    def add(self, message: Outgoing) -> bool:
        """Take a message, unless it would be one too many; whether it was taken. The first one
        always is."""
        bytes_ = message.size
        if self.messages and (len(self.messages) >= BATCH or bytes_ > self._left):
            return False
        self.messages.append(message)
        self._left -= bytes_
        return True


def packed(messages: Iterable[Outgoing], most_bytes: int) -> Iterator[list[Outgoing]]:
    """The messages, in the parts that one SendMessageBatch takes."""
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
    """An answer that says nothing but that it is done."""


def _received(answer: Answer) -> list[Received]:
    return [_message(message) for message in answer.content.get("Messages", ())]


def _message(message: Mapping[str, Any]) -> Received:
    system = message["Attributes"]
    given = message.get("MessageAttributes")
    return Received(
        message["MessageId"],
        message["ReceiptHandle"],
        message["Body"],
        {name: _sendable(value) for name, value in given.items()} if given else {},
        int(system["ApproximateReceiveCount"]),
        datetime.fromtimestamp(int(system["SentTimestamp"]) / 1000, UTC),
        system,
    )


def _sendable(attribute: Attribute) -> dict[str, Any]:
    """The attribute as SendMessage takes it: SQS adds empty lists that it would refuse."""
    wanted = ("DataType", "StringValue", "BinaryValue")
    return {key: attribute[key] for key in wanted if key in attribute}


def _sent(message: Outgoing) -> dict[str, Any]:
    call: dict[str, Any] = {"MessageBody": message.body, "MessageAttributes": message.attributes}
    if message.delay is not None:
        call["DelaySeconds"] = message.delay
    return call


def _done(count: int) -> Callable[[Answer], Errors]:
    """Each entry is done that the answer does not say to have failed."""

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
    """Each entry is taken that the answer says to be: nobody else has its message."""

    def read(answer: Answer) -> Errors:
        errors = _done(count)(answer)
        taken = {int(entry["Id"]) for entry in answer.content.get("Successful", ())}
        return [
            error or (None if place in taken else SqsError.of_entry(UNANSWERED))
            for place, error in enumerate(errors)
        ]

    return read


def _attributes(answer: Answer) -> Attributes:
    return Attributes(answer.content.get("Attributes", {}), date_in(answer.date))
