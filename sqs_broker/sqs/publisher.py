"""From kombu messages to SendMessage calls, refused at the caller where SQS would refuse them, and
ten a call where there are many.
"""

import random
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kombu.utils.json import dumps

from sqs_broker.errors import MessageTooLarge, PublishError
from sqs_broker.limits import BATCH, LONGEST_DELAY, MOST_ATTRIBUTES
from sqs_broker.options import QueueAddress
from sqs_broker.rules.dead_letter import size
from sqs_broker.rules.due import seconds_until_due
from sqs_broker.sqs.calls import error_code

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

#: Times an entry of a batch is sent that SQS failed for a reason of its own.
TRIES = 5

#: Seconds: the ceiling of the pause before the second try, doubled by each later one.
FIRST_PAUSE = 0.2

#: Messages between two lines of progress.
PROGRESS_EVERY = 1_000


@dataclass
class Published:
    """What became of many messages."""

    sent: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    """Why, by the place of the message in what was given, from 0."""


def publish_many(task: Any, messages: Iterable[Mapping[str, Any]]) -> Published:
    """Send the task once for each set of keyword arguments, ten a call: 0.1 calls a message.

    What `.delay` would raise for one message, and what SQS refuses, is in the result; the others
    are sent all the same. An entry that fails for a reason of SQS's own is tried again; those of a
    call that did not reach SQS are in the result. On a terminal it shows how far it is, on stderr.
    """
    published = Published()
    with task.app.connection_for_write() as connection:
        producer = task.app.amqp.Producer(connection, auto_declare=False)
        batch = producer.channel.batch = Batch(published)
        for place, kwargs in enumerate(messages):
            batch.place = place
            try:
                # No retry of Celery's: it would send what is collected here on another channel.
                task.apply_async(kwargs=dict(kwargs), producer=producer, retry=False)
            except (PublishError, TypeError) as exc:
                published.failed[place] = str(exc)
            if place and place % PROGRESS_EVERY == 0 and sys.stderr.isatty():
                sys.stderr.write(f"\r{published.sent} sent, {len(published.failed)} failed")
        batch.flush()
    return published


@dataclass
class Entry:
    """One message of a batch."""

    place: int
    url: str
    bytes_: int
    call: dict[str, Any]


class Batch:
    """Collects messages and sends them ten a call, within SQS's limit for a whole call."""

    def __init__(self, published: Published) -> None:
        self.place = 0
        self._published = published
        self._entries: list[Entry] = []
        self._client: SQSClient | None = None

    def add(
        self, client: "SQSClient", queue: QueueAddress, message: dict[str, Any], limit: int
    ) -> None:
        """Take a kombu message; send those before it where it would be one too many. May raise
        PublishError for it."""
        self.add_call(client, queue.url, call_for(message, limit), limit)

    def add_call(self, client: "SQSClient", url: str, call: dict[str, Any], limit: int) -> None:
        """The same for the arguments of SendMessage, attributes included."""
        entry = Entry(self.place, url, size(call["MessageBody"], call["MessageAttributes"]), call)
        together = entry.bytes_ + sum(other.bytes_ for other in self._entries)
        fits = len(self._entries) < BATCH and together <= limit
        if self._entries and not (fits and self._entries[0].url == entry.url):
            self.flush()
        self._client = client
        self._entries.append(entry)

    def flush(self) -> None:
        """Send what is here."""
        entries, self._entries = self._entries, []
        for attempt in range(TRIES):
            if not entries:
                return
            if attempt:
                time.sleep(random.uniform(0, FIRST_PAUSE * 2.0**attempt))
            entries = self._send(entries, is_last=attempt == TRIES - 1)

    def _send(self, entries: list[Entry], *, is_last: bool) -> list[Entry]:
        """Send entries in one call; those that are worth another."""
        assert self._client is not None
        try:
            answer = self._client.send_message_batch(
                QueueUrl=entries[0].url,
                Entries=[{"Id": str(n), **entry.call} for n, entry in enumerate(entries)],  # type: ignore[typeddict-item]  # the stubs want a literal
            )
        except Exception as exc:
            # Broad on purpose: botocore has tried often enough, and each message is accounted for.
            self._published.failed |= {entry.place: error_code(exc) for entry in entries}
            return []
        self._published.sent += len(answer.get("Successful", ()))
        again = []
        for fault in answer.get("Failed", ()):
            entry = entries[int(fault["Id"])]
            if fault["SenderFault"] or is_last:
                self._published.failed[entry.place] = fault["Code"]
            else:
                again.append(entry)
        return again


def publish(client: "SQSClient", queue: QueueAddress, message: dict[str, Any], limit: int) -> None:
    """Send a kombu message, without base64, so that a stock worker can read it too.

    A message with an `eta` (Celery makes one of a countdown) waits in SQS, not in a worker. Raises
    PublishError before any call for what SQS would refuse, and botocore's errors as they are.
    """
    client.send_message(QueueUrl=queue.url, **call_for(message, limit))


def call_for(message: dict[str, Any], limit: int) -> dict[str, Any]:
    """SendMessage's arguments for a kombu message, without the queue. May raise PublishError."""
    attributes = message["properties"].pop("message_attributes", {})
    return {
        "MessageBody": _body(message, attributes, limit),
        "MessageAttributes": attributes,
        "DelaySeconds": min(seconds_until_due(message["headers"]), LONGEST_DELAY),
    }


def _body(message: dict[str, Any], attributes: Mapping[str, Any], limit: int) -> str:
    if not isinstance(message["body"], str):
        raise PublishError(
            "The body is bytes, which JSON cannot carry. Send JSON without compression."
        )
    if len(attributes) > MOST_ATTRIBUTES:
        raise PublishError(f"SQS takes {MOST_ATTRIBUTES} attributes; there are {len(attributes)}.")
    body: str = dumps(message)
    if (bytes_ := size(body, attributes)) > limit:
        raise MessageTooLarge(
            f"The message is {bytes_} bytes; the queue takes {limit}. Send an id, not the object."
        )
    return body
