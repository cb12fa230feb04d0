"""run(): a message that was admitted runs here, by the same rules as in a worker."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject

from sqs_broker.rules.admission import Admitted, admit, arrive
from sqs_broker.rules.foreign import ForeignMessage
from sqs_broker.rules.outcomes import Failed, Happened, Refused, RetryAsked, Succeeded
from sqs_broker.worker.run import run
from tests.unit.conftest import MakeDelivery

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


class Permanent(Exception):
    """What the tests' task dead-letters."""


@pytest.fixture
def celery_app() -> Celery:
    app = Celery("tests", task_cls="sqs_broker.worker.task:Task", set_as_current=False)
    app.conf.update(
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
        },
        task_acks_late=True,
        task_ignore_result=True,
    )
    return app


Handle = Callable[..., Happened]


@pytest.fixture
def handle(celery_app: Celery, make_delivery: MakeDelivery) -> Handle:
    """Runs a message of a task with the given body."""

    def handle_it(body: Callable[[Any], Any], deliveries: int = 1, **options: Any) -> Happened:
        @celery_app.task(shared=False, bind=True, name="job", model=dict, **options)
        def job(self: Any, **_: Any) -> Any:
            return body(self)

        delivery = make_delivery(body=json.dumps({"name": MARKER}), count=deliveries)
        arrival = arrive(delivery, lambda data: ForeignMessage("job", data, "id-1"))
        admitted = admit(arrival, celery_app.tasks)
        assert isinstance(admitted, Admitted)
        return run(arrival, admitted)

    return handle_it


def raising(exc: BaseException) -> Callable[[Any], None]:
    def body(_: Any) -> None:
        raise exc

    return body


@pytest.mark.parametrize("result", [None, 7, KeyError("a result")])
def test_what_a_task_returns_is_its_success(handle: Handle, result: Any) -> None:
    assert handle(lambda _: result) == Succeeded()


def test_a_failure_asks_for_a_retry_with_the_class_of_its_error(handle: Handle) -> None:
    asked = handle(raising(KeyError(MARKER)))
    assert isinstance(asked, RetryAsked)
    assert asked.error == "KeyError"
    assert MARKER not in repr(asked)


def test_a_failure_in_the_last_attempt_is_a_failure(handle: Handle) -> None:
    failed = handle(raising(KeyError(MARKER)), deliveries=3)
    assert failed == Failed("KeyError", "the task failed in the last attempt with KeyError")


def test_a_permanent_error_is_refused_with_its_reason(handle: Handle) -> None:
    refused = handle(raising(Permanent("no such user")), dead_letter_on=(Permanent,))
    assert refused == Refused("no such user", "Permanent")


@pytest.mark.parametrize(
    ("word", "happened"),
    [
        (Ignore(), Succeeded()),
        (Reject("not ours"), Refused("not ours", "Reject")),
        (
            Reject("later", requeue=True),
            Failed("Reject", "the task rejected its message in the last attempt"),
        ),
    ],
    ids=repr,
)
def test_a_word_of_celery_means_what_it_means_in_a_worker(
    handle: Handle, word: Exception, happened: Happened
) -> None:
    assert handle(raising(word)) == happened


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()])
def test_what_ends_a_process_is_raised(handle: Handle, end: BaseException) -> None:
    with pytest.raises(type(end)):
        handle(raising(end))


def test_a_task_is_told_where_its_message_came_from(handle: Handle) -> None:
    seen: list[Any] = []
    handle(lambda self: seen.append(self.request.delivery), deliveries=2)
    (provenance,) = seen
    assert (provenance.message_id, provenance.deliveries) == ("id-1", 2)
