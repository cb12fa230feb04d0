"""A dead letter that never became a task is seen as a task that failed."""

from typing import Any

import pytest
from celery.events.state import State

from sqs_broker.rules.facts import Facts, facts_of
from sqs_broker.rules.outcomes import DeadLetter, Done, Outcome, Refused, Retry
from sqs_broker.worker.refusals import NO_TASK, Refusals
from tests.unit.conftest import HEADERS, MakeDelivery

LETTER = DeadLetter("the body is not JSON", "Undecodable")


class Dispatcher:
    """Keeps what Flower would be told."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.state = State()
        self.count = 0

    def send(self, type_: str, **fields: Any) -> None:
        self.count += 1
        event = {"type": type_, "hostname": "w1", "timestamp": self.count, "local_received": 0}
        self.state.event(event | {"clock": self.count, "utcoffset": 0, "pid": 1} | fields)


def told(message: Facts, outcome: Outcome, dispatcher: Any) -> None:
    def soon(call: Any, *args: Any) -> None:
        call(*args)

    Refusals(lambda: dispatcher, soon).ended(message, Refused("no"), outcome)


@pytest.mark.parametrize("headers", [None, HEADERS])
def test_a_dead_letter_that_no_task_ran_for_is_a_failed_task(
    make_delivery: MakeDelivery, headers: Any
) -> None:
    dispatcher, message = Dispatcher(), facts_of(make_delivery(), headers)
    told(message, LETTER, dispatcher)
    task = dispatcher.state.tasks[message.id]
    assert (task.state, task.name) == ("FAILURE", headers["task"] if headers else NO_TASK)
    assert task.exception == "Undecodable('the body is not JSON')"


@pytest.mark.parametrize(
    ("outcome", "started_at"), [(LETTER, 7.0), (Done(), None), (Retry(1, "KeyError"), None)]
)
def test_a_task_that_ran_is_told_by_its_request_alone(
    make_delivery: MakeDelivery, outcome: Outcome, started_at: float | None
) -> None:
    dispatcher = Dispatcher()
    told(facts_of(make_delivery(), HEADERS, started_at), outcome, dispatcher)
    assert dispatcher.count == 0


@pytest.mark.parametrize("dispatcher", [None, Dispatcher(enabled=False)])
def test_without_events_nothing_is_sent(make_delivery: MakeDelivery, dispatcher: Any) -> None:
    told(facts_of(make_delivery(), HEADERS), LETTER, dispatcher)
    assert dispatcher is None or dispatcher.count == 0
