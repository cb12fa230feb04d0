"""Brackets: around each run of a task, whether its message runs alone or with others."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from celery import Celery, current_app, signals
from celery.app.trace import build_tracer
from celery.exceptions import SoftTimeLimitExceeded

from sqs_broker.observers.bracket import around
from sqs_broker.worker.batch import Job, run

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"

#: What happened, in order.
seen: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> Iterator[None]:
    seen.clear()
    yield
    seen.clear()


@contextmanager
def noting(task: Any, request: Any) -> Iterator[None]:
    """A bracket that notes when it is entered and left."""
    seen.append(f"enter {request.id}")
    try:
        yield
    except Exception as exc:
        seen.append(f"{type(exc).__name__} {request.id}")
        raise
    finally:
        seen.append(f"leave {request.id}")


class Request:
    id = "id-1"


# The block


def test_brackets_are_left_in_reverse_order() -> None:
    def named(name: str) -> Callable[..., AbstractContextManager[Any]]:
        @contextmanager
        def bracket(*_: Any) -> Iterator[None]:
            seen.append(f"enter {name}")
            yield
            seen.append(f"leave {name}")

        return bracket

    with around([named("a"), named("b")], None, Request):
        seen.append("work")
    assert seen == ["enter a", "enter b", "work", "leave b", "leave a"]


def test_a_bracket_sees_the_exception_of_the_block_and_cannot_suppress_it() -> None:
    class Suppressing:
        def __enter__(self) -> None: ...

        def __exit__(self, kind: Any, exc: Any, at: Any) -> bool:
            seen.append(kind.__name__)
            return True

    with pytest.raises(KeyError), around([lambda *_: Suppressing()], None, Request):
        raise KeyError
    assert seen == ["KeyError"]


@contextmanager
def fails_at_the_start(*_: Any) -> Iterator[None]:
    raise ValueError(MARKER)
    yield


@contextmanager
def fails_at_the_end(*_: Any) -> Iterator[None]:
    try:
        yield
    finally:
        raise ValueError(MARKER)


def cannot_be_made(*_: Any) -> Any:
    raise ValueError(MARKER)


@pytest.mark.parametrize("broken", [fails_at_the_start, fails_at_the_end, cannot_be_made])
def test_a_bracket_that_fails_costs_a_line_and_nothing_else(
    caplog: pytest.LogCaptureFixture, broken: Any
) -> None:
    with around([noting, broken, noting], None, Request):
        seen.append("work")
    assert seen == ["enter id-1", "enter id-1", "work", "leave id-1", "leave id-1"]
    (record,) = caplog.records
    assert (record.levelno, vars(record)["event"]) == (logging.ERROR, "bracket.failed")
    assert MARKER not in caplog.text


def test_a_bracket_that_keeps_failing_is_a_line_with_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def always_fails(*_: Any) -> Any:
        raise LookupError(MARKER)

    for _ in range(100):
        with around([always_fails], None, Request):
            pass
    (record,) = caplog.records
    assert "always_fails" in record.getMessage()


def test_a_bracket_that_wants_to_exit_ends_the_process_as_a_task_does() -> None:
    def exits(*_: Any) -> Any:
        raise SystemExit(2)

    with pytest.raises(SystemExit), around([noting, exits], None, Request):
        seen.append("work")
    assert seen == ["enter id-1", "leave id-1"]


def test_a_bracket_that_fails_after_a_failure_leaves_that_failure() -> None:
    with pytest.raises(KeyError), around([fails_at_the_end], None, Request):
        raise KeyError


def test_a_time_limit_that_passes_in_a_bracket_is_the_runs() -> None:
    @contextmanager
    def slow(*_: Any) -> Iterator[None]:
        raise SoftTimeLimitExceeded
        yield

    with pytest.raises(SoftTimeLimitExceeded), around([noting, slow], None, Request):
        seen.append("work")
    assert seen == ["enter id-1", "SoftTimeLimitExceeded id-1", "leave id-1"]


# The run of a task


def many(calls: Any) -> list[Any]:
    """The work for many messages."""
    seen.append("work " + " ".join(call.request.id for call in calls))
    return [KeyError() if call.kwargs["bad"] else "fine" for call in calls]


@pytest.fixture
def celery_app() -> Iterator[Celery]:
    app = Celery("tests", task_cls="sqs_broker.worker.task:Task", set_as_current=False)
    app.conf.update(
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
            "brackets": [f"{__name__}:noting"],
        },
        task_acks_late=True,
        task_ignore_result=True,
    )

    @app.task(shared=False, bind=True, name="job", many=many)
    def job(self: Any, *, bad: bool) -> str:
        seen.append(f"work {self.request.id}")
        if bad:
            raise KeyError
        return "fine"

    app.finalize()
    before = current_app._get_current_object()
    app.set_current()  # As in a process of the pool.
    yield app
    before.set_current()


@pytest.fixture
def trace(celery_app: Celery) -> Callable[..., Any]:
    """Celery's own trace of the task."""
    tracer = build_tracer("job", celery_app.tasks["job"], app=celery_app, eager=False)

    def run_it(name: str, id_: str, request: Any, body: Any, *_: Any) -> Any:
        traced = tracer(id_, body[0], body[1], request)
        return int(traced.info is not None), traced.retval, traced.runtime

    return run_it


def jobs(*bad: bool) -> list[Job]:
    request = {"task": "job", "delivery_info": {}, "hostname": "h", "retries": 0}
    return [
        Job(f"id-{n}", request | {"id": f"id-{n}"}, [], {"bad": is_bad}, {})
        for n, is_bad in enumerate(bad)
    ]


@pytest.fixture
def _noted_signals() -> Iterator[None]:
    """Notes Celery's signals around a run."""

    def before(task_id: str, **_: Any) -> None:
        seen.append(f"prerun {task_id}")

    def after(task_id: str, state: str, **_: Any) -> None:
        seen.append(f"postrun {task_id} {state}")

    signals.task_prerun.connect(before)
    signals.task_postrun.connect(after)
    yield
    signals.task_prerun.disconnect(before)
    signals.task_postrun.disconnect(after)


@pytest.mark.usefixtures("_noted_signals")
def test_a_message_that_runs_alone_has_its_bracket_within_its_signals(
    trace: Callable[..., Any],
) -> None:
    (job,) = jobs(False)
    trace("job", job.id, job.request, (job.args, job.kwargs, job.embed))
    assert seen == [
        "prerun id-0", "enter id-0", "work id-0", "leave id-0", "postrun id-0 SUCCESS",
    ]  # fmt: skip


@pytest.mark.usefixtures("_noted_signals")
def test_messages_that_share_a_job_have_all_their_brackets_and_signals_around_the_work(
    trace: Callable[..., Any],
) -> None:
    run(trace, "job", jobs(False, False, False))
    assert seen == [
        "prerun id-2", "enter id-2", "prerun id-1", "enter id-1", "prerun id-0", "enter id-0",
        "work id-0 id-1 id-2",
        "leave id-0", "postrun id-0 SUCCESS", "leave id-1", "postrun id-1 SUCCESS",
        "leave id-2", "postrun id-2 SUCCESS",
    ]  # fmt: skip


def test_the_bracket_of_a_message_sees_its_own_failure_alone(trace: Callable[..., Any]) -> None:
    run(trace, "job", jobs(False, True, False))
    assert seen == [
        "enter id-2", "enter id-1", "enter id-0",
        "work id-0 id-1 id-2",
        "leave id-0", "KeyError id-1", "leave id-1", "leave id-2",
    ]  # fmt: skip


def test_what_is_set_around_one_message_of_a_job_is_not_around_another(
    trace: Callable[..., Any],
) -> None:
    current: ContextVar[str] = ContextVar("current", default="nothing")

    def before(task_id: str, **_: Any) -> None:
        seen.append(f"{task_id} begins with {current.get()}")
        current.set(task_id)

    def after(task_id: str, **_: Any) -> None:
        seen.append(f"{task_id} ends with {current.get()}")

    signals.task_prerun.connect(before)
    signals.task_postrun.connect(after)
    try:
        run(trace, "job", jobs(False, False))
    finally:
        signals.task_prerun.disconnect(before)
        signals.task_postrun.disconnect(after)
    assert [line for line in seen if " with " in line] == [
        "id-1 begins with nothing", "id-0 begins with nothing",
        "id-0 ends with id-0", "id-1 ends with id-1",
    ]  # fmt: skip
