"""sqs_broker.testing.handle: an author of tasks sees what becomes of a message, without a queue."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, group, signature
from celery.canvas import Signature, chunks
from celery.contrib.testing.app import setup_default_app
from kombu import Exchange, Queue
from kombu.utils.json import dumps

from app.messages import Increment
from sqs_broker import install
from sqs_broker.rules.outcomes import (
    DeadLetter,
    Done,
    NotDue,
    Postponed,
    Released,
    Retry,
    Succeeded,
    UnknownTask,
)
from sqs_broker.testing import Clock, FakeSqs, handle
from sqs_broker.testing.handling import Handled


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


def test_a_task_that_misuses_retry_never_succeeds_with_the_old_arguments(
    celery_app: Celery,
) -> None:
    @celery_app.task(shared=False, name="again", model=Increment, bind=True)
    def again(self: Any, message: Increment, provenance: Any) -> None:
        if not self.request.retries:
            raise self.retry(kwargs={"input": 3})

    outcome = handle(celery_app, message(2) | {"action": "again"}).outcome
    assert isinstance(outcome, DeadLetter)
    assert "a retry delivers the same message again" in outcome.reason


@pytest.mark.parametrize("body", ["nonsense", message("two")])
def test_what_can_never_run_is_dead_lettered(celery_app: Celery, body: Any) -> None:
    assert isinstance(handle(celery_app, body).outcome, DeadLetter)


def test_a_message_of_an_unknown_task_is_released_at_first(celery_app: Celery) -> None:
    handled = handle(celery_app, {"action": "nobody", "data": {}})
    assert handled.happened == UnknownTask("nobody")
    assert handled.outcome == Released(5)


def envelope(eta: str) -> dict[str, Any]:
    return {
        "body": '[[], {"input": 2}, {}]',
        "headers": {"task": "increment", "id": "id-1", "eta": eta},
        "properties": {},
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }


def in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


@pytest.mark.parametrize("days", [1, 14])
def test_a_message_that_is_not_due_is_sent_on(celery_app: Celery, days: float) -> None:
    handled = handle(celery_app, envelope(in_days(days)))
    assert isinstance(handled.happened, NotDue)
    assert isinstance(handled.outcome, Postponed)


@pytest.mark.parametrize(
    "eta",
    [in_days(14.1), "2999-01-01", "9999-12-31T23:59:59-23:59"],
    ids=["soon after", "later", "at the end of time"],
)
def test_a_message_that_would_be_sent_on_for_ever_is_dead_lettered(
    celery_app: Celery, eta: str
) -> None:
    outcome = handle(celery_app, envelope(eta)).outcome
    assert isinstance(outcome, DeadLetter)
    assert outcome.reason == (
        "the message is due in more than 1209600 s, which the option eta_max does not allow"
    )


def test_the_option_says_how_late_a_message_may_be_due(celery_app: Celery) -> None:
    celery_app.conf.broker_transport_options["eta_max"] = 30 * 86_400
    assert isinstance(handle(celery_app, envelope(in_days(29))).outcome, Postponed)


@pytest.fixture
def fake() -> FakeSqs:
    """A server with one queue."""
    fake = FakeSqs(Clock())
    fake.create_queue("jobs", dead_letters="jobs-dlq")
    return fake


def with_callback(fake: FakeSqs, callback: Signature, **options: Any) -> Handled:
    """Handle a Celery message of a task with this callback."""
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.update(
        broker_transport_options=fake.transport_options(**options),
        task_queues=[Queue("jobs", Exchange(""), routing_key="jobs")],
        task_default_queue="jobs",
        task_default_exchange="",
        task_default_routing_key="jobs",
        task_ignore_result=True,
    )

    @app.task(shared=False, name="job")
    def job(*args: Any) -> None: ...

    app.finalize()
    envelope = {
        "body": dumps([[], {}, {"callbacks": [callback]}]),
        "headers": {"task": "job", "id": "id-1"},
        "properties": {},
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }
    # Celery calls the tasks of a group on the current app.
    with setup_default_app(app):
        app.set_current()
        return handle(app, envelope)


#: Sends a message for each character, if Celery calls it.
BOMB = signature(
    "celery.chunks", kwargs={"task": signature("job"), "it": "a" * 500, "n": 1}, immutable=True
)


@pytest.mark.parametrize(
    ("callback", "most"),
    [
        (group([signature("job")] * 7), 8),
        (group([signature("job", options={"link": [signature("job")]})] * 7), 15),
        (group([group([signature("job")] * 3)] * 3), 13),
        (signature("celery.group", args=([signature("job")] * 7, [], "g", [])), 8),
        (BOMB, 502),
        (chunks(signature("job"), [(1,)] * 10, 2), 7),
    ],
)
def test_callbacks_lead_to_no_more_messages_than_most_callbacks(
    fake: FakeSqs, callback: Signature, most: int
) -> None:
    url = fake.options().queue("jobs").url
    refused = with_callback(fake, callback, most_callbacks=most - 1)
    assert isinstance(refused.outcome, DeadLetter)
    assert fake.bodies(url) == []
    assert with_callback(fake, callback, most_callbacks=most).outcome == Done()
    assert 0 < len(fake.bodies(url)) <= most


def test_a_callback_of_celerys_own_is_refused_if_the_option_does_not_name_it(
    fake: FakeSqs,
) -> None:
    refused = with_callback(fake, BOMB, built_in_tasks=["celery.group"])
    assert refused.outcome == DeadLetter(
        "no message may call celery.chunks here (built_in_tasks)", "Reject"
    )
