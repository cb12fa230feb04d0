"""One message harms no other: whatever stands beside good messages in a job, each of these ends as
it does without.
"""

import json
import pickle
from collections.abc import Callable, Iterator
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, current_app
from celery.worker import state, strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Connection

from app.messages import Registration
from sqs_broker.options import Options
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.rules.outcomes import Done, Outcome
from sqs_broker.sqs.copies import Copies
from sqs_broker.worker.batches import Batches
from sqs_broker.worker.channel import Channel, Message
from sqs_broker.worker.consumer import Consumer
from tests.bodies import AWKWARD, FIELDS, bodies, json_values
from tests.unit.conftest import MakeDelivery

OPTIONS = {
    "region": "us-east-1",
    "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
    "decode_json": "app.messages:decode_json",
    # The first failure is the last: what harms a message is seen at once.
    "max_attempts": 1,
}


class Settler:
    """Keeps what it is handed, by SQS's id of the message."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.copies = Copies(Options.read(OPTIONS), None)  # type: ignore[arg-type]

    def settle(self, lease: Lease, outcome: Outcome, *_: Any) -> None:
        self.outcomes[lease.delivery.message_id] = outcome


class Pool:
    """One process, as far as it matters: all that goes there and comes back is pickled."""

    num_processes = 1

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def apply_async(
        self, target: Any, args: Any, accept_callback: Any, callback: Any, error_callback: Any,
        **_: Any,
    ) -> None:  # fmt: skip
        self.sizes.append(len(args[2]) if len(args) == 3 else 1)
        target, args = pickle.loads(pickle.dumps((target, args)))
        accept_callback(1, monotonic())
        try:
            said = pickle.dumps(target(*args))
        except Exception:
            said, callback = pickle.dumps(ExceptionInfo()), error_callback
        callback(pickle.loads(said))


class Worker:
    """The way of a body from its receive to its outcome: all of ours, and Celery's own strategy and
    trace. It has neither connection nor process.
    """

    def __init__(self, celery_app: Celery) -> None:
        connection = Connection(
            "sqs://", transport="sqs_broker:Transport", transport_options=OPTIONS
        )
        self.channel: Channel = connection.channel()
        self.settler, self.pool, self.soon = Settler(), Pool(), list[Callable[[], None]]()
        deliveries = self.channel.deliveries
        deliveries._settler = self.settler  # type: ignore[assignment]
        deliveries._receivers["jobs"] = object()  # type: ignore[assignment]
        deliveries.pool_has_processes = True
        batches = Batches(
            self.pool,
            alone=self._run,
            process=self._run,
            semaphore=None,
            soon=lambda call, *args: self.soon.append(lambda: call(*args)),
        )
        consumer = object.__new__(Consumer)
        consumer.__dict__ |= {
            "app": celery_app, "connection": None, "connection_errors": (), "restart_count": 0,
            "on_task_message": set(), "_maximum_prefetch_restored": True, "hostname": "w@h",
            "timer": SimpleNamespace(call_at=None), "disable_rate_limits": True, "hub": None,
            "task_buckets": {}, "pool": self.pool, "event_dispatcher": None,
            "on_task_request": batches.take, "controller": SimpleNamespace(state=state),
        }  # fmt: skip
        consumer.strategies = {
            name: strategy.default(task, celery_app, consumer)
            for name, task in celery_app.tasks.items()
        }
        self._take = consumer.create_task_handler()

    def receive(self, received: list[Delivery]) -> None:
        """Let deliveries in that came together, and turn the loop until all is done."""
        self.channel.deliveries._leases.fill(0, received)
        for delivery in received:
            if payload := self.channel.deliveries._arrived(delivery):
                message = Message(payload, channel=self.channel)
                self.channel.qos.append(message, delivery.tag)
                self._take(message)
        while self.soon:
            self.soon.pop(0)()

    def _run(self, request: Any) -> None:
        request.execute_using_pool(self.pool)


@pytest.fixture(scope="module")
def celery_app() -> Iterator[Celery]:
    """An app whose registrations share jobs, and do nothing."""
    made = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    made.conf.update(
        broker_transport_options=OPTIONS,
        task_acks_late=True,
        task_acks_on_failure=False,
        task_ignore_result=True,
        task_time_limit=30,
        task_soft_time_limit=25,
    )

    def register_many(pairs: Any) -> list[str]:
        return [registration.payload_hash() for registration, _ in pairs]

    @made.task(shared=False, name="registerUser", model=Registration, many=register_many)
    def register_user(*_: Any) -> None: ...

    made.finalize()
    before = current_app._get_current_object()
    # In a pool's process it is.
    made.set_current()
    yield made
    before.set_current()


@pytest.fixture(autouse=True)
def _celery_forgets() -> Iterator[None]:
    """Celery keeps its requests in a module."""
    yield
    state.requests.clear()
    state.reserved_requests.clear()
    state.active_requests.clear()


def plain(user_id: str, **more: Any) -> str:
    """A registration in plain JSON, with what its model does not know."""
    data = FIELDS | {"user_id": user_id} | more
    return json.dumps({"id": user_id, "action": "registerUser", "data": data})


#: Whatever a program may have put into a registration, and whatever else may be in a queue.
notes = st.dictionaries(
    st.text(max_size=8), st.sampled_from(AWKWARD) | json_values, min_size=1, max_size=3
).map(lambda note: plain("odd", **{"note": note, "notes": [note], **note}))


@settings(derandomize=True, database=None, deadline=None, max_examples=500)
@given(beside=st.lists(notes | bodies, min_size=1, max_size=4), at=st.integers(0, 6))
def test_whatever_stands_beside_them_good_messages_end_as_they_do_without(
    make_delivery: MakeDelivery, celery_app: Celery, beside: list[str], at: int
) -> None:
    worker = Worker(celery_app)
    good = [make_delivery(body=plain(f"u{n}")) for n in range(6)]
    odd = [make_delivery(body=body) for body in beside]

    worker.receive([*good[:at], *odd, *good[at:]])

    assert max(worker.pool.sizes) >= len(good)
    outcomes = worker.settler.outcomes
    assert [outcomes.get(delivery.message_id) for delivery in good] == [Done()] * len(good)
    # Each of the others has one end too.
    assert outcomes.keys() == {delivery.message_id for delivery in good + odd}


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(note=json_values | st.sampled_from(AWKWARD))
def test_what_a_registration_has_beyond_its_fields_is_no_matter(
    make_delivery: MakeDelivery, celery_app: Celery, note: Any
) -> None:
    worker = Worker(celery_app)
    noted = make_delivery(body=plain("noted", note=note, deeper={"note": [note]}))

    worker.receive([make_delivery(body=plain("u1")), noted])

    assert worker.settler.outcomes[noted.message_id] == Done()
