"""One message harms no other: whatever stands beside good messages in a job, each of these ends as
it does without.
"""

import json
import pickle
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, current_app
from celery.concurrency.base import BasePool
from celery.worker import state
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.asynchronous import set_event_loop

from app.messages import Registration
from sqs_broker import install
from sqs_broker.rules.outcomes import Done, Outcome
from sqs_broker.testing import Clock
from tests.bodies import AWKWARD, FIELDS, bodies, json_values
from tests.unit.in_memory import InMemoryWorker, Outcomes, new_sqs


class Pool(BasePool):
    """One process, as far as it matters: all that goes there and comes back is pickled."""

    num_processes = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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


@pytest.fixture(scope="module")
def worker() -> Iterator[InMemoryWorker]:
    """A worker of an app whose registrations share jobs, and do nothing."""
    clock, outcomes = Clock(), Outcomes()
    fake = new_sqs(clock)
    made = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    install(made)
    made.conf.update(
        broker_transport_options=fake.transport_options(
            decode_json="app.messages:decode_json",
            observers=[outcomes],
            # The first failure is the last: what harms a message is seen at once.
            max_attempts=1,
        ),
        task_default_queue="jobs",
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
    running = InMemoryWorker(made, fake, clock, outcomes, Pool)
    yield running
    running.close()
    set_event_loop(None)
    before.set_current()
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


def outcomes_of(worker: InMemoryWorker, bodies: list[str]) -> list[Outcome]:
    worker.pool.sizes.clear()
    return worker.receive(bodies)


@settings(derandomize=True, database=None, max_examples=150)
@given(beside=st.lists(notes | bodies, min_size=1, max_size=4), at=st.integers(0, 6))
def test_whatever_stands_beside_them_good_messages_end_as_they_do_without(
    worker: InMemoryWorker, beside: list[str], at: int
) -> None:
    good = [plain(f"u{n}") for n in range(6)]
    outcomes = outcomes_of(worker, [*good[:at], *beside, *good[at:]])
    assert max(worker.pool.sizes) > 1
    # Each of the others has one end too.
    del outcomes[at : at + len(beside)]
    assert outcomes == [Done()] * len(good)


@settings(derandomize=True, database=None, max_examples=60)
@given(note=json_values | st.sampled_from(AWKWARD))
def test_what_a_registration_has_beyond_its_fields_is_no_matter(
    worker: InMemoryWorker, note: Any
) -> None:
    noted = plain("noted", note=note, deeper={"note": [note]})
    assert outcomes_of(worker, [plain("u1"), noted]) == [Done()] * 2


def test_messages_that_come_together_share_a_job(worker: InMemoryWorker) -> None:
    assert outcomes_of(worker, [plain(f"u{n}") for n in range(6)]) == [Done()] * 6
    assert max(worker.pool.sizes) > 1
