"""Leases, settler, heartbeat and outcomes against a model of SQS, step by step, in any order.

Each delivery is settled at most once and never under a lease that is over; no message is lost, and
none is dead-lettered twice where that can be known; at the end nothing is left anywhere.

The parts are the real ones; their threads are not started, and each step of theirs is a rule here.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kombu import Connection
from kombu.transport import virtual

from sqs_broker.limits import BATCH
from sqs_broker.rules import outcomes
from sqs_broker.rules.outcomes import Happened
from sqs_broker.sqs.heartbeat import Heartbeat
from sqs_broker.sqs.leases import MOST_UNTOLD
from sqs_broker.sqs.receiver import Receiver
from sqs_broker.sqs.settler import LONGEST_LINGER, RETRY_PAUSE, Settler
from sqs_broker.worker.channel import Channel, Message

VISIBILITY, MAX_RECEIVES, MAX_ATTEMPTS = 30, 6, 3
URL, DEAD_LETTER_URL = "https://sqs.test/jobs", "https://sqs.test/jobs-dlq"

#: The modules that look at a clock.
CLOCKS = (
    "sqs.deliveries",
    "sqs.extension",
    "sqs.heartbeat",
    "observers.log",
    "rules.lease",
    "sqs.receiver",
    "sqs.settlement",
    "sqs.settler",
    "worker.transport",
)


class Clock:
    """Monotonic seconds that pass when a rule says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Stored:
    """A message in the model's queue."""

    id: str
    body: str
    visible_at: float
    receives: int = 0
    handle: str = ""
    is_deleted: bool = False


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a call: nothing of it is done, or its answer is lost, or a few entries
    fail; and how long it takes."""

    refuses: bool = False
    loses_answer: bool = False
    failing: frozenset[int] = frozenset()
    seconds: float = 0.0


GOOD = Fault()
faults = st.sampled_from(
    [
        GOOD,
        Fault(refuses=True),
        Fault(loses_answer=True),
        Fault(failing=frozenset({0})),
        Fault(failing=frozenset({1})),
        Fault(failing=frozenset({0, 2})),
        Fault(seconds=10),
        Fault(seconds=20),
        Fault(seconds=VISIBILITY + 5),
        Fault(seconds=10, loses_answer=True),
    ]
)


@dataclass
class Sqs:
    """A queue and its dead letters, as SQS keeps them."""

    clock: Clock
    fault: Fault = GOOD
    messages: dict[str, Stored] = field(default_factory=dict)
    #: By receipt handle: its message, and until when SQS gives it the right to it.
    handles: dict[str, str] = field(default_factory=dict)
    leased_until: dict[str, float] = field(default_factory=dict)
    #: What each handle was used for, and those of which the worker was told that it worked.
    settled: dict[str, set[str]] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    #: Copies of each message, and those that the worker knows of.
    copies: Counter[str] = field(default_factory=Counter)
    known_copies: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: count(1))

    def put(self, body: dict[str, Any], delay: float = 0) -> None:
        """Take a message. Its body names it, so that its copies are known."""
        id_ = f"sqs-{next(self.numbers)}"
        text = json.dumps(body | {"of": id_})
        self.messages[id_] = Stored(id_, text, self.clock.now + delay)

    def present(self) -> list[Stored]:
        return [message for message in self.messages.values() if not message.is_deleted]

    def hand_out(self, most: int) -> list[Stored]:
        """What a receive gets; who has had too many, goes to the dead letters instead."""
        visible = [m for m in self.present() if m.visible_at <= self.clock.now][:most]
        for message in visible:
            message.receives += 1
            message.handle = f"{message.id}/{message.receives}"
            message.visible_at = self.clock.now + VISIBILITY
            self.handles[message.handle] = message.id
            self.leased_until[message.handle] = message.visible_at
        for message in visible:
            message.is_deleted = message.receives > MAX_RECEIVES
        return [message for message in visible if not message.is_deleted]

    def receive_message(self, MaxNumberOfMessages: int, **_: Any) -> dict[str, Any]:
        self._before("ReceiveMessage")
        self.clock.now += self.fault.seconds / 2
        handed_out = self.hand_out(MaxNumberOfMessages)
        self.clock.now += self.fault.seconds / 2
        self._after()
        return {
            "Messages": [
                {
                    "MessageId": message.id,
                    "ReceiptHandle": message.handle,
                    "Body": message.body,
                    "Attributes": {
                        "ApproximateReceiveCount": str(message.receives),
                        "SentTimestamp": "1767323045678",
                    },
                }
                for message in handed_out
            ]
        }

    def send_message(
        self, QueueUrl: str, MessageBody: str, DelaySeconds: int = 0, **_: Any
    ) -> None:
        self._before("SendMessage")
        body = json.loads(MessageBody)
        origin = body["of"]
        if not 0 <= DelaySeconds <= 900:
            self.wrong.append(f"a delay of {DelaySeconds} s")
        if self.known_copies[origin]:
            self.wrong.append(f"a second copy of {origin}")
        self.copies[origin] += 1
        if QueueUrl == URL:
            self.put(body, DelaySeconds)
        self._after()
        self.known_copies[origin] += 1
        self.clock.now += self.fault.seconds

    def delete_message_batch(self, Entries: list[Any], **_: Any) -> dict[str, Any]:
        return self._batch(Entries, "delete", self._delete)

    def change_message_visibility_batch(self, Entries: list[Any], **_: Any) -> dict[str, Any]:
        return self._batch(Entries, "change", self._change)

    def _batch(self, entries: list[Any], use: str, apply: Any) -> dict[str, Any]:
        self._before(use)
        if not 1 <= len(entries) <= BATCH:
            self.wrong.append(f"{len(entries)} entries")
        failed = []
        for number, entry in enumerate(entries):
            if number in self.fault.failing:
                failed.append({"Id": entry["Id"], "Code": "InternalError"})
            else:
                self._settle(entry, use)
                apply(entry)
        self._after()
        self.clock.now += self.fault.seconds
        ids = {entry["Id"] for entry in failed}
        self.answered |= {e["ReceiptHandle"] for e in entries if e["Id"] not in ids}
        return {"Failed": failed}

    def _settle(self, entry: Any, use: str) -> None:
        handle = entry["ReceiptHandle"]
        self.settled.setdefault(handle, set()).add(use)
        if len(self.settled[handle]) > 1:
            self.wrong.append(f"{handle} is settled twice: {self.settled[handle]}")
        if handle in self.answered:
            self.wrong.append(f"{handle} is settled again")
        if self.clock.now >= self.leased_until[handle]:
            self.wrong.append(f"{handle} is settled under a lost lease")

    def _delete(self, entry: Any) -> None:
        message = self.messages[self.handles[entry["ReceiptHandle"]]]
        if message.handle == entry["ReceiptHandle"]:
            message.is_deleted = True

    def _change(self, entry: Any) -> None:
        message = self.messages[self.handles[entry["ReceiptHandle"]]]
        if not 0 <= entry["VisibilityTimeout"] <= 43_200:
            self.wrong.append(f"a visibility of {entry['VisibilityTimeout']} s")
        if message.handle == entry["ReceiptHandle"]:
            message.visible_at = self.clock.now + entry["VisibilityTimeout"]

    def _before(self, action: str) -> None:
        if self.fault.refuses:
            raise ClientError({"Error": {"Code": "InternalError"}}, action)

    def _after(self) -> None:
        if self.fault.loses_answer:
            raise ReadTimeoutError(endpoint_url=URL)


class Extending:
    """SQS as the heartbeat and the receiver see it: a change there is an extension."""

    def __init__(self, sqs: Sqs) -> None:
        self.sqs = sqs
        self.receive_message = sqs.receive_message

    def change_message_visibility_batch(self, Entries: list[Any], **_: Any) -> dict[str, Any]:
        sqs = self.sqs
        sqs._before("change")
        sqs.clock.now += sqs.fault.seconds / 2
        failed = []
        for number, entry in enumerate(Entries):
            handle = entry["ReceiptHandle"]
            message = sqs.messages[sqs.handles[handle]]
            if number in sqs.fault.failing:
                failed.append({"Id": entry["Id"], "Code": "InternalError"})
            elif message.handle != handle or message.visible_at <= sqs.clock.now:
                failed.append({"Id": entry["Id"], "Code": "MessageNotInflight"})
            else:
                if sqs.settled.get(handle):
                    sqs.wrong.append(f"{handle} is extended after it was settled")
                message.visible_at = sqs.clock.now + entry["VisibilityTimeout"]
                sqs.leased_until[handle] = message.visible_at
        sqs.clock.now += sqs.fault.seconds / 2
        sqs._after()
        return {"Failed": failed}


happenings = st.sampled_from(
    [
        outcomes.Succeeded(),
        outcomes.RetryAsked(None, "E"),
        outcomes.RetryAsked(500, "E"),
        outcomes.Failed("E", "it failed"),
        outcomes.Refused("it can never work"),
        outcomes.NotStarted(),
    ]
)


class Settling(RuleBasedStateMachine):
    """One worker, its queue, and somebody else who receives from it too."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        for module in CLOCKS:
            self.patch.setattr(f"sqs_broker.{module}.monotonic", self.clock)
        self.sqs = Sqs(self.clock)
        self.connection = Connection(
            "sqs://",
            transport="sqs_broker:Transport",
            transport_options={
                "region": "us-east-1",
                "predefined_queues": {"jobs": {"url": URL, "dead_letter_url": DEAD_LETTER_URL}},
                "visibility_timeout": VISIBILITY,
                "max_attempts": MAX_ATTEMPTS,
                "max_receive_count": MAX_RECEIVES,
                "receive_pause_max": 0,
                "longest_wait": 2 * VISIBILITY,
            },
        )
        self.channel: Channel = self.connection.channel()
        self.deliveries = self.channel.deliveries
        self.leases = self.deliveries._leases
        self.leases.resize(2)
        options = self.channel._options
        self.settler = Settler(
            options,
            self.sqs,  # type: ignore[arg-type]
            lambda told: self.leases.telling(-told),
        )
        self.heartbeat = Heartbeat(
            options,
            Extending(self.sqs),  # type: ignore[arg-type]
            self.leases,
            self.deliveries._on_lost,
            self.deliveries._watch_the_loop,
            self.deliveries._on_waited,
        )
        self.receiver = Receiver(
            "jobs",
            options,
            Extending(self.sqs),  # type: ignore[arg-type]
            self.leases,
            self.deliveries._on_received,
        )
        self.deliveries._settler = self.settler
        self.deliveries._inbox = self.connection.transport.inbox
        self.deliveries._receivers["jobs"] = self.receiver
        #: Deliveries that a task of ours has, and how each message was last known to be done.
        self.held: list[Message] = []
        self.succeeded: set[str] = set()
        # Ours would start the threads.
        virtual.Channel.basic_consume(self.channel, "jobs", False, self.held.append, "consumer")

    # The world ----------------------------------------------------------------------------------

    @initialize()
    def there_is_work(self) -> None:
        self.send(12, "task")
        self.poll(GOOD, True)

    @rule(number=st.integers(1, 12), kind=st.sampled_from(["task"] * 4 + ["bad", "later"]))
    def send(self, number: int, kind: str) -> None:
        for _ in range(number):
            headers = {"task": "job", "id": "id-1"}
            if kind == "later":
                headers["eta"] = "2999-01-01T00:00:00+00:00"
            body = {
                "body": json.dumps([[], {}, {}]),
                "headers": headers,
                "properties": {},
                "content-type": "application/json" if kind != "bad" else "text/plain",
                "content-encoding": "utf-8",
            }
            self.sqs.put(body)

    @rule(seconds=st.sampled_from([0.2, 1.5, 6, 11, 11, VISIBILITY + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.held)
    @rule(data=st.data(), seconds=st.sampled_from([-2.5, -0.5, 0.01]))
    def a_lease_is_about_to_end(self, data: st.DataObject, seconds: float) -> None:
        tag = data.draw(st.sampled_from(self.held)).delivery_tag
        for lease in self.leases.all():
            if lease.delivery.tag == tag:
                ends_at = self.sqs.leased_until[lease.delivery.receipt_handle]
                self.clock.now = max(self.clock.now, ends_at + seconds)

    @rule(most=st.integers(1, 3))
    def another_worker_receives(self, most: int) -> None:
        self.sqs.hand_out(most)

    # The worker's threads -----------------------------------------------------------------------

    @rule(fault=faults, is_delivered=st.sampled_from([True, True, True, False]))
    def poll(self, fault: Fault, is_delivered: bool) -> None:
        if slots := self.leases.try_reserve():
            self.sqs.fault = fault
            self.receiver._poll(slots, 0)
        if is_delivered:
            self.connection.transport._deliver_arrived()

    @rule(fault=faults)
    def beat(self, fault: Fault) -> None:
        self.sqs.fault = fault
        self.heartbeat.beat()

    @rule(fault=faults)
    def settle(self, fault: Fault) -> None:
        self.sqs.fault = fault
        self._settle_next()

    def _settle_next(self) -> bool:
        is_due = any(s.not_before <= self.clock.now for s in self.settler._failed)
        if not (self.settler._waiting or is_due):
            return False
        with self.settler._changed:
            self.settler._requeue_failed()
        # It would wait for others to share the call.
        self.clock.now += 2 * LONGEST_LINGER
        self.settler._work(self.settler._next_batch())
        return True

    # The tasks ----------------------------------------------------------------------------------

    @precondition(lambda self: self.held)
    @rule(data=st.data(), limit=st.sampled_from([None, 5, 60]))
    def a_task_starts(self, data: st.DataObject, limit: float | None) -> None:
        message = data.draw(st.sampled_from(self.held))
        self.channel.deliveries.started(message.delivery_tag, limit)

    @precondition(lambda self: self.held)
    @rule(
        happened=st.lists(happenings, min_size=1, max_size=BATCH),
        twice=st.booleans(),
        fault=st.none() | faults | faults,
    )
    def tasks_end(self, happened: list[Happened], twice: bool, fault: Fault | None) -> None:
        for message, what in zip(list(self.held), happened, strict=False):
            self._end(message, what)
            if twice:
                # The pool's timeout and its death may each say something of one delivery.
                self.channel.deliveries.end(message.delivery_tag, outcomes.Failed("E", "once more"))
        if fault is not None:
            self.settle(fault)

    def _end(self, message: Message, happened: Happened) -> None:
        self.held.remove(message)
        if happened == outcomes.Succeeded():
            self.succeeded.add(self._origin(message.delivery_tag))
        message.note(happened)
        message.ack()

    def _origin(self, tag: str) -> str:
        for lease in self.leases.all():
            if lease.delivery.tag == tag:
                return lease.delivery.message_id
        return ""  # Its lease was lost: the redelivery counts.

    # What holds ---------------------------------------------------------------------------------

    @invariant()
    def sqs_is_told_nothing_wrong(self) -> None:
        assert self.sqs.wrong == []

    @invariant()
    def no_lease_is_believed_to_last_longer_than_it_does(self) -> None:
        for lease in self.leases.all():
            assert lease.expires_at <= self.sqs.leased_until[lease.delivery.receipt_handle]

    @invariant()
    def nothing_is_deleted_that_was_not_done_or_copied(self) -> None:
        for message in self.sqs.messages.values():
            if message.is_deleted and message.receives <= MAX_RECEIVES:
                assert message.id in self.succeeded or self.sqs.copies[message.id]

    @invariant()
    def no_more_is_held_than_there_is_room_for(self) -> None:
        held = len(self.leases) + self.leases._reserved
        assert held <= self.leases._window
        assert 0 <= self.leases._untold <= MOST_UNTOLD + self.leases._window

    def teardown(self) -> None:
        try:
            self._all_ends()
        finally:
            self.patch.undo()

    def _all_ends(self) -> None:
        """Nothing fails any more, and every task succeeds."""
        self.sqs.fault = GOOD
        for _ in range(200):
            if not (self._unfinished() or len(self.leases) or self.settler._failed):
                break
            self.connection.transport._deliver_arrived()
            for message in list(self.held):
                self._end(message, outcomes.Succeeded())
            self.heartbeat.beat()
            while self._settle_next():
                pass
            if slots := self.leases.try_reserve():
                self.receiver._poll(slots, 0)
            self.clock.now += max(RETRY_PAUSE, VISIBILITY / 3)
        while self._settle_next():
            pass
        self.sqs_is_told_nothing_wrong()
        assert self.sqs.wrong == []
        self.nothing_is_deleted_that_was_not_done_or_copied()
        assert self._unfinished() == []
        assert (len(self.leases), self.leases._reserved, self.leases._untold) == (0, 0, 0)
        assert not self.settler._waiting
        assert not self.settler._failed

    def _unfinished(self) -> list[str]:
        # Those to come in the year 2999 are sent on and on.
        return [message.id for message in self.sqs.present() if '"eta"' not in message.body]


Settling.TestCase.settings = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=80,
    stateful_step_count=40,
    report_multiple_bugs=False,
)
TestSettling = Settling.TestCase
