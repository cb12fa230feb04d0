"""What stops a worker at its start: numbers that contradict each other, told with both names."""

from typing import Any

import pytest
from celery import Celery

from app.startup import check_numbers
from sqs_broker.errors import ConfigurationError


def celery_app(**settings: Any) -> Celery:
    """An app as celeryconfig.py makes it, but for the given settings."""
    app = Celery("tests", task_cls="sqs_broker.worker.task:Task", set_as_current=False)
    options = {
        "region": "us-east-1",
        "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
        "visibility_timeout": 60,
    }
    app.conf.task_time_limit = 30
    app.conf.task_soft_time_limit = 25
    for name, value in settings.items():
        if name in ("task_time_limit", "task_soft_time_limit"):
            app.conf[name] = value
        else:
            options[name] = value
    app.conf.broker_transport_options = options
    return app


def test_numbers_that_fit_are_accepted() -> None:
    check_numbers(celery_app())


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"max_attempts": 8}, ("max_attempts (8)", "max_receive_count (10)")),
        ({"max_receive_count": 5}, ("max_attempts (3)", "max_receive_count (5)")),
        ({"visibility_timeout": 30}, ("visibility_timeout (30 s)", "task_time_limit (30 s)")),
        ({"task_time_limit": 60}, ("visibility_timeout (60 s)", "task_time_limit (60 s)")),
        ({"task_time_limit": None}, ("visibility_timeout", "task_time_limit")),
        (
            {"task_soft_time_limit": 30},
            ("TASK_SOFT_TIME_LIMIT (30 s)", "TASK_TIME_LIMIT (30 s)"),
        ),
        (
            {"task_soft_time_limit": 31},
            ("TASK_SOFT_TIME_LIMIT (31 s)", "TASK_TIME_LIMIT (30 s)"),
        ),
    ],
)
def test_a_contradiction_stops_the_worker_with_both_names(
    settings: dict[str, Any], names: tuple[str, str]
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_numbers(celery_app(**settings))
    assert all(name in raised.value.message for name in names)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(("limit", "fits"), [(26, True), (59, True), (60, False)])
def test_the_limit_of_a_single_task_counts_too(limit: int, fits: bool) -> None:
    app = celery_app()

    @app.task(shared=False, name="job", time_limit=limit)
    def job() -> None: ...

    if fits:
        check_numbers(app)
    else:
        with pytest.raises(ConfigurationError, match="visibility_timeout"):
            check_numbers(app)


def test_the_limit_of_a_single_task_does_not_stand_for_those_that_have_none() -> None:
    app = celery_app(task_time_limit=None)

    @app.task(shared=False, name="job", time_limit=30)
    def job() -> None: ...

    with pytest.raises(ConfigurationError, match="task_time_limit is not set"):
        check_numbers(app)


def test_a_task_with_its_own_limits_needs_the_soft_one_first() -> None:
    app = celery_app()

    # The hard limit of the task comes before the soft one of all tasks.
    @app.task(shared=False, name="job", time_limit=10)
    def job() -> None: ...

    with pytest.raises(ConfigurationError, match="job"):
        check_numbers(app)


def test_without_a_soft_limit_there_is_nothing_to_compare() -> None:
    check_numbers(celery_app(task_soft_time_limit=None))
