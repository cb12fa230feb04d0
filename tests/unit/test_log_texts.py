"""The log of a worker of any project has no text of an exception."""

import io
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject

from sqs_broker.machine.textless import textless
from sqs_broker.worker.log_texts import LOGGERS, WithoutTexts, hide_texts

SECRET = "kim@example.com"


class OwnError(Exception):
    """An error of a project."""


def fail() -> None:
    raise OwnError(SECRET)


def fail_again() -> None:
    try:
        fail()
    except OwnError as exc:
        raise KeyError(SECRET) from exc


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What Python's own formatter makes of the lines of these loggers, as a project has it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    hide_texts()
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    yield stream
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        for one in [one for one in logger.filters if isinstance(one, WithoutTexts)]:
            logger.removeFilter(one)


def traced(run: Callable[..., Any], **options: Any) -> None:
    app = Celery("traced", set_as_current=False, broker="memory://", backend="cache+memory://")
    app.task(run, name="job", shared=False, **options)
    app.finalize()
    tracer = build_tracer("job", app.tasks["job"], app=app)
    tracer("id-1", (), {}, {"id": "id-1", "delivery_info": {}, "retries": 0})


def test_a_failure_has_its_class_and_code_locations_and_those_of_its_cause(
    log: io.StringIO,
) -> None:
    traced(fail_again)
    text = log.getvalue()
    assert "ERROR Task job[id-1] raised unexpected: KeyError(...)" in text
    assert "in fail_again" in text
    assert "in fail\n" in text
    assert "OwnError" in text
    assert "direct cause" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("kind", "said"), [(Reject, "Reject(...)"), (Ignore, "ignored")], ids=lambda x: str(x)
)
def test_a_task_that_is_rejected_or_ignored_tells_no_text(
    log: io.StringIO, kind: type[Exception], said: str
) -> None:
    def end() -> None:
        raise kind(SECRET)

    traced(end)
    assert said in log.getvalue()
    assert SECRET not in log.getvalue()


def test_a_retry_tells_when_and_the_class(log: io.StringIO) -> None:
    def again(self: Any) -> None:
        raise self.retry(exc=OwnError(SECRET), countdown=7)

    traced(again, bind=True)
    assert "Task job[id-1] retry: Retry in 7s: OwnError(...)" in log.getvalue()
    assert SECRET not in log.getvalue()


def test_what_the_main_process_says_of_an_exception_has_its_class(log: io.StringIO) -> None:
    try:
        fail()
    except OwnError as exc:
        logging.getLogger("celery.worker.request").error(
            "Task handler raised error: %r", exc, exc_info=sys.exc_info()
        )
    assert "Task handler raised error: OwnError()" in log.getvalue()
    assert "in fail\n" in log.getvalue()
    assert SECRET not in log.getvalue()


def test_an_exception_of_the_pool_is_named_without_its_wrapper(log: io.StringIO) -> None:
    try:
        fail()
    except OwnError as exc:
        einfo = ExceptionInfo((OwnError, exc, exc.__traceback__))
        logging.getLogger("celery.worker.request").error("it failed", exc_info=einfo.exc_info)
    assert log.getvalue().endswith(".OwnError\n")
    assert SECRET not in log.getvalue()


def test_other_lines_are_as_they_were(log: io.StringIO) -> None:
    def five() -> int:
        return 5

    traced(five)
    logging.getLogger("celery.worker.request").warning("Soft time limit (%ss) exceeded", 7)
    assert "succeeded" in log.getvalue()
    assert "Soft time limit (7s) exceeded" in log.getvalue()


def test_a_chain_of_causes_that_goes_round_ends() -> None:
    first, second = OwnError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    assert SECRET not in repr(textless(first))
