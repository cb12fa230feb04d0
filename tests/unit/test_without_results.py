"""Without a result backend: what needs a result says so at the call, as docs/retries.md tells."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chord
from celery.exceptions import TimeoutError
from celery.result import allow_join_result

from sqs_broker import install
from sqs_broker.testing import FakeSqs


@pytest.fixture(autouse=True)
def _may_wait() -> Iterator[None]:
    # A pool that another test made forbids its process to wait for results, for good.
    with allow_join_result():
        yield


@pytest.fixture
def celery_app(fake: FakeSqs) -> Celery:
    """An app on this broker."""
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.update(broker_transport_options=fake.transport_options(), task_default_queue="jobs")
    return app


@pytest.mark.parametrize(
    "call",
    [
        lambda app, task: chord([task.si(), task.si()], task.si(), app=app)(),
        lambda app, task: app.AsyncResult("id-1").get(),
        lambda app, task: task.delay().get(),
    ],
    ids=["chord", "get by id", "get"],
)
def test_what_needs_a_result_backend_raises(
    celery_app: Celery, call: Callable[[Celery, Any], Any]
) -> None:
    @celery_app.task(shared=False, name="job")
    def task() -> None:
        """Does nothing."""

    with pytest.raises(NotImplementedError, match="result backend"):
        call(celery_app, task)


def test_a_call_whose_result_is_ignored_has_none_at_once(celery_app: Celery) -> None:
    celery_app.conf.task_ignore_result = True

    @celery_app.task(shared=False, name="job")
    def task() -> None:
        """Does nothing."""

    assert task.delay().get() is None
    with pytest.raises(NotImplementedError, match="result backend"):
        celery_app.AsyncResult("id-1").get()


def test_with_a_backend_too_an_ignored_result_is_never_there(celery_app: Celery) -> None:
    celery_app.conf.update(task_ignore_result=True, result_backend="cache+memory://")

    @celery_app.task(shared=False, name="job")
    def task() -> None:
        """Does nothing."""

    result = task.delay()
    assert result.get() is None
    with pytest.raises(TimeoutError):
        celery_app.AsyncResult(result.id).get(timeout=0.01, interval=0.01)
