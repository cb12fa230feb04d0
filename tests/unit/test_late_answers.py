"""Messages that arrive after the deadline of their receive call are released, and run once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import pytest

from devstack.waiting import wait_until
from sqs_broker.rules.lease import Delivery
from sqs_broker.sqs.errors import HANGING, OVERDUE, Unreached
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.receiver import Receiver
from sqs_broker.sqs.requests import Answer, Request
from sqs_broker.testing import Clock, FakeSqs, State
from tests.unit.conftest import VISIBILITY_TIMEOUT, after_a_short_task

DEADLINE = 5


@dataclass
class Slow:
    """A driver whose answers to receives arrive when the test says, and never in time."""

    fake: FakeSqs
    late: list[Callable[[], None]] = field(default_factory=list)

    def open(self) -> None:
        """Nothing."""

    def pause(self, seconds: float) -> None:
        self.fake.pause(seconds)

    def close(self) -> None:
        """Nothing."""

    def carry(self, request: Request[Any]) -> Answer:
        answer = self.fake.carry(request)
        if request.action == "ReceiveMessage":
            assert request.on_late is not None
            self.late.append(partial(request.on_late, request.read(answer)))
            raise Unreached(OVERDUE)
        return answer


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    made = FakeSqs(clock)
    made.create_queue("jobs", visibility_timeout=VISIBILITY_TIMEOUT)
    return made


@pytest.fixture
def url(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").url


@pytest.fixture
def slow(fake: FakeSqs) -> Slow:
    return Slow(fake)


@pytest.fixture
def come() -> list[Delivery]:
    return []


@pytest.fixture
def receiver(slow: Slow, clock: Clock, come: list[Delivery]) -> Receiver:
    leases = after_a_short_task(Leases(VISIBILITY_TIMEOUT))
    options = slow.fake.options(wait_time_seconds=0)
    return Receiver("jobs", options, slow, leases, come.extend, clock=clock, first_pause=0.001)


def test_what_arrives_after_the_deadline_is_visible_at_once_and_does_not_run(
    receiver: Receiver, slow: Slow, url: str, come: list[Delivery], clock: Clock
) -> None:
    slow.fake.put(url, "{}")
    assert receiver.poll(10, 0) == 0
    (message,) = slow.fake.messages(url)
    assert message.state is State.IN_FLIGHT
    clock.advance(VISIBILITY_TIMEOUT / 2)
    slow.late.pop()()
    (message,) = slow.fake.messages(url)
    assert message.state is State.VISIBLE
    assert come == []


def test_a_lease_that_may_be_over_is_left_alone_because_another_worker_may_have_it(
    receiver: Receiver, slow: Slow, url: str, clock: Clock
) -> None:
    slow.fake.put(url, "{}")
    receiver.poll(10, 0)
    clock.advance(VISIBILITY_TIMEOUT)
    slow.late.pop()()
    assert slow.fake.asked("ChangeMessageVisibilityBatch") == []


def test_late_messages_are_counted_in_the_log(
    receiver: Receiver, slow: Slow, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        slow.fake.put(url, "{}")
    receiver.poll(10, 0)
    slow.late.pop()()
    late = [r for r in caplog.records if getattr(r, "event", None) == "receive.late"]
    assert [vars(record)["count"] for record in late] == [3]


def test_a_receiver_whose_calls_all_hang_is_a_fault_until_one_succeeds(
    slow: Slow, clock: Clock
) -> None:
    fake = FakeSqs(clock, holds_polls=True)
    url = fake.create_queue("jobs", visibility_timeout=VISIBILITY_TIMEOUT)
    leases = after_a_short_task(Leases(VISIBILITY_TIMEOUT))
    receiver = Receiver(
        "jobs", fake.options(), fake, leases, lambda _: None, clock=clock, first_pause=0.001
    )
    fake.fail("ReceiveMessage", error=Unreached(HANGING), times=inf)
    receiver.start()
    wait_until(receiver.fault, DEADLINE, "a fault")
    assert receiver.fault() == "too many receive calls of jobs hang"
    fake.heal()
    fake.put(url, "{}")
    wait_until(lambda: receiver.fault() is None, DEADLINE, "a receiver that works")
    receiver.stop()
    fake.end_polls()
    receiver.join(DEADLINE)
