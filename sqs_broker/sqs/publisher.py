"""Turns kombu messages into SQS messages, and sends many of them with ten per call.

If SQS would refuse a message, the caller gets the error at once.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from kombu.utils.json import dumps, loads

from sqs_broker.errors import EtaTooFar, InvalidArguments, MessageTooLarge, PublishError, label
from sqs_broker.limits import LONGEST_DELAY, MOST_ATTRIBUTES
from sqs_broker.rules.attributes import size
from sqs_broker.rules.canvas import Canvas
from sqs_broker.rules.due import CLOCK_TOLERANCE, ETA_MAX, seconds_until_due
from sqs_broker.rules.envelope import Wrong, a_name
from sqs_broker.rules.refusal import why_refused
from sqs_broker.rules.short_form import shortened
from sqs_broker.sqs.errors import Errors, SqsError
from sqs_broker.sqs.flight import CALLS, Flight
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing, Pack

#: A group of messages.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
GROUP_ID = re.compile("[!-~]{1,128}")

#: The properties that have no meaning in a standard queue, and what to do instead.
NOT_IN_SQS = {
    "priority": "Send urgent messages to a queue of their own.",
    "expiration": "Use `expires`.",
    "MessageDeduplicationId": "Use `task_id`, and a task that runs once for each id.",
}

#: Messages between two updates of the progress.
PROGRESS_EVERY = 1_000


@dataclass
class Published:
    """The result of sending many messages."""

    sent: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    """Why a message was not sent, by its position among the given messages, from 0."""


def publish_many(task: Any, messages: Iterable[Mapping[str, Any]], calls: int = CALLS) -> Published:
    """Send the task once for each set of keyword arguments, with ten messages per call, and `calls`
    calls at the same time.

    An error that `.delay` would raise for one message, or that SQS returns for it, is in the
    result; the other messages are still sent. If SQS fails a message for an internal reason, it is
    sent again. A call that does not reach SQS is repeated within `publish_timeout`. If that does
    not help, its messages are in the result as failed, and so are those after it, which are not
    sent (`NotTried`). If stderr is a terminal, it shows the progress.

    In a test whose app has another broker, or runs tasks eagerly, it calls the task once for each.

    Raises ConfigurationError, and sends nothing, if boto3 cannot use its settings.
    """
    published = Published()
    with task.app.connection_for_write() as connection:
        producer = task.app.amqp.Producer(connection, auto_declare=False)
        channel = producer.channel
        sender = getattr(channel.connection, "sender", None)
        if sender is None or task.app.conf.task_always_eager:
            return _call_each(task, messages, published)
        with suppress(SqsError):  # Each message has it as its own failure.
            sender.open()
        with Flight(sender, calls) as flight:
            batch = channel.batch = Batch(published, channel.published, flight)
            for place, kwargs in enumerate(messages):
                batch.place = place
                try:
                    # Without Celery's retry, because that would send the message on another
                    # channel.
                    task.apply_async(kwargs=dict(kwargs), producer=producer, retry=False)
                except (PublishError, TypeError) as exc:
                    published.failed[place] = str(exc)
                if place and place % PROGRESS_EVERY == 0 and sys.stderr.isatty():
                    sys.stderr.write(f"\r{published.sent} sent, {len(published.failed)} failed")
            batch.flush()
    return published


def _call_each(task: Any, messages: Iterable[Mapping[str, Any]], published: Published) -> Published:
    for place, kwargs in enumerate(messages):
        try:
            task.apply_async(kwargs=dict(kwargs))
            published.sent += 1
        except (PublishError, TypeError) as exc:
            published.failed[place] = str(exc)
    return published


class Batch:
    """Collects messages and sends them, at most ten per call, within SQS's size limit of a call."""

    def __init__(
        self,
        published: Published,
        on_sent: Callable[[str, int], None] = lambda *_: None,
        flight: Flight | None = None,
    ) -> None:
        """Calls `on_sent` with the URL of a queue, and the number of messages that it accepted.
        With a `flight`, it sends the messages; without one, each call ends before the next one."""
        self.place = 0
        self._published = published
        self._on_sent = on_sent
        self._flight = flight
        self._queue: Queue | None = None
        self._limit = 0
        self._pack = Pack(0)
        self._places: list[int] = []

    def add(self, queue: Queue, message: Outgoing, limit: int) -> None:
        """Add a message. If it does not fit into the same call, first send those before it."""
        is_same_queue = self._queue is not None and self._queue.url == queue.url
        if not (is_same_queue and self._pack.add(message)):
            self._send()
            self._queue, self._limit, self._pack = queue, limit, Pack(limit)
            self._pack.add(message)
        self._places.append(self.place)

    def flush(self) -> None:
        """Send the collected messages. The flight waits for the end of its calls."""
        self._send()

    def _send(self) -> None:
        messages, places = self._pack.messages, self._places
        self._pack, self._places = Pack(self._limit), []
        if self._queue is None or not messages:
            return
        url = self._queue.url

        def on_end(errors: Errors, may_have_been_sent: bool) -> None:
            self._note(url, places, errors)

        if self._flight is None:
            on_end(self._queue.send_many(messages, self._limit), False)
        else:
            self._flight.send(self._queue, messages, self._limit, on_end)

    def _note(self, url: str, places: list[int], errors: Errors) -> None:
        for place, error in zip(places, errors, strict=True):
            if error is not None:
                self._published.failed[place] = error.code
        if sent := errors.count(None):
            self._published.sent += sent
            self._on_sent(url, sent)


def message_for(message: dict[str, Any], limit: int, eta_max: float = ETA_MAX) -> Outgoing:
    """The SQS message for a kombu message. It has no base64; a stock worker can read it too.

    A message with an `eta` (Celery turns a countdown into one) waits in SQS, not in a worker.
    `DelaySeconds` and `MessageGroupId` among its properties are those of SQS.

    Raises PublishError if SQS would refuse the message or has nothing for one of its properties,
    and EtaTooFar if its `eta` is more than `eta_max` seconds from now.
    """
    properties = message["properties"]
    _refuse_id(message["headers"])
    _refuse_properties(message["headers"], properties)
    due_in = seconds_until_due(message["headers"])
    # Rounded up, and the sender's own clock measured it a moment before.
    if due_in > eta_max + CLOCK_TOLERANCE:
        raise EtaTooFar(eta_max)
    delay, asked = min(due_in, LONGEST_DELAY), _delay(properties)
    # If nobody asks for a delay, the queue may have one.
    seconds = max(delay, asked or 0) if delay or asked is not None else None
    group = _group(properties)
    attributes = _attributes(properties)
    body = _body(message, attributes, limit)
    return Outgoing(body, attributes, seconds, group)


def check_arguments(message: Mapping[str, Any], schemas: Mapping[str, Callable[..., Any]]) -> None:
    """Raise InvalidArguments if the task of a kombu message has a schema that refuses its
    arguments. A message that a running task sends is not checked: an error would fail that task,
    although its work may be done."""
    headers = message["headers"]
    schema = schemas.get(str(headers.get("task")))
    if schema is None or headers.get("parent_id") or not isinstance(message["body"], str):
        return
    args, kwargs, _ = loads(message["body"])
    try:
        schema(*args, **kwargs)
    except (TypeError, ValueError) as exc:
        raise InvalidArguments(
            f"{headers['task']}: the schema refuses the arguments ({label(exc)})."
        ) from exc


def check_readable(message: Mapping[str, Any], canvas: Canvas) -> None:
    """Raise PublishError for a task message that a worker with the same options would refuse. As
    with the arguments, a message that a running task sends is not checked."""
    headers = message["headers"]
    is_of_celery = "task" in headers and "id" in headers
    if not is_of_celery or headers.get("parent_id") or not isinstance(message["body"], str):
        return
    if (reason := why_refused(message, canvas)) is not None:
        raise PublishError(f"No worker would run this message: {reason}.")


def _refuse_id(headers: Mapping[str, Any]) -> None:
    """Raise PublishError for an id that no worker reads. As with properties, not in a message that
    a running task sends."""
    id_ = headers.get("id")
    if isinstance(id_, str) and not headers.get("parent_id"):
        try:
            a_name(id_)
        except Wrong as exc:
            raise PublishError(f"`task_id`: {exc.why}. No worker would run it.") from exc


def _refuse_properties(headers: Mapping[str, Any], properties: Mapping[str, Any]) -> None:
    """Raise PublishError for what SQS has nothing for. In a message that a running task sends it
    has no effect: it may come with a callback, and an error would fail that task, although its work
    may be done."""
    if headers.get("parent_id"):
        return
    for name, instead in NOT_IN_SQS.items():
        # Celery itself sets it beside `expires`, which a worker reads (celery 5.7 app/base.py).
        if name == "expiration" and headers.get("expires"):
            continue
        # kombu gives each message the priority 0.
        if properties.get(name):
            raise PublishError(f"SQS has no `{name}` for a message of a standard queue. {instead}")


def _delay(properties: Mapping[str, Any]) -> int | None:
    """The delay that the caller asked SQS for, in seconds; None if it asked for none. Both
    spellings are kombu's."""
    for name in ("delay_seconds", "DelaySeconds"):
        delay: Any = properties.get(name)
        if delay is None:
            continue
        is_number = isinstance(delay, int | float) and not isinstance(delay, bool)
        if not is_number or not 0 <= delay <= LONGEST_DELAY:
            raise PublishError(
                f"`{name}` must be a number of seconds from 0 to {LONGEST_DELAY}. For a longer "
                "time, use `countdown`."
            )
        seconds: int = ceil(delay)
        return seconds
    return None


def _group(properties: Mapping[str, Any]) -> str | None:
    group = properties.get("MessageGroupId")
    if group is not None and not (isinstance(group, str) and GROUP_ID.fullmatch(group)):
        raise PublishError(
            "`MessageGroupId` must be a text of 1 to 128 letters, digits and punctuation marks of "
            "ASCII."
        )
    return group


def _attributes(properties: dict[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    attributes = properties.pop("message_attributes", None) or {}
    is_one = isinstance(attributes, Mapping) and all(
        isinstance(value, Mapping) and "DataType" in value for value in attributes.values()
    )
    if not is_one:
        raise PublishError(
            "`message_attributes` must be a dictionary of attributes as SQS has them: "
            '{"shop": {"DataType": "String", "StringValue": "7"}}.'
        )
    known: Mapping[str, Mapping[str, Any]] = attributes
    return known


def _body(message: dict[str, Any], attributes: Mapping[str, Any], limit: int) -> str:
    if not isinstance(message["body"], str):
        raise PublishError(
            "The body is bytes, which JSON cannot carry. Send JSON without compression."
        )
    if len(attributes) > MOST_ATTRIBUTES:
        raise PublishError(
            f"SQS accepts at most {MOST_ATTRIBUTES} attributes; there are {len(attributes)}."
        )
    body: str = dumps(shortened(message), separators=(",", ":"))
    if (bytes_ := size(body, attributes)) > limit:
        raise MessageTooLarge(
            f"The message is {bytes_} bytes; the queue accepts {limit}. Send an id, not the object."
        )
    return body
