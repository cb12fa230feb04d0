"""What several unit tests build."""

import gc
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from math import inf
from time import monotonic
from typing import Any

import pytest
from hypothesis import register_random

from sqs_broker.control.plane import Plane
from sqs_broker.control.planes import plane_for
from sqs_broker.machine import threads
from sqs_broker.options import ControlOptions, Options
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.rules.provenance import Provenance, Source
from sqs_broker.rules.randomness import RANDOM
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.receiver import delivery_of
from sqs_broker.testing import Clock, FakeSqs

# So that an example of a property test has the same pauses if it is repeated.
register_random(RANDOM)

_numbers = count(1)

MakeDelivery = Callable[..., Delivery]
MakeLease = Callable[..., Lease]
Receive = Callable[..., Lease]

#: Seconds of a lease.
VISIBILITY_TIMEOUT = 60

SENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

#: Of a message in plain JSON.
HEADERS = {
    "task": "registerUser",
    "id": "id-1",
    "delivery": Provenance("id-1", True, Source.JSON, 1, SENT),
}


def celery_message(task: str, body: Any = ((), {}, {}), **headers: Any) -> str:
    """The body of a message as Celery sends it."""
    return json.dumps(
        {
            "body": json.dumps(body),
            "headers": {"task": task, "id": "id-1"} | headers,
            "properties": {},
            "content-type": "application/json",
            "content-encoding": "utf-8",
        }
    )


@pytest.fixture(scope="session")
def make_delivery() -> MakeDelivery:
    """Makes deliveries, each with a tag and ids of its own. Arguments replace fields."""
    numbers = count(1)

    def make(**changes: Any) -> Delivery:
        number = next(numbers)
        fields: dict[str, Any] = {
            "tag": f"tag-{number}",
            "queue": "jobs",
            "message_id": f"sqs-{number}",
            "receipt_handle": f"receipt-{number}",
            "body": "{}",
            "attributes": {},
            "count": 1,
            "enqueued_at": SENT,
            "received_at": monotonic(),
        }
        return Delivery(**fields | changes)

    return make


def after_a_short_task(leases: Leases) -> Leases:
    """The same leases, whose pool has run a short task: so they hold ahead all that they may."""
    delivery = Delivery("0", "jobs", "sqs-0", "receipt-0", "{}", {}, 1, SENT, monotonic())
    leases.fill(0, [delivery])
    leases.started(delivery.tag, 30)
    leases.take(delivery.tag)
    return leases


@pytest.fixture(scope="session")
def make_lease(make_delivery: MakeDelivery) -> MakeLease:
    """Makes a lease on a new delivery, as it is right after the receive."""

    def make(**changes: Any) -> Lease:
        delivery = make_delivery(**changes)
        return Lease(delivery, delivery.received_at + VISIBILITY_TIMEOUT)

    return make


@pytest.fixture
def no_collection() -> Iterator[None]:
    """For tests of exceptions that a signal raises.

    A collection of this large process can take longer than the limits of such a test. The signal
    is then handled in a callback of the collection, where Python ignores what is raised, with a
    warning.
    """
    gc.disable()
    yield
    gc.enable()


GivePlane = Callable[..., ControlOptions]


@pytest.fixture
def give_plane() -> Iterator[GivePlane]:
    """Gives this process a control plane with a store, or a writer, of the test's; its address."""
    made: list[Plane] = []

    def give(store: Any = None, writer: Any = None, **options: Any) -> ControlOptions:
        # An address of its own for each test, for planes are those of the whole process.
        database = f"test_{next(_numbers)}"
        address = ControlOptions("mongodb://127.0.0.1:1/", database, **options)
        plane = plane_for(address)
        plane.store.close()
        plane.store, plane.writer = store or plane.store, writer or plane.writer
        made.append(plane)
        return address

    yield give
    for plane in made:
        plane.close()


class Machine:
    """This machine, whose limit of threads is reached for those of some names."""

    def __init__(self) -> None:
        self._full: dict[str, float] = {}

    def has_no_room_for(self, prefix: str, times: float = inf) -> None:
        """No thread whose name begins so can start, so many times or until `has_room`."""
        self._full[prefix] = times

    def has_room(self) -> None:
        """Each thread can start again."""
        self._full.clear()

    def give(self, name: str) -> None:
        """Give room to a thread. Raises as Python does where there is none."""
        for prefix, times in self._full.items():
            if name.startswith(prefix) and times > 0:
                self._full[prefix] -= 1
                raise RuntimeError("can't start new thread")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A limit of threads that a test can reach; what is insisted on is given up soon."""
    made, start = Machine(), threading.Thread.start

    def start_if_there_is_room(thread: threading.Thread) -> None:
        made.give(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_room)
    with threads.patience(0.05):
        yield made
    made.has_room()


@pytest.fixture
def clock() -> Clock:
    """The time, which stands still until a test lets it pass."""
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    """SQS, with two queues that have dead letters."""
    made = FakeSqs(clock)
    for name in ("jobs", "mail"):
        made.create_queue(name, dead_letters=f"{name}-dlq", visibility_timeout=VISIBILITY_TIMEOUT)
    return made


@pytest.fixture
def options(fake: FakeSqs) -> Options:
    """What leads to this SQS."""
    return fake.options(visibility_timeout=VISIBILITY_TIMEOUT)


@pytest.fixture
def receive(fake: FakeSqs, options: Options, clock: Clock) -> Receive:
    """Receives a new message. Gives the lease; its call is not counted."""

    def receive_one(body: str = "{}", *, queue: str = "jobs", **facts: Any) -> Lease:
        url = options.queue(queue).url
        fake.put(url, body, **facts)
        asked_at = clock()
        (message,) = Queue(url, fake).receive(1, 0)
        fake.forget_calls()
        delivery = delivery_of(message, queue, clock(), clock() - asked_at)
        return Lease(delivery, asked_at + VISIBILITY_TIMEOUT)

    return receive_one
