"""What a failure carries with it, before Celery makes texts of it."""

import traceback
from contextlib import suppress

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.app.trace import build_tracer

from sqs_broker.worker.failures import MOST_FRAMES, shorten


def repeated(times: int, cause: BaseException | None = None) -> ValueError:
    """An exception that was raised so often again, as a library does that repeats a call."""
    exc = ValueError("text")
    exc.__cause__ = cause
    for _ in range(times):
        with suppress(ValueError):
            again(exc)
    return exc


def again(exc: ValueError) -> None:
    # A function of its own: a frame that is repeated at once has one line in a text.
    raise exc


def frames_of(exc: BaseException | None) -> list[tuple[str, int | None]]:
    assert exc is not None
    return [(frame.name, frame.lineno) for frame in traceback.extract_tb(exc.__traceback__)]


def test_of_a_long_traceback_the_middle_is_left_out_and_of_its_causes_too() -> None:
    def outermost(exc: ValueError) -> None:
        raise exc

    exc = repeated(5_000, cause=repeated(5_000))
    with pytest.raises(ValueError, match="text") as raised:
        outermost(exc)
    ends = frames_of(raised.value)
    shorten(raised.value)
    kept = frames_of(raised.value)
    assert len(kept) == len(frames_of(raised.value.__cause__)) == MOST_FRAMES
    assert (kept[:3], kept[-3:]) == (ends[:3], ends[-3:])
    assert {"outermost", "repeated"} <= {name for name, _ in kept}


@pytest.mark.parametrize("times", [0, 1, MOST_FRAMES // 2])
def test_a_traceback_of_the_usual_length_stays_as_it_is(times: int) -> None:
    exc = repeated(times)
    before = frames_of(exc)
    shorten(exc)
    assert frames_of(exc) == before


def test_exceptions_that_are_each_the_cause_of_the_other_have_an_end() -> None:
    one, other = repeated(1), repeated(MOST_FRAMES + 1)
    one.__context__, other.__context__ = other, one
    shorten(one)
    assert len(frames_of(other)) == MOST_FRAMES


def test_the_failure_of_a_run_has_no_long_traceback_when_celery_gets_it() -> None:
    app = Celery("tests", task_cls="sqs_broker.worker.task:Task", set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
        },
    )

    @app.task(name="repeats", shared=False)
    def repeats() -> None:
        raise repeated(5_000)

    trace = build_tracer("repeats", repeats, app=app)
    traced = trace("id", (), {}, {"id": "id", "retries": 0, "is_eager": False})
    assert isinstance(traced.retval, ExceptionInfo)
    assert traced.retval.traceback.count("in again") <= MOST_FRAMES
