"""Nobody waits for a result here, so what needs one says so at the call."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chord

from sqs_broker import install


@pytest.fixture
def celery_app() -> Celery:
    """An app on this broker, with a server that nobody reaches."""
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.broker_transport_options = {
        "region": "us-east-1",
        "predefined_queues": {"jobs": {"url": "http://127.0.0.1:1/jobs"}},
    }
    return app


@pytest.mark.parametrize(
    "call",
    [
        lambda app, task: chord([task.si(), task.si()], task.si(), app=app)(),
        lambda app, task: app.AsyncResult("id-1").get(),
    ],
    ids=["chord", "get"],
)
def test_what_needs_a_result_backend_raises(
    celery_app: Celery, call: Callable[[Celery, Any], Any]
) -> None:
    @celery_app.task(shared=False, name="job")
    def task() -> None:
        """Does nothing."""

    with pytest.raises(NotImplementedError, match="result backend"):
        call(celery_app, task)
