"""Flight: some calls at a time, each begun as soon as another one has ended."""

import threading
from typing import Any

import pytest

from sqs_broker.options import Options
from sqs_broker.sqs.errors import Errors
from sqs_broker.sqs.flight import Flight
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing
from sqs_broker.sqs.sender import Sender
from sqs_broker.testing import FakeSqs
from tests.services import wait_until

SEND = "SendMessageBatch"
LIMIT = 10_000

#: Seconds for what takes milliseconds.
PATIENCE = 30


class Held:
    """Holds the first call until it is released."""

    def __init__(self, fake: FakeSqs) -> None:
        self._released = threading.Event()
        fake.on_call = self._hold

    def release(self) -> None:
        self._released.set()

    def _hold(self, call: Any) -> None:
        assert self._released.wait(PATIENCE)


@pytest.fixture
def options(fake: FakeSqs) -> Options:
    return Options.read(fake.transport_options())


@pytest.fixture
def sender(options: Options) -> Sender:
    return Sender(options)


@pytest.fixture
def to(options: Options, sender: Sender) -> Queue:
    return Queue(options.queue("jobs").url, sender.driver)


@pytest.fixture
def held(fake: FakeSqs) -> Held:
    return Held(fake)


def give(flight: Flight, to: Queue, *bodies: str) -> list[Errors]:
    """Give messages, each in a call of its own. What is told of them is added to the result."""
    ends: list[Errors] = []

    def on_end(errors: Errors, may_have_been_sent: bool) -> None:
        ends.append(errors)

    for body in bodies:
        flight.send(to, [Outgoing(body)], LIMIT, on_end)
    return ends


def sent(fake: FakeSqs) -> list[str]:
    return [entry["MessageBody"] for entry in fake.entries(SEND)]


def test_a_call_that_waits_begins_without_its_caller_once_another_one_has_ended(
    fake: FakeSqs, sender: Sender, to: Queue, held: Held
) -> None:
    with Flight(sender, calls=1) as flight:
        ends = give(flight, to, "a", "b")
        # The caller was not stopped, although a call is open. It now makes further messages.
        held.release()
        wait_until(lambda: sent(fake) == ["a", "b"], PATIENCE, "the second call")
    assert ends == [[None], [None]]


def test_no_more_calls_wait_than_may_be_open(
    fake: FakeSqs, sender: Sender, to: Queue, held: Held
) -> None:
    with Flight(sender, calls=1) as flight:
        give(flight, to, "a")
        wait_until(lambda: sent(fake) == ["a"], PATIENCE, "the first call")
        give(flight, to, "b")
        third = threading.Thread(target=give, args=(flight, to, "c"))
        third.start()
        third.join(0.05)
        assert third.is_alive()
        held.release()
        third.join(PATIENCE)
        assert not third.is_alive()
    assert sent(fake) == ["a", "b", "c"]


def test_of_a_block_that_raises_the_calls_that_wait_are_not_made(
    fake: FakeSqs, sender: Sender, to: Queue, held: Held
) -> None:
    flight = Flight(sender, calls=1)

    def interrupted() -> None:
        with flight:
            give(flight, to, "a", "b")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        interrupted()
    with flight:
        give(flight, to, "c")
        held.release()
    assert sent(fake) == ["a", "c"]


def test_what_a_call_raises_is_raised_where_it_was_begun(
    fake: FakeSqs, sender: Sender, to: Queue
) -> None:
    def refuse(call: Any) -> None:
        raise KeyboardInterrupt

    fake.on_call = refuse
    with pytest.raises(KeyboardInterrupt), Flight(sender) as flight:
        give(flight, to, "a")
