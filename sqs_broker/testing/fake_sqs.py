"""SQS in memory.

FakeSqs behaves as Amazon's SQS does with standard queues, according to its documentation
(https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/). It is one server, so a
receive always finds a visible message. It checks no signatures, encrypts nothing, and never deletes
old messages. It needs neither a network nor Celery.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from functools import partial
from itertools import count
from random import Random
from time import monotonic
from typing import Any

from sqs_broker.limits import (
    BATCH,
    LONGEST_DELAY,
    LONGEST_POLL,
    LONGEST_VISIBILITY,
    MOST_ATTRIBUTES,
    MOST_BYTES,
)
from sqs_broker.machine.calls import Calls, Overdue
from sqs_broker.options import Options
from sqs_broker.rules.attributes import size
from sqs_broker.sqs.driver import with_known_errors
from sqs_broker.sqs.errors import OVERDUE, SqsError, Unreached
from sqs_broker.sqs.requests import Answer, Request
from sqs_broker.testing.clock import Clock

#: The date and time at which a FakeSqs begins.
EPOCH = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

ACCOUNT = "123456789012"
REGION = "us-east-1"

#: Seconds between two purges of a queue.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_PurgeQueue.html
PURGE_PAUSE = 60

#: Most calls that may be open after their deadline: more than any test makes.
MOST_OPEN = 1_000_000

#: The prefix of error codes in SQS's first protocol.
OLD = "AWS.SimpleQueueService."

Entry = Mapping[str, Any]
Which = int | str | Callable[[Entry], bool]
"""Selects an entry of a batch: by position, by receipt handle or body, or with a function."""


@dataclass(frozen=True)
class Call:
    """A call to SQS."""

    action: str
    """Its name in SQS's API, such as `SendMessage`."""
    parameters: Mapping[str, Any]


class State(StrEnum):
    """The state of a message."""

    VISIBLE = "visible"
    IN_FLIGHT = "in flight"
    DELAYED = "delayed"


@dataclass(frozen=True)
class Message:
    """A message as it is in its queue."""

    message_id: str
    body: str
    attributes: Mapping[str, Mapping[str, Any]]
    state: State
    receives: int
    """How often it was received, including in the queue from which SQS moved it."""
    visible_in: float
    """Seconds until it can be received; 0 if it can."""
    group: str | None = None
    """The message group."""
    trace_header: str | None = None
    """X-Ray's tracing header."""


@dataclass(eq=False)
class _Stored:
    id: str
    body: str
    attributes: Mapping[str, Mapping[str, Any]]
    sent_at: datetime
    visible_at: float
    receives: int = 0
    first_received_at: datetime | None = None
    #: The receipt handle of the last receive, which is the only valid one, and the time of it.
    handle: str | None = None
    received_at: float = 0.0
    source_arn: str | None = None
    group: str | None = None
    trace_header: str | None = None


@dataclass
class _Queue:
    url: str
    visibility_timeout: int
    delay: int
    attributes: dict[str, str]
    messages: dict[str, _Stored] = field(default_factory=dict)
    """By MessageId."""
    purged_at: float | None = None

    @property
    def arn(self) -> str:
        return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{self.url.rpartition('/')[2]}"


_Do = Callable[[_Queue, Mapping[str, Any]], dict[str, Any]]
"""Executes one call, or one entry of a batch, on a queue."""


@dataclass
class _Fault:
    """An error of the next calls of an action: of the whole call, or of some entries."""

    action: str
    url: str | None
    error: Exception
    entries: Collection[Which] | None
    is_sender_fault: bool
    is_done: bool
    times: float

    def is_of(self, call: Call) -> bool:
        return (
            self.action == call.action
            and self.url in (None, call.parameters.get("QueueUrl"))
            and (self.entries is None or bool(self.failing(call)))
        )

    def failing(self, call: Call) -> list[int]:
        """The positions of the entries that fail."""
        given = call.parameters.get("Entries", ())
        selected = self.entries or ()
        return [n for n, entry in enumerate(given) if any(_selects(w, n, entry) for w in selected)]

    @property
    def of_entry(self) -> SqsError:
        """The error of an entry that fails."""
        code = SqsError.of(self.error).args[0]
        return SqsError.of_entry(code, is_sender_fault=self.is_sender_fault)


@dataclass
class _Delay:
    action: str
    before: float
    after: float
    times: float


def _selects(which: Which, place: int, entry: Entry) -> bool:
    if callable(which):
        return which(entry)
    if isinstance(which, int):
        return which == place
    return which in (entry.get("ReceiptHandle"), entry.get("MessageBody"))


class FakeSqs:
    """A server with several queues, and also the driver for it (sqs_broker/sqs/driver.py).

    With a `Clock`, nothing ever waits: a long poll that finds no message moves the clock to its own
    end or to the next message. With `holds_polls`, the poll stays open instead, until there is a
    message, another thread moves the clock, or a test calls `end_polls`. Without a `Clock`, the
    time is that of the machine, and a long poll waits as that of SQS does. A receive returns
    messages in the order in which they arrived; with `shuffle`, in random order, as SQS may.
    Thread-safe.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        holds_polls: bool = False,
        shuffle: Random | None = None,
    ) -> None:
        self.clock: Callable[[], float] = monotonic if clock is None else clock
        """The clock of leases and delays, in seconds."""
        self.on_call: Callable[[Call], object] = lambda call: None
        """Called before each call is executed, on the thread of the call. If it raises, the call
        raises that."""
        self.drivers: list[Mapping[str, Any]] = []
        """The arguments of each driver that the broker has created: timeouts, tries."""
        self._own_clock = clock
        self._began_at = self.clock()
        self._holds_polls = holds_polls
        self._shuffle = shuffle
        self._changed = threading.Condition()
        self._queues: dict[str, _Queue] = {}
        self._by_handle: dict[str, tuple[_Queue, _Stored]] = {}
        self._calls: list[Call] = []
        self._faults: list[_Fault] = []
        self._delays: list[_Delay] = []
        self._held: set[str] = set()
        self._open_polls = 0
        self._has_ended = False
        self._with_deadline = Calls(MOST_OPEN)
        self._ids = (f"sqs-{number}" for number in count(1))
        self._handles = (f"receipt-{number}" for number in count(1))
        if clock is not None:
            clock.on_advance(self._wake)

    # Queues and messages --------------------------------------------------------------------------

    def create_queue(
        self,
        name: str,
        *,
        visibility_timeout: int = 30,
        delay: int = 0,
        dead_letters: str | None = None,
        max_receive_count: int = 10,
        **attributes: str,
    ) -> str:
        """Create a queue. Returns its URL.

        `dead_letters` is the name of its dead-letter queue, which is created if it does not exist.
        SQS moves a message there that was received `max_receive_count` times. `attributes` replace
        SQS's defaults.
        """
        url = f"https://sqs.test/{ACCOUNT}/{name}"
        facts = {
            "VisibilityTimeout": str(visibility_timeout),
            "DelaySeconds": str(delay),
            "MaximumMessageSize": str(MOST_BYTES),
            "MessageRetentionPeriod": "345600",
        }
        queue = _Queue(url, visibility_timeout, delay, facts)
        facts["QueueArn"] = queue.arn
        if dead_letters is not None:
            target = f"https://sqs.test/{ACCOUNT}/{dead_letters}"
            if target not in self._queues:
                self.create_queue(dead_letters)
            facts["RedrivePolicy"] = json.dumps(
                {
                    "deadLetterTargetArn": self._queues[target].arn,
                    "maxReceiveCount": max_receive_count,
                }
            )
        facts |= attributes
        with self._changed:
            self._queues[url] = queue
        return url

    def delete_queue(self, url: str) -> None:
        """Delete a queue and its messages."""
        with self._changed:
            del self._queues[url]

    def set_attributes(self, url: str, **attributes: str | None) -> None:
        """Change attributes of a queue, with the names of GetQueueAttributes; None removes one."""
        with self._changed:
            queue = self._queues[url]
            for name, value in attributes.items():
                if value is None:
                    queue.attributes.pop(name, None)
                else:
                    queue.attributes[name] = value
            queue.visibility_timeout = int(queue.attributes["VisibilityTimeout"])
            queue.delay = int(queue.attributes["DelaySeconds"])

    def put(
        self,
        url: str,
        body: str,
        *,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
        delay: int = 0,
        receives: int = 0,
        source_arn: str | None = None,
        group: str | None = None,
        trace_header: str | None = None,
    ) -> str:
        """Put a message into a queue, as another program would: it is not in `calls`. Returns its
        MessageId.

        `receives` is how often it was received before. `source_arn` is the queue from which SQS has
        moved it. `group` is its message group, and `trace_header` X-Ray's tracing header.
        """
        with self._changed:
            stored = self._store(self._queues[url], body, attributes or {}, delay)
            stored.receives, stored.source_arn = receives, source_arn
            stored.group, stored.trace_header = group, trace_header
            return stored.id

    def messages(self, url: str) -> list[Message]:
        """The messages of a queue, in the order in which they arrived."""
        with self._changed:
            now = self.clock()
            return [self._as_it_is(stored, now) for stored in self._queues[url].messages.values()]

    def bodies(self, url: str) -> list[str]:
        """The bodies of the messages of a queue, in the order in which they arrived."""
        return [message.body for message in self.messages(url)]

    def message_id(self, receipt_handle: str) -> str:
        """The MessageId of the message that a receipt handle belongs to."""
        with self._changed:
            return self._by_handle[receipt_handle][1].id

    def leased_until(self, receipt_handle: str) -> float | None:
        """When the lease of a receipt handle ends, or ended, by the clock. None if another receive
        has the message now, or if it was deleted."""
        with self._changed:
            queue, stored = self._by_handle[receipt_handle]
            has_right = stored.handle == receipt_handle and stored.id in queue.messages
            return stored.visible_at if has_right else None

    def arn(self, url: str) -> str:
        """The queue's ARN."""
        return self._queues[url].arn

    # Calls ----------------------------------------------------------------------------------------

    @property
    def calls(self) -> list[Call]:
        """All calls, including those that failed, in the order in which they began."""
        with self._changed:
            return list(self._calls)

    @property
    def counts(self) -> Counter[str]:
        """The number of calls, by action."""
        return Counter(call.action for call in self.calls)

    def asked(self, action: str) -> list[Mapping[str, Any]]:
        """The parameters of each call of an action."""
        return [call.parameters for call in self.calls if call.action == action]

    def entries(self, action: str) -> list[Entry]:
        """The entries of all calls of an action, in one list."""
        return [entry for call in self.asked(action) for entry in call["Entries"]]

    def forget_calls(self) -> None:
        """Clear `calls` and `counts`."""
        with self._changed:
            self._calls.clear()

    @property
    def open_polls(self) -> int:
        """The number of receives that wait for a message now."""
        with self._changed:
            return self._open_polls

    # Faults ---------------------------------------------------------------------------------------

    def fail(
        self,
        action: str,
        code: str = "InternalError",
        *,
        error: Exception | None = None,
        entries: Collection[Which] | None = None,
        sender_fault: bool = False,
        done: bool = False,
        url: str | None = None,
        times: float = 1,
    ) -> None:
        """Make the next calls of an action fail: `times` calls, of one queue or of all.

        With `entries`, only these entries of a batch fail: selected by position, by receipt handle
        or body, or with a function. A call without any of them is not affected. Without `entries`,
        the whole call fails with `code`, or with `error`, which may be any exception. With `done`,
        SQS executes the call, and only its answer is lost.
        """
        refusal = SqsError(code) if error is None else error
        fault = _Fault(action, url, refusal, entries, sender_fault, done, times)
        with self._changed:
            self._faults.append(fault)

    def lose_answer(self, action: str, *, times: float = 1) -> None:
        """Execute the next calls of an action, but lose their answers."""
        self.fail(action, error=Unreached("ReadTimeoutError"), done=True, times=times)

    def deny(self, action: str, url: str | None = None) -> None:
        """Deny an action from now on, on one queue or on all."""
        self.fail(action, "AccessDenied", url=url, times=float("inf"))

    def heal(self, action: str | None = None) -> None:
        """Remove the faults and delays of an action, or of all."""
        with self._changed:
            self._faults = [fault for fault in self._faults if action not in (None, fault.action)]
            self._delays = [delay for delay in self._delays if action not in (None, delay.action)]

    def slow(self, action: str, *, before: float = 0, after: float = 0, times: float = 1) -> None:
        """Delay the next calls of an action: `before` seconds before SQS executes the call, and
        `after` seconds after that. A `Clock` moves by these at once."""
        with self._changed:
            self._delays.append(_Delay(action, before, after, times))

    def hold(self, action: str) -> None:
        """Hold calls of an action before they are executed, until `release`. `calls` has them."""
        with self._changed:
            self._held.add(action)

    def release(self, action: str | None = None) -> None:
        """Continue the held calls of an action, or of all."""
        with self._changed:
            self._held -= {action} if action else set(self._held)
            self._changed.notify_all()

    def end_polls(self) -> None:
        """End all open long polls. From now on, long polls end at once."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    # For the broker -------------------------------------------------------------------------------

    def transport_options(self, **changes: Any) -> dict[str, Any]:
        """Celery's `broker_transport_options` for this server: all queues by name, each with its
        dead-letter queue. `changes` replace options."""
        targets = {queue.arn: queue.url for queue in self._queues.values()}
        policies = {
            url: json.loads(queue.attributes.get("RedrivePolicy") or "{}")
            for url, queue in self._queues.items()
        }
        dead_letters = {
            url: targets.get(p.get("deadLetterTargetArn")) for url, p in policies.items()
        }
        queues = {
            url.rpartition("/")[2]: {"url": url, "dead_letter_url": dead_letters[url]}
            for url in self._queues
            if url not in dead_letters.values()
        }
        return {"region": REGION, "predefined_queues": queues, "driver": self.driver} | changes

    def options(self, **changes: Any) -> Options:
        """The same, as the broker's `Options`."""
        return Options.read(self.transport_options(**changes))

    def driver(self, options: Options, **how: Any) -> "FakeSqs":
        """The broker calls this to create a driver."""
        self.drivers.append(how)
        return self

    def open(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing. It can still be used."""

    def pause(self, seconds: float) -> None:
        """Wait. A `Clock` moves at once instead."""
        if seconds and self._own_clock is None:
            time.sleep(seconds)
        elif seconds and self._own_clock is not None:
            self._own_clock.advance(seconds)

    def carry(self, request: Request[Any]) -> Answer:
        """Execute a call. Raises SqsError as SQS would, and the faults that the test has set.

        A call that is still held or delayed after the `seconds` of its request is left, and
        executed later."""
        do = partial(self._carry, request)
        if request.seconds is None:
            return do()
        try:
            return self._with_deadline.run(partial(with_known_errors, do), request.seconds)
        except Overdue:
            raise Unreached(OVERDUE) from None

    # Implementation -------------------------------------------------------------------------------

    def _carry(self, request: Request[Any]) -> Answer:
        call = Call(request.action, request.parameters)
        with self._changed:
            self._calls.append(call)
            self._changed.wait_for(lambda: call.action not in self._held)
        self.on_call(call)
        with self._changed:
            fault, delay = self._next_fault(call), self._next_delay(call)
        self.pause(delay.before)
        is_refused = fault is not None and fault.entries is None
        content: Mapping[str, Any] = {}
        if fault is None or fault.is_done or not is_refused:
            with self._changed:
                content = self._do(call, fault)
        self.pause(delay.after)
        if fault is not None and is_refused:
            raise fault.error
        return Answer(content, format_datetime(self._wall_time(), usegmt=True))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wall_time(self) -> datetime:
        return EPOCH + timedelta(seconds=self.clock() - self._began_at)

    def _next_fault(self, call: Call) -> _Fault | None:
        fault = next((fault for fault in self._faults if fault.is_of(call)), None)
        if fault is not None:
            fault.times -= 1
            self._faults = [fault for fault in self._faults if fault.times > 0]
        return fault

    def _next_delay(self, call: Call) -> _Delay:
        delay = next((delay for delay in self._delays if delay.action == call.action), None)
        if delay is None:
            return _Delay(call.action, 0, 0, 0)
        delay.times -= 1
        self._delays = [delay for delay in self._delays if delay.times > 0]
        return delay

    def _do(self, call: Call, fault: _Fault | None) -> dict[str, Any]:
        singles: dict[str, _Do] = {
            "ReceiveMessage": self._receive,
            "SendMessage": self._send,
            "DeleteMessage": self._delete,
            "ChangeMessageVisibility": self._change,
            "GetQueueAttributes": self._attributes,
            "PurgeQueue": self._purge,
        }
        batches = {f"{name}Batch": do for name, do in singles.items()}
        queue = self._queues.get(call.parameters["QueueUrl"])
        if queue is None:
            raise SqsError(f"{OLD}NonExistentQueue")
        if call.action in singles:
            return singles[call.action](queue, call.parameters)
        return self._batch(queue, call, fault, batches[call.action])

    def _batch(self, queue: _Queue, call: Call, fault: _Fault | None, do: _Do) -> dict[str, Any]:
        given: Sequence[Entry] = call.parameters["Entries"]
        self._check_batch(given)
        failing = fault.failing(call) if fault else []
        done: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        for place, entry in enumerate(given):
            try:
                if fault is not None and place in failing:
                    raise fault.of_entry
                done.append({"Id": entry["Id"], **do(queue, entry)})
            except SqsError as exc:
                is_theirs = exc.is_sender_fault or place not in failing
                code = exc.args[0]
                failed.append({"Id": entry["Id"], "Code": code, "SenderFault": is_theirs})
        return {"Successful": done} | ({"Failed": failed} if failed else {})

    @staticmethod
    def _check_batch(given: Sequence[Entry]) -> None:
        sizes = [size(e.get("MessageBody", ""), e.get("MessageAttributes", {})) for e in given]
        if not given:
            raise SqsError(f"{OLD}EmptyBatchRequest")
        if len(given) > BATCH:
            raise SqsError(f"{OLD}TooManyEntriesInBatchRequest")
        if len({entry["Id"] for entry in given}) < len(given):
            raise SqsError(f"{OLD}BatchEntryIdsNotDistinct")
        if sum(sizes) > MOST_BYTES:
            raise SqsError(f"{OLD}BatchRequestTooLong")

    # Receiving

    def _receive(self, queue: _Queue, asked: Mapping[str, Any]) -> dict[str, Any]:
        most, wait = asked.get("MaxNumberOfMessages", 1), asked.get("WaitTimeSeconds", 0)
        visibility = asked.get("VisibilityTimeout", queue.visibility_timeout)
        _check(1 <= most <= BATCH)
        _check(0 <= wait <= LONGEST_POLL)
        _check(0 <= visibility <= LONGEST_VISIBILITY)
        if wait:
            self._await_message(queue, self.clock() + wait)
        handed_out = self._hand_out(queue, most, visibility)
        return {"Messages": [_as_received(m, asked) for m in handed_out]} if handed_out else {}

    def _await_message(self, queue: _Queue, end: float) -> None:
        """Wait as a long poll does."""
        self._open_polls += 1
        try:
            while not self._has_ended and not self._has_message(queue) and self.clock() < end:
                times = [
                    m.visible_at for m in queue.messages.values() if m.visible_at > self.clock()
                ]
                left = min([end, *times]) - self.clock()
                if self._own_clock is None:
                    self._changed.wait(left)
                elif self._holds_polls:
                    self._changed.wait()
                else:
                    self._own_clock.advance(left)
        finally:
            self._open_polls -= 1

    def _has_message(self, queue: _Queue) -> bool:
        self._move_dead_letters(queue)
        return any(message.visible_at <= self.clock() for message in queue.messages.values())

    def _hand_out(self, queue: _Queue, most: int, visibility: int) -> list[_Stored]:
        self._move_dead_letters(queue)
        now = self.clock()
        visible = [m for m in queue.messages.values() if m.visible_at <= now]
        if self._shuffle is not None:
            self._shuffle.shuffle(visible)
        handed_out = visible[:most]
        for message in handed_out:
            message.receives += 1
            message.first_received_at = message.first_received_at or self._wall_time()
            message.handle = next(self._handles)
            message.received_at, message.visible_at = now, now + visibility
            self._by_handle[message.handle] = (queue, message)
        return handed_out

    def _move_dead_letters(self, queue: _Queue) -> None:
        """Move messages that would exceed maxReceiveCount with one more receive. They keep their
        MessageId and the time at which they were sent."""
        policy = json.loads(queue.attributes.get("RedrivePolicy") or "{}")
        target = next(
            (q for q in self._queues.values() if q.arn == policy.get("deadLetterTargetArn")), None
        )
        if target is None:
            return
        for message in list(queue.messages.values()):
            is_visible = message.visible_at <= self.clock()
            if is_visible and message.receives >= int(policy["maxReceiveCount"]):
                del queue.messages[message.id]
                message.handle, message.source_arn = None, queue.arn
                target.messages[message.id] = message
                self._changed.notify_all()

    # Sending

    def _send(self, queue: _Queue, given: Mapping[str, Any]) -> dict[str, Any]:
        body, attributes = given["MessageBody"], given.get("MessageAttributes", {})
        delay = given.get("DelaySeconds", queue.delay)
        _check(bool(body))
        _check(0 <= delay <= LONGEST_DELAY)
        _check(len(attributes) <= MOST_ATTRIBUTES)
        _check(size(body, attributes) <= int(queue.attributes["MaximumMessageSize"]))
        stored = self._store(queue, body, attributes, delay)
        stored.group = given.get("MessageGroupId")
        system = given.get("MessageSystemAttributes", {})
        stored.trace_header = system.get("AWSTraceHeader", {}).get("StringValue")
        return {"MessageId": stored.id}

    def _store(
        self, queue: _Queue, body: str, attributes: Mapping[str, Mapping[str, Any]], delay: int
    ) -> _Stored:
        visible_at = self.clock() + delay
        stored = _Stored(next(self._ids), body, dict(attributes), self._wall_time(), visible_at)
        queue.messages[stored.id] = stored
        self._changed.notify_all()
        return stored

    # Settling

    def _delete(self, _: _Queue, given: Mapping[str, Any]) -> dict[str, Any]:
        queue, message = self._held_by(given["ReceiptHandle"])
        # "otherwise, the request succeeds, but the message will not be deleted"
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
        if message.handle == given["ReceiptHandle"]:
            queue.messages.pop(message.id, None)
        return {}

    def _change(self, _: _Queue, given: Mapping[str, Any]) -> dict[str, Any]:
        queue, message = self._held_by(given["ReceiptHandle"])
        seconds, now = given["VisibilityTimeout"], self.clock()
        _check(0 <= seconds <= LONGEST_VISIBILITY)
        _check(now + seconds <= message.received_at + LONGEST_VISIBILITY)
        _check(message.handle == given["ReceiptHandle"] and message.id in queue.messages)
        if message.visible_at <= now:
            raise SqsError(f"{OLD}MessageNotInflight")
        message.visible_at = now + seconds
        self._changed.notify_all()
        return {}

    def _held_by(self, handle: str) -> tuple[_Queue, _Stored]:
        try:
            return self._by_handle[handle]
        except KeyError:
            raise SqsError("ReceiptHandleIsInvalid") from None

    def _purge(self, queue: _Queue, _: Mapping[str, Any]) -> dict[str, Any]:
        now = self.clock()
        if queue.purged_at is not None and now - queue.purged_at < PURGE_PAUSE:
            raise SqsError(f"{OLD}PurgeQueueInProgress")
        queue.purged_at = now
        queue.messages.clear()
        return {}

    # Attributes and states

    def _attributes(self, queue: _Queue, asked: Mapping[str, Any]) -> dict[str, Any]:
        names = asked.get("AttributeNames", ())
        states = Counter(self._as_it_is(m, self.clock()).state for m in queue.messages.values())
        known = queue.attributes | {
            "ApproximateNumberOfMessages": str(states[State.VISIBLE]),
            "ApproximateNumberOfMessagesNotVisible": str(states[State.IN_FLIGHT]),
            "ApproximateNumberOfMessagesDelayed": str(states[State.DELAYED]),
        }
        wanted = known if "All" in names else {n: v for n, v in known.items() if n in names}
        return {"Attributes": wanted} if wanted else {}

    @staticmethod
    def _as_it_is(stored: _Stored, now: float) -> Message:
        if stored.visible_at <= now:
            state = State.VISIBLE
        else:
            state = State.IN_FLIGHT if stored.handle else State.DELAYED
        left = max(0.0, stored.visible_at - now)
        return Message(
            stored.id,
            stored.body,
            stored.attributes,
            state,
            stored.receives,
            left,
            stored.group,
            stored.trace_header,
        )


def _check(is_valid: bool) -> None:
    if not is_valid:
        raise SqsError("InvalidParameterValue")


def _as_received(stored: _Stored, asked: Mapping[str, Any]) -> dict[str, Any]:
    """A message as ReceiveMessage returns it."""
    system = {
        "ApproximateReceiveCount": str(stored.receives),
        "SentTimestamp": str(int(stored.sent_at.timestamp() * 1000)),
    }
    if stored.first_received_at is not None:
        first = stored.first_received_at.timestamp()
        system["ApproximateFirstReceiveTimestamp"] = str(int(first * 1000))
    if stored.source_arn is not None:
        system["DeadLetterQueueSourceArn"] = stored.source_arn
    if stored.group is not None:
        system["MessageGroupId"] = stored.group
    if stored.trace_header is not None:
        system["AWSTraceHeader"] = stored.trace_header
    names = asked.get("MessageSystemAttributeNames", ())
    message: dict[str, Any] = {
        "MessageId": stored.id,
        "ReceiptHandle": stored.handle,
        "Body": stored.body,
        "Attributes": system if "All" in names else {n: v for n, v in system.items() if n in names},
    }
    named = asked.get("MessageAttributeNames", ())
    attributes = {n: dict(v) for n, v in stored.attributes.items() if "All" in named or n in named}
    return message | ({"MessageAttributes": attributes} if attributes else {})
