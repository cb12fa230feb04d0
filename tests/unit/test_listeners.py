"""Whoever notices Celery's trace of a message notices that of each message of a shared job. If
nobody does, the messages that succeed have none, and everything else is the same.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
from celery import Celery, current_app, signals
from celery import current_task as celery_current_task
from celery.app import trace as celery_trace
from celery.app.trace import build_tracer, trace_task_ret
from celery.backends.base import DisabledBackend
from celery.loaders.app import AppLoader

from sqs_broker import install
from sqs_broker.testing import Clock
from sqs_broker.worker.batch import Job, run
from sqs_broker.worker.per_job import once_a_job
from sqs_broker.worker.task import Task
from tests.unit.in_memory import new_sqs

#: Messages of the job.
COUNT = 4


class Bench:
    """An app with a task that has `many`, and what was noticed of its runs."""

    def __init__(self, base: type[Any] = Task, **conf: Any) -> None:
        self.noticed: list[Any] = []
        self.failing: dict[int, Exception] = {}
        self.current: list[Any] = []
        made = Celery("tests", task_cls=base, set_as_current=False)
        install(made)
        made.conf.update(
            broker_transport_options=new_sqs(Clock()).transport_options(),
            task_acks_late=True,
            task_ignore_result=True,
            **conf,
        )

        def many(calls: Sequence[Any]) -> list[Any]:
            self.noticed.append("work")
            request = celery_current_task.request
            self.current.append((celery_current_task.name, request.id, request.called_directly))
            return [self.failing.get(call.args[0], call.args[0]) for call in calls]

        @made.task(shared=False, name="many", many=many)
        def task(n: int) -> int:
            raise AssertionError("in a shared job, `many` does the work")

        made.finalize()
        self.app, self.task = made, made.tasks["many"]
        made.set_current()
        backend, cleanup = self.task.backend, self.task.backend.process_cleanup
        self.traces = 0

        def count() -> None:
            # Celery calls this at the end of each trace.
            self.traces += 1
            cleanup()

        self.count = backend.process_cleanup = count
        self.task.__trace__ = build_tracer("many", self.task, app=made)

    def run(self, embed: Any = None, trace: Any = trace_task_ret) -> list[Any]:
        jobs = [
            Job(str(n), {"id": str(n), "delivery_info": {}}, [n], {}, embed) for n in range(COUNT)
        ]
        return run(trace, "many", jobs, self.task)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = current_app._get_current_object()
    level = celery_trace.logger.level
    celery_trace.logger.setLevel(logging.ERROR)
    yield
    celery_trace.logger.setLevel(level)
    before.set_current()


def test_if_nobody_listens_a_success_has_no_trace() -> None:
    bench = Bench()

    ended = bench.run()

    assert bench.traces == 0
    assert [(failed, shown) for failed, shown, _ in ended] == [(0, str(n)) for n in range(COUNT)]
    assert all(seconds >= 0 for *_, seconds in ended)


def test_the_result_is_the_one_that_the_trace_returns() -> None:
    bench = Bench()
    quiet = [ended[:2] for ended in bench.run()]

    signals.task_prerun.connect(listener := lambda **_: None, weak=False)
    try:
        assert [ended[:2] for ended in bench.run()] == quiet
    finally:
        signals.task_prerun.disconnect(listener)
    assert bench.traces == COUNT


def test_a_failure_goes_through_the_trace_and_the_others_do_not() -> None:
    bench = Bench()
    bench.failing = {1: ValueError("x"), 2: SystemExit(1)}  # type: ignore[dict-item]  # foreign

    ended = bench.run()

    assert bench.traces == 2
    assert [failed for failed, *_ in ended] == [0, 1, 1, 0]
    assert bench.noticed == ["work"]


def test_what_the_work_sends_is_a_child_of_the_first_message() -> None:
    bench = Bench()
    bench.run()
    signals.task_prerun.connect(listener := lambda **_: None, weak=False)
    try:
        bench.run()
    finally:
        signals.task_prerun.disconnect(listener)

    assert bench.current == [("many", "0", False)] * 2
    assert not celery_current_task


@pytest.mark.parametrize("raised", [ValueError("all"), MemoryError()], ids=repr)
def test_work_that_raises_has_failed_for_each_message(raised: Exception) -> None:
    bench = Bench()
    type(bench.task).many = staticmethod(lambda calls: (_ for _ in ()).throw(raised))

    ended = bench.run()

    assert [failed for failed, *_ in ended] == [1] * COUNT


# Each of those who may listen


@pytest.mark.parametrize("name", ["task_prerun", "task_postrun", "task_success"])
def test_a_receiver_of_a_signal(name: str) -> None:
    bench = Bench()
    signal = getattr(signals, name)

    def listener(**_: Any) -> None:
        bench.noticed.append(name)

    signal.connect(listener)
    try:
        bench.run()
    finally:
        signal.disconnect(listener)

    assert bench.noticed.count(name) == COUNT
    # The work is inside of what is done before and after each message.
    assert bench.noticed.index("work") == (COUNT if name == "task_prerun" else 0)


def test_a_receiver_that_wants_one_call_for_each_job() -> None:
    bench = Bench()

    @once_a_job
    def listener(**_: Any) -> None:
        bench.noticed.append("once")

    signals.task_postrun.connect(listener)
    try:
        bench.run()
        assert bench.traces == 0
        assert bench.noticed == ["work", "once"]
    finally:
        signals.task_postrun.disconnect(listener)


@pytest.mark.parametrize("name", ["before_start", "on_success", "after_return"])
def test_a_method_of_the_task(name: str) -> None:
    noticed: list[str] = []

    def hook(self: Any, *_: Any) -> None:
        noticed.append(name)

    bench = Bench(type("Hooked", (Task,), {name: hook, "abstract": True}))
    bench.run()

    assert noticed == [name] * COUNT


@pytest.mark.parametrize("knows_ours", [True, False])
def test_a_call_of_the_class_of_the_task(knows_ours: bool) -> None:
    noticed: list[str] = []
    from celery import Task as CeleryTask

    base: Any = Task if knows_ours else CeleryTask

    class Contextual(base):  # type: ignore[misc]  # one of two
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            noticed.append("called")
            return super().__call__(*args, **kwargs)

    Bench(Contextual).run()

    assert noticed == ["called"] * COUNT


def test_a_function_that_was_replaced_on_the_task() -> None:
    bench = Bench()
    bench.task.run = bench.task.run

    bench.run()

    assert bench.traces == COUNT


def test_a_bracket() -> None:
    noticed: list[str] = []

    @contextmanager
    def bracket(task: Any, request: Any) -> Iterator[None]:
        noticed.append(request.id)
        yield

    bench = Bench()
    type(bench.task).brackets = (bracket,)
    bench.run()

    assert sorted(noticed) == [str(n) for n in range(COUNT)]


def test_a_result_backend() -> None:
    bench = Bench()

    class Backend(DisabledBackend):
        def mark_as_done(self, task_id: str, *_: Any, **__: Any) -> None:
            bench.noticed.append(task_id)

    bench.task.backend = Backend(bench.app)
    bench.run()

    assert sorted(bench.noticed[1:]) == [str(n) for n in range(COUNT)]


@pytest.mark.parametrize("name", ["on_task_init", "on_process_cleanup"])
def test_a_loader(name: str) -> None:
    noticed: list[str] = []
    kind = type("Own", (AppLoader,), {name: lambda self, *_: noticed.append(name)})
    bench = Bench()
    bench.app.loader = kind(bench.app)
    bench.task.__trace__ = build_tracer("many", bench.task, app=bench.app)
    bench.run()

    assert noticed == [name] * COUNT


def test_a_reader_of_celerys_log() -> None:
    celery_trace.logger.setLevel(logging.INFO)
    bench = Bench()

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            bench.noticed.append(record.getMessage().split("[")[0])

    celery_trace.logger.addHandler(handler := Kept())
    try:
        bench.run()
    finally:
        celery_trace.logger.removeHandler(handler)

    assert bench.noticed == ["work", *["Task many"] * COUNT]


def traced_by_a_library(bench: Bench, function: Callable[..., Any]) -> Callable[..., Any]:
    """As Sentry does: the name and the module are Celery's."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        bench.noticed.append("traced")
        return function(*args, **kwargs)

    return wrapper


class Proxy:
    """As wrapt does: every attribute is that of the function."""

    def __init__(self, bench: Bench, function: Callable[..., Any]) -> None:
        self._bench, self._function = bench, function

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._bench.noticed.append("traced")
        return self._function(*args, **kwargs)


@pytest.mark.parametrize("wrapped", [traced_by_a_library, Proxy])
def test_a_library_that_replaces_the_tracer(wrapped: Any) -> None:
    bench = Bench()
    bench.task.__trace__ = wrapped(bench, bench.task.__trace__)
    bench.run()

    assert bench.noticed.count("traced") == COUNT


@pytest.mark.parametrize("wrapped", [traced_by_a_library, Proxy])
def test_a_library_that_replaces_what_calls_the_tracer(wrapped: Any) -> None:
    bench = Bench()
    bench.run(trace=wrapped(bench, trace_task_ret))

    assert bench.noticed.count("traced") == COUNT


@pytest.mark.parametrize("name", ["callbacks", "chain", "chord"])
def test_what_follows_a_message(name: str) -> None:
    bench = Bench()
    follower = {"task": "other", "args": [], "kwargs": {}, "options": {}, "subtask_type": None}
    bench.run({name: follower if name == "chord" else [follower]})

    assert bench.traces == COUNT
    assert bench.noticed == ["work"]


# Those who come after a job without listeners


def a_bracket(bench: Bench) -> None:
    @contextmanager
    def bracket(task: Any, request: Any) -> Iterator[None]:
        yield

    type(bench.task).brackets = (bracket,)


def a_run(bench: Bench) -> None:
    bench.task.run = bench.task.run


def a_backend(bench: Bench) -> None:
    bench.task.backend = type("Backend", (DisabledBackend,), {})(bench.app)
    bench.task.backend.process_cleanup = bench.count


def a_call(bench: Bench) -> None:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return Task.__call__(self, *args, **kwargs)

    type(bench.task).__call__ = call


def a_method_and_a_new_tracer(bench: Bench) -> None:
    type(bench.task).on_success = lambda self, *_: None
    bench.task.__trace__ = build_tracer("many", bench.task, app=bench.app)


def a_reader(bench: Bench) -> None:
    celery_trace.logger.setLevel(logging.INFO)


def a_tracer(bench: Bench) -> None:
    bench.task.__trace__ = traced_by_a_library(bench, bench.task.__trace__)


@pytest.mark.parametrize(
    "comes",
    [a_bracket, a_run, a_backend, a_call, a_method_and_a_new_tracer, a_reader, a_tracer],
)
def test_who_comes_after_a_job_notices_the_next_one(comes: Callable[[Bench], None]) -> None:
    bench = Bench()
    bench.run()
    assert bench.traces == 0

    comes(bench)
    bench.run()

    assert bench.traces == COUNT


def test_a_receiver_that_is_connected_after_a_job_notices_the_next_one() -> None:
    bench = Bench()
    bench.run()

    signals.task_success.connect(listener := lambda **_: None, weak=False)
    try:
        bench.run()
    finally:
        signals.task_success.disconnect(listener)

    assert bench.traces == COUNT
    bench.run()
    assert bench.traces == COUNT
