"""Deliveries, leases, settler, heartbeat and outcomes against a model of SQS, step by step, in any
order.

Each delivery is settled at most once and never under a lease that is over; no message is lost, and
none is dead-lettered twice where that can be known; at the end nothing is left anywhere.

The parts are the real ones; their threads do not run, and each step of theirs is a rule here.
"""

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sqs_broker.limits import BATCH, LONGEST_DELAY, LONGEST_VISIBILITY
from sqs_broker.machine.inbox import Inbox
from sqs_broker.observers.observer import Observer
from sqs_broker.options import Options
from sqs_broker.rules import outcomes
from sqs_broker.rules.dead_letter import read_note
from sqs_broker.rules.outcomes import Happened
from sqs_broker.rules.policy import Policy
from sqs_broker.sqs.deliveries import Deliveries
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.leases import MOST_AHEAD, MOST_UNREPORTED
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Answer, Request
from sqs_broker.sqs.settler import RETRY_PAUSE
from sqs_broker.testing import Clock, FakeSqs

VISIBILITY, MAX_RECEIVES, MAX_ATTEMPTS, CONCURRENCY = 30, 6, 3, 2

RECEIVE, SEND, SEND_MANY = "ReceiveMessage", "SendMessage", "SendMessageBatch"
DELETE, CHANGE = "DeleteMessageBatch", "ChangeMessageVisibilityBatch"
ACTIONS = (RECEIVE, SEND, SEND_MANY, DELETE, CHANGE)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with calls: nothing of them is done, or of copies, or their answers are lost,
    or a few entries fail; and how long each takes."""

    refuses: bool = False
    refuses_copies: bool = False
    loses_answer: bool = False
    failing: frozenset[int] = frozenset()
    seconds: float = 0.0


GOOD = Fault()
faults = st.sampled_from(
    [
        GOOD,
        Fault(refuses=True),
        Fault(refuses_copies=True),
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


class World:
    """A queue and its dead letters, and what was seen to happen to them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fake = FakeSqs(self.clock)
        self.url = self.fake.create_queue(
            "jobs",
            dead_letters="jobs-dlq",
            visibility_timeout=VISIBILITY,
            max_receive_count=MAX_RECEIVES,
        )
        self.queue = Queue(self.url, self.fake)
        self.numbers = count(1)
        self.sent: list[str] = []
        #: By receipt handle, until when SQS gives it the right to its message.
        self.leased_until: dict[str, float] = {}
        #: What each handle was used for, and those of which the worker was told that it worked.
        self.settled: dict[str, set[str]] = {}
        self.answered: set[str] = set()
        #: Copies of each message, and those that the worker knows of.
        self.copies: Counter[str] = Counter()
        self.known_copies: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.fault = GOOD

    def put(self, body: dict[str, Any]) -> None:
        """Send a message. Its body names it, so that its copies are known."""
        self.fake.put(self.url, self.named(body))

    def named(self, body: dict[str, Any]) -> str:
        self.sent.append(f"message-{next(self.numbers)}")
        return json.dumps(body | {"of": self.sent[-1]})

    def suffer(self, fault: Fault, *, before: float = 0.0) -> None:
        """Let this go wrong with all calls from now on; SQS does what it is asked when `before` of
        their time has passed."""
        self.fault = fault
        self.fake.heal()
        for action in ACTIONS:
            early, late = fault.seconds * before, fault.seconds * (1 - before)
            self.fake.slow(action, before=early, after=late, times=inf)
            if fault.refuses or (fault.refuses_copies and action in (SEND, SEND_MANY)):
                self.fake.fail(action, times=inf)
            elif fault.loses_answer:
                self.fake.lose_answer(action, times=inf)
            elif fault.failing and action in (DELETE, CHANGE, SEND_MANY):
                self.fake.fail(action, entries=fault.failing, times=inf)

    def present(self) -> set[str]:
        """The names of the messages in the queue."""
        return {name_in(body) for body in self.fake.bodies(self.url)}

    def moved(self) -> set[str]:
        """The names of those that SQS itself has moved to the dead letters."""
        letters = self.fake.messages(f"{self.url}-dlq")
        return {name_in(m.body) for m in letters if read_note(m.attributes) is None}


def name_in(body: str) -> str:
    return str(json.loads(body)["of"])


class Watched:
    """The way to SQS of one part of the worker, which says what is wrong with what is asked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fake = world.fake

    def open(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def pause(self, seconds: float) -> None:
        """Let it pass."""
        self.fake.pause(seconds)

    def carry(self, request: Request[Any]) -> Answer:
        """Look at a request, and at what SQS makes of it."""
        entries = request.parameters.get("Entries", [{}])
        if not 1 <= len(entries) <= BATCH:
            self.world.wrong.append(f"{len(entries)} entries")
        return self.fake.carry(request)


class Extending(Watched):
    """That of the receiver and the heartbeat: a change there is an extension."""

    def carry(self, request: Request[Any]) -> Answer:
        """Note until when leases last."""
        handles = [entry["ReceiptHandle"] for entry in request.parameters.get("Entries", ())]
        for handle in handles:
            has_right = (self.fake.leased_until(handle) or 0) > self.world.clock()
            if has_right and self.world.settled.get(handle):
                self.world.wrong.append(f"{handle} is extended after it was settled")
        try:
            answer = super().carry(request)
        finally:
            self._note(handles)
        self._note([m["ReceiptHandle"] for m in answer.content.get("Messages", ())])
        return answer

    def _note(self, handles: list[str]) -> None:
        for handle in handles:
            # Also one that is over by now, since the answer came late.
            if (until := self.fake.leased_until(handle)) is not None:
                self.world.leased_until[handle] = until
            else:
                self.world.leased_until.setdefault(handle, self.world.clock())


class Telling(Watched):
    """That of the settler."""

    def carry(self, request: Request[Any]) -> Answer:
        """Look for what is told twice, or too late, or out of bounds."""
        if request.action in (SEND, SEND_MANY):
            return self._send(request)
        handles = [entry["ReceiptHandle"] for entry in request.parameters["Entries"]]
        for place, entry in enumerate(request.parameters["Entries"]):
            if not (self.world.fault.refuses or place in self.world.fault.failing):
                self._settle(request.action, entry)
        answer = super().carry(request)
        failed = {int(entry["Id"]) for entry in answer.content.get("Failed", ())}
        self.world.answered |= {h for place, h in enumerate(handles) if place not in failed}
        return answer

    def _settle(self, action: str, entry: Mapping[str, Any]) -> None:
        world, handle = self.world, entry["ReceiptHandle"]
        uses = world.settled.setdefault(handle, set())
        uses.add(action)
        if len(uses) > 1:
            world.wrong.append(f"{handle} is settled twice: {uses}")
        if handle in world.answered:
            world.wrong.append(f"{handle} is settled again")
        if world.clock() >= world.leased_until[handle]:
            world.wrong.append(f"{handle} is settled under a lost lease")
        if not 0 <= entry.get("VisibilityTimeout", 0) <= LONGEST_VISIBILITY:
            world.wrong.append(f"a visibility of {entry['VisibilityTimeout']} s")

    def _send(self, request: Request[Any]) -> Answer:
        given = request.parameters
        entries = [dict(entry) for entry in given.get("Entries", [given])]
        origins = [
            self._copy(place, entry, given["QueueUrl"], request.action == SEND_MANY)
            for place, entry in enumerate(entries)
        ]
        changed = entries[0] if request.action == SEND else {**given, "Entries": entries}
        answer = super().carry(replace(request, parameters=changed))
        failed = {int(entry["Id"]) for entry in answer.content.get("Failed", ())}
        for place, origin in enumerate(origins):
            self.world.known_copies[origin] += place not in failed
        return answer

    def _copy(self, place: int, entry: dict[str, Any], url: str, is_of_many: bool) -> str:
        """Look at one copy. Returns which message it is of."""
        world, body = self.world, json.loads(entry["MessageBody"])
        origin: str = body["of"]
        if not 0 <= entry.get("DelaySeconds", 0) <= LONGEST_DELAY:
            world.wrong.append(f"a delay of {entry['DelaySeconds']} s")
        if world.known_copies[origin]:
            world.wrong.append(f"a second copy of {origin}")
        is_taken = not (
            world.fault.refuses
            or world.fault.refuses_copies
            or (is_of_many and place in world.fault.failing)
        )
        if is_taken and url == world.url:
            entry["MessageBody"] = world.named(body)  # It is a message of its own.
        world.copies[origin] += is_taken
        return origin


@dataclass(eq=False)
class Taken:
    """A message that the worker has taken."""

    tag: str
    headers: dict[str, Any]
    happened: Happened | None = None
    policy: Policy | None = None
    is_suspect: bool = False


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
        self.world = World()
        self.clock = self.world.clock
        #: What a task of ours has, by its tag, and what has succeeded.
        self.held: dict[str, Taken] = {}
        self.succeeded: set[str] = set()
        self.inbox = Inbox()
        self.deliveries = Deliveries(
            self.world.fake.options(
                driver=self._driver,
                visibility_timeout=VISIBILITY,
                max_attempts=MAX_ATTEMPTS,
                max_receive_count=MAX_RECEIVES,
                receive_pause_max=0,
                longest_wait=2 * VISIBILITY,
            ),
            message_of=self.held.get,
            observers=Observer(),
            silence=lambda: 0.0,
            clock=self.clock,
        )
        self.leases = self.deliveries.leases
        self.deliveries.resize(CONCURRENCY)
        with pytest.MonkeyPatch.context() as patch:
            # Its threads are there, and none runs.
            patch.setattr(threading.Thread, "start", lambda thread: None)
            self.deliveries.receive("jobs", self.inbox)
        (self.receiver,) = self.deliveries.receivers
        engine = self.deliveries.engine
        assert engine
        self.settler, self.heartbeat = engine.settler, engine.heartbeat

    def _driver(self, _: Options, *, tries: int, **how: Any) -> Driver:
        # Those who try again by themselves extend.
        return Extending(self.world) if tries == 1 else Telling(self.world)

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
            self.world.put(body)

    @rule(seconds=st.sampled_from([0.2, 1.5, 6, 11, 11, VISIBILITY + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), seconds=st.sampled_from([-2.5, -0.5, 0.01]))
    def a_lease_is_about_to_end(self, data: st.DataObject, seconds: float) -> None:
        tag = data.draw(st.sampled_from(sorted(self.held)))
        for lease in self.leases.all():
            if lease.delivery.tag == tag:
                ends_at = self.world.leased_until[lease.delivery.receipt_handle]
                self.clock.advance(max(0, ends_at + seconds - self.clock()))

    @rule(most=st.integers(1, 3))
    def another_worker_receives(self, most: int) -> None:
        self.world.suffer(GOOD)
        self.world.queue.receive(most, 0)

    # The worker's threads -----------------------------------------------------------------------

    @rule(fault=faults, is_delivered=st.sampled_from([True, True, True, False]))
    def poll(self, fault: Fault, is_delivered: bool) -> None:
        self.world.suffer(fault, before=0.5)
        if slots := self.leases.try_reserve():
            self.receiver.poll(slots, 0)
        if is_delivered:
            self._deliver()

    def _deliver(self) -> None:
        for _, payload in self.inbox.take_all():
            tag = payload["properties"]["delivery_tag"]
            if self.deliveries.holds(tag):
                self.held[tag] = Taken(tag, payload["headers"])

    @rule(fault=faults)
    def beat(self, fault: Fault) -> None:
        self.world.suffer(fault, before=0.5)
        self.heartbeat.beat()

    @rule(fault=faults)
    def settle(self, fault: Fault) -> None:
        self.world.suffer(fault)
        self.settler.report_next()

    # The tasks ----------------------------------------------------------------------------------

    @precondition(lambda self: self.held)
    @rule(data=st.data(), limit=st.sampled_from([None, 5, 60]))
    def a_task_starts(self, data: st.DataObject, limit: float | None) -> None:
        self.deliveries.started(data.draw(st.sampled_from(sorted(self.held))), limit)

    @precondition(lambda self: self.held)
    @rule(
        happened=st.lists(happenings, min_size=1, max_size=BATCH),
        twice=st.booleans(),
        fault=st.none() | faults | faults,
    )
    def tasks_end(self, happened: list[Happened], twice: bool, fault: Fault | None) -> None:
        for taken, what in zip(list(self.held.values()), happened, strict=False):
            self._end(taken, what)
            if twice:
                # The pool's timeout and its death may each say something of one delivery.
                self.deliveries.end(taken.tag, outcomes.Failed("E", "once more"))
        if fault is not None:
            self.settle(fault)

    def _end(self, taken: Taken, happened: Happened) -> None:
        if happened == outcomes.Succeeded():
            self.succeeded |= self._names(taken.tag)
        taken.happened = happened
        self.deliveries.end_message(taken.tag, outcomes.Succeeded())
        del self.held[taken.tag]

    def _names(self, tag: str) -> set[str]:
        """The name of a delivery's message; none, where its lease was lost: the redelivery
        counts."""
        leases = self.leases.all()
        return {name_in(lease.delivery.body) for lease in leases if lease.delivery.tag == tag}

    # What holds ---------------------------------------------------------------------------------

    @invariant()
    def sqs_is_told_nothing_wrong(self) -> None:
        assert self.world.wrong == []

    @invariant()
    def no_lease_is_believed_to_last_longer_than_it_does(self) -> None:
        for lease in self.leases.all():
            assert lease.expires_at <= self.world.leased_until[lease.delivery.receipt_handle]

    @invariant()
    def nothing_is_deleted_that_was_not_done_or_copied(self) -> None:
        there = self.world.present() | self.world.moved()
        gone = set(self.world.sent) - there
        assert gone <= self.succeeded | set(+self.world.copies)

    @invariant()
    def no_more_is_held_than_there_is_room_for(self) -> None:
        assert len(self.leases) <= CONCURRENCY + MOST_AHEAD
        assert 0 <= self.leases.unreported <= MOST_UNREPORTED + CONCURRENCY + MOST_AHEAD

    def teardown(self) -> None:
        try:
            self._all_ends()
        finally:
            self.inbox.close()

    def _all_ends(self) -> None:
        """Nothing fails any more, and every task succeeds."""
        self.world.suffer(GOOD)
        for _ in range(200):
            if not self._unfinished() and self.leases.is_empty and self.deliveries.flush(0):
                break
            self._deliver()
            for taken in list(self.held.values()):
                self._end(taken, outcomes.Succeeded())
            self.heartbeat.beat()
            while self.settler.report_next():
                pass
            if slots := self.leases.try_reserve():
                self.receiver.poll(slots, 0)
            self.clock.advance(max(RETRY_PAUSE, VISIBILITY / 3))
        self.sqs_is_told_nothing_wrong()
        self.nothing_is_deleted_that_was_not_done_or_copied()
        assert self._unfinished() == []
        # Nothing is held, and nothing waits to be told.
        assert self.leases.is_empty
        assert self.deliveries.flush(0)
        assert self.leases.unreported == 0

    def _unfinished(self) -> list[str]:
        # Those to come in the year 2999 are sent on and on.
        return [body for body in self.world.fake.bodies(self.world.url) if '"eta"' not in body]


Settling.TestCase.settings = settings(
    derandomize=True,
    database=None,
    max_examples=120,
    stateful_step_count=40,
    report_multiple_bugs=False,
)
TestSettling = Settling.TestCase
