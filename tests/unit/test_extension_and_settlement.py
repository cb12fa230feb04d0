"""Heartbeat and settler meet: the extension of a lease does not undo the report of its end."""

import threading
from collections.abc import Iterator

import pytest

from sqs_broker.machine.inbox import Inbox
from sqs_broker.observers.observer import Observer
from sqs_broker.rules.outcomes import NotStarted
from sqs_broker.sqs.deliveries import Deliveries
from sqs_broker.testing import Call, FakeSqs
from tests.services import wait_until

#: Seconds that nothing here comes near to.
DEADLINE = 10

#: Seconds of a lease, which is extended after a third of them.
VISIBILITY_TIMEOUT = 3

#: Seconds in which a report that does not wait for the extension reaches SQS.
PATIENCE = 0.3

CHANGE = "ChangeMessageVisibilityBatch"

ENVELOPE = (
    '{"body": "[[], {}, {}]", "headers": {"task": "job", "id": "id-1"}, "properties": {}, '
    '"content-type": "application/json", "content-encoding": "utf-8"}'
)


@pytest.fixture
def fake() -> FakeSqs:
    made = FakeSqs(holds_polls=True)
    made.create_queue("jobs", visibility_timeout=VISIBILITY_TIMEOUT)
    return made


@pytest.fixture
def url(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").url


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    yield made
    made.close()


@pytest.fixture
def deliveries(fake: FakeSqs, inbox: Inbox) -> Iterator[Deliveries]:
    options = fake.options(visibility_timeout=VISIBILITY_TIMEOUT)
    made = Deliveries(
        options,
        message_of=lambda tag: None,
        silence=lambda: 0.0,
        observers=Observer(),
    )
    made.resize(1)
    made.receive("jobs", inbox)
    yield made
    fake.end_polls()
    made.close()


def test_a_message_that_ends_while_its_lease_is_extended_is_hidden_as_its_outcome_says(
    deliveries: Deliveries, fake: FakeSqs, url: str
) -> None:
    fake.put(url, ENVELOPE)
    wait_until(lambda: deliveries.leases.all(), DEADLINE, "a delivery")
    (lease,) = deliveries.leases.all()
    # Nothing else takes the message when it is visible.
    deliveries.leases.pause("test")
    on_its_way, is_first = threading.Event(), iter([True])

    def end_meanwhile(call: Call) -> None:
        if call.action == CHANGE and next(is_first, False):
            deliveries.end(lease.delivery.tag, NotStarted(release_after=1))
            on_its_way.wait(PATIENCE)

    fake.on_call = end_meanwhile
    engine = deliveries.engine
    assert engine is not None
    # The test itself beats, so that it knows when the extension is done.
    engine.heartbeat.stop(DEADLINE)

    def beat() -> bool:
        engine.heartbeat.beat()
        return not deliveries.leases.all()

    wait_until(beat, DEADLINE, "the end of the delivery")
    assert deliveries.flush(DEADLINE)
    (message,) = fake.messages(url)
    assert message.visible_in <= 1
