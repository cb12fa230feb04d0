"""sqs_broker.testing.handle: an author of tasks sees what becomes of a message, without a queue."""

from typing import Any

import pytest
from celery import Celery

from app.messages import Increment
from sqs_broker.rules.outcomes import DeadLetter, Done, NotDue, Postponed, Retry, Succeeded
from sqs_broker.testing import handle


@pytest.fixture
def celery_app() -> Celery:
    """An app whose task fails for odd numbers."""
    app = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    app.conf.update(
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
            "decode_json": "app.messages:decode_json",
        },
        task_acks_late=True,
        task_ignore_result=True,
    )

    @app.task(shared=False, name="increment", model=Increment)
    def increment(message: Increment, provenance: Any) -> None:
        if message.input % 2:
            raise KeyError

    return app


def message(number: object) -> dict[str, Any]:
    return {"id": "id-1", "action": "increment", "data": {"input": number}}


def test_a_message_that_succeeds_is_done(celery_app: Celery) -> None:
    handled = handle(celery_app, message(2))
    assert (handled.outcome, handled.happened) == (Done(), Succeeded())
    assert (handled.message.task, handled.message.id) == ("increment", "id-1")


def test_a_failure_is_retried_until_the_last_attempt(celery_app: Celery) -> None:
    assert isinstance(handle(celery_app, message(1), deliveries=2).outcome, Retry)
    last = handle(celery_app, message(1), deliveries=3).outcome
    assert isinstance(last, DeadLetter)
    assert last.error == "KeyError"


@pytest.mark.parametrize("body", ["nonsense", message("two"), {"action": "nobody", "data": {}}])
def test_what_can_never_run_is_dead_lettered(celery_app: Celery, body: Any) -> None:
    assert isinstance(handle(celery_app, body).outcome, DeadLetter)


def test_a_message_that_is_not_due_is_sent_on(celery_app: Celery) -> None:
    envelope = {
        "body": '[[], {"input": 2}, {}]',
        "headers": {"task": "increment", "id": "id-1", "eta": "2999-01-01T00:00:00+00:00"},
        "properties": {},
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }
    handled = handle(celery_app, envelope)
    assert isinstance(handled.happened, NotDue)
    assert isinstance(handled.outcome, Postponed)
