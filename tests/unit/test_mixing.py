"""A task has the broker's behaviour, whatever its class is."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery import Task as CeleryTask
from celery.app.trace import build_tracer
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Retry
from celery.worker.request import Request as CeleryRequest

from sqs_broker import ConfigurationError, install
from sqs_broker.worker.batch import Job, run
from sqs_broker.worker.mixing import refuse
from sqs_broker.worker.request import Request
from sqs_broker.worker.task import Task


class Permanent(Exception):
    """What the tests' tasks dead-letter."""


class Opened(CeleryTask):
    """As the one of Flask's documentation: a context around each run."""

    abstract = True
    said: list[str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.said.append("context")
        return self.run(*args, **kwargs)


class OpenedBySuper(CeleryTask):
    """The same, which goes on as Celery's documentation shows."""

    abstract = True
    said: list[str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.said.append("context")
        return super().__call__(*args, **kwargs)


class Hooked(CeleryTask):
    """Says what it is told, and to nobody else."""

    abstract = True
    said: list[str]

    def on_failure(self, *args: Any) -> None:
        self.said.append("on_failure")

    def on_retry(self, *args: Any) -> None:
        self.said.append("on_retry")

    def on_success(self, *args: Any) -> None:
        self.said.append("on_success")

    def after_return(self, *args: Any) -> None:
        self.said.append("after_return")


class Unaware(CeleryTask):
    """Does not call Celery's own hook."""

    abstract = True
    number = 0

    @classmethod
    def on_bound(cls, app: Any) -> None:
        cls.number = 7


BASES = [CeleryTask, Opened, OpenedBySuper, Hooked, Unaware, AbortableTask]


@pytest.fixture
def celery_app() -> Iterator[Celery]:
    """An app on this broker, that sends nothing."""
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
            "max_attempts": 5,
        },
    )
    yield app
    app.close()


Trace = Callable[..., Any]


@pytest.fixture
def trace(celery_app: Celery) -> Trace:
    """Runs a task as a process of the pool does; what goes to the main process."""

    def trace_it(task: Any, *args: Any, retries: int = 0) -> Any:
        request = {"id": "id-1", "retries": retries, "delivery_info": {}}
        return build_tracer(task.name, task, app=celery_app)("id-1", args, {}, request)

    return trace_it


def failing(error: Exception) -> Callable[..., None]:
    def job(*_: Any) -> None:
        raise error

    return job


def nothing(*_: Any) -> None:
    """The function of a task whose class is all that matters."""


def said_by(base: type, said: list[str]) -> dict[str, Any]:
    """Options of a task with this base class, which says what happens."""
    return {"base": base, "shared": False, "said": said}


@pytest.mark.parametrize("base", BASES)
def test_a_task_with_a_base_of_its_own_has_the_brokers_behaviour(
    celery_app: Celery, trace: Trace, base: type
) -> None:
    said: list[str] = []
    task = celery_app.task(**said_by(base, said), name="job")(failing(KeyError()))
    assert isinstance(celery_app.tasks["job"], Task)
    assert isinstance(task, base)
    assert (task.max_retries, task.policy.max_attempts) == (4, 5)
    assert trace(task).info.state == "RETRY"
    last = trace(task, retries=4)
    assert (last.info.state, type(last.info.retval)) == ("FAILURE", KeyError)
    refuse(celery_app.tasks.values())


@pytest.mark.parametrize("base", BASES)
def test_a_permanent_error_of_such_a_task_is_one(
    celery_app: Celery, trace: Trace, base: type
) -> None:
    options = {"name": "job", "dead_letter_on": (Permanent,)}
    task = celery_app.task(**said_by(base, []), **options)(failing(Permanent("no such user")))
    traced = trace(task)
    assert (traced.info.state, type(traced.info.retval)) == ("FAILURE", Permanent)
    sent = pickle.loads(pickle.dumps(traced.retval))
    assert sent.verdict.args == ("no such user", "Permanent", False)


@pytest.mark.parametrize("each", ["map", "starmap"])
def test_a_permanent_error_within_a_map_is_one(celery_app: Celery, trace: Trace, each: str) -> None:
    job = failing(Permanent("no such user"))
    options: dict[str, Any] = {"name": "job", "shared": False, "dead_letter_on": (Permanent,)}
    task = celery_app.task(**options)(job)
    traced = trace(celery_app.tasks[f"celery.{each}"], dict(task.s()), [[1], [2]])
    sent = pickle.loads(pickle.dumps(traced.retval))
    assert sent.verdict.args == ("no such user", "Permanent", False)


@pytest.mark.parametrize("base", [Opened, OpenedBySuper])
@pytest.mark.parametrize("options", [{}, {"autoretry_for": (KeyError,)}], ids=["", "autoretry"])
def test_its_own_call_is_around_each_run(
    celery_app: Celery, trace: Trace, base: type, options: dict[str, Any]
) -> None:
    said: list[str] = []

    @celery_app.task(**said_by(base, said), **options, name="job")
    def job(number: int) -> int:
        said.append("run")
        return number

    assert trace(job, 7).retval == 7
    assert said == ["context", "run"]


@pytest.mark.parametrize("base", [Opened, OpenedBySuper])
def test_its_own_call_is_around_the_work_of_a_shared_job(celery_app: Celery, base: type) -> None:
    said: list[str] = []

    def many(calls: Any) -> list[Any]:
        said.append("work")
        return [KeyError() if call.args == [1] else call.args[0] for call in calls]

    task = celery_app.task(**said_by(base, said), name="job", many=many)(nothing)
    tracer = build_tracer("job", task, app=celery_app)

    def traced(name: str, id_: str, request: Any, body: Any, *_: Any) -> Any:
        result = tracer(id_, body[0], body[1], request)
        return int(result.info is not None), result.retval, result.runtime

    jobs = [
        Job(str(n), {"id": str(n), "retries": 0, "delivery_info": {}}, [n], {}, {})
        for n in range(3)
    ]
    outcomes = run(traced, "job", jobs, task)
    assert said == ["context", "context", "context", "work"]
    assert [failed for failed, *_ in outcomes] == [0, 1, 0]
    assert [result for failed, result, _ in outcomes if not failed] == [0, 2]
    assert isinstance(outcomes[1][1].exception.exc, Retry)


@pytest.mark.parametrize(
    ("error", "retries", "said"),
    [
        (None, 0, ["on_success", "after_return"]),
        (KeyError(), 0, ["on_retry"]),
        (KeyError(), 4, ["on_failure", "after_return"]),
        (Permanent(), 0, ["on_failure", "after_return"]),
    ],
    ids=repr,
)
def test_each_hook_is_called_once(
    celery_app: Celery, trace: Trace, error: Exception | None, retries: int, said: list[str]
) -> None:
    called: list[str] = []
    function = failing(error) if error else nothing
    options = {"name": "job", "dead_letter_on": (Permanent,)}
    trace(celery_app.task(**said_by(Hooked, called), **options)(function), retries=retries)
    assert called == said


def test_a_class_that_is_registered_is_mixed(celery_app: Celery, trace: Trace) -> None:
    class Registered(CeleryTask):
        name = "registered"
        dead_letter_on = (Permanent,)

        def run(self) -> None:
            raise Permanent("no such user")

    task = celery_app.register_task(Registered())
    assert trace(task).retval.verdict.error == "Permanent"
    assert celery_app.tasks["registered"] is task


def test_the_class_of_an_app_is_mixed_and_so_are_celerys_own_tasks() -> None:
    app = Celery("tests", task_cls=Opened, set_as_current=False)
    install(app)
    app.conf.broker_transport_options = {
        "region": "us-east-1",
        "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
    }
    assert all(isinstance(task, Task) and isinstance(task, Opened) for task in app.tasks.values())


def test_a_task_that_was_defined_before_is_mixed() -> None:
    app = Celery("tests", set_as_current=False)
    app.task(nothing, name="job", shared=False)
    install(app)
    app.conf.broker_transport_options = {
        "region": "us-east-1",
        "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
    }
    assert isinstance(app.tasks["job"], Task)


def test_an_app_whose_tasks_were_used_is_refused() -> None:
    app = Celery("tests", set_as_current=False)
    app.finalize()
    with pytest.raises(ConfigurationError, match="right after the app is created"):
        install(app)


# What cannot be mixed


class OwnRetry(CeleryTask):
    abstract = True

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError


class OwnTrace(CeleryTask):
    abstract = True
    __trace__ = staticmethod(lambda *_: None)


class OwnRequest(CeleryTask):
    abstract = True
    Request = CeleryRequest


class OwnStrategy(CeleryTask):
    """As celery-batches has it."""

    abstract = True

    def Strategy(self, task: Any, app: Any, consumer: Any) -> Any:
        raise NotImplementedError


class OwnStart(CeleryTask):
    abstract = True

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class OwnPolicy(CeleryTask):
    abstract = True
    policy = "strict"


class Strict(type):
    """Makes no class of two."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        if len(bases) > 1:
            raise TypeError(name)
        return super().__new__(cls, name, bases, attributes)


class OfAnotherKind(CeleryTask, metaclass=Strict):
    abstract = True


@pytest.mark.parametrize(
    ("base", "why"),
    [
        (OwnRetry, "its class OwnRetry has its own `retry`"),
        (OwnTrace, "its class OwnTrace has its own `__trace__`"),
        (OwnRequest, "it has its own `Request`"),
        (OwnStrategy, "it has its own `Strategy`"),
        (OwnStart, "it has its own `Strategy`"),
        (OwnPolicy, "its class OwnPolicy has its own `policy`"),
        (OfAnotherKind, "its class nothing cannot be combined with that of the broker"),
    ],
)
def test_what_cannot_be_mixed_is_named(celery_app: Celery, base: type, why: str) -> None:
    celery_app.task(shared=False, name="fine")(nothing)
    celery_app.task(base=base, shared=False, name="shop.other")(nothing)
    with pytest.raises(ConfigurationError) as raised:
        refuse(celery_app.tasks.values())
    assert f"shop.other ({why}" in str(raised.value)
    assert "fine" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dead_letter_on": [Permanent]}, "its `dead_letter_on` must be an exception class"),
        ({"suspect_on": (Permanent, "KeyError")}, "its `suspect_on` must be an exception class"),
        ({"many": True}, "its `many` must be a function"),
        ({"dead_leter_on": (Permanent,)}, "`dead_leter_on` is no option; .* `dead_letter_on`"),
        ({"dead_letters_on": Permanent}, "`dead_letters_on` is no option"),
    ],
)
def test_a_wrong_option_of_a_task_stops_its_worker(
    celery_app: Celery, options: dict[str, Any], why: str
) -> None:
    celery_app.task(shared=False, name="shop.other", **options)(nothing)
    with pytest.raises(ConfigurationError, match=f"shop.other .*{why}"):
        refuse(celery_app.tasks.values())


@pytest.mark.parametrize("given", [Permanent, (Permanent, KeyError), ()])
def test_an_option_of_exceptions_is_what_except_takes(celery_app: Celery, given: Any) -> None:
    celery_app.task(shared=False, name="job", dead_letter_on=given)(nothing)
    refuse(celery_app.tasks.values())


def test_a_class_that_knows_the_brokers_may_override_it(celery_app: Celery) -> None:
    class Knowing(Task):
        abstract = True
        Request = Request

        def retry(self, *args: Any, **kwargs: Any) -> Any:
            return super().retry(*args, **kwargs)

    celery_app.task(base=Knowing, shared=False, name="job")(nothing)
    refuse(celery_app.tasks.values())


def test_a_call_of_another_task_in_a_run_is_a_plain_call(celery_app: Celery, trace: Trace) -> None:
    other = celery_app.task(**said_by(Opened, []), name="other")(failing(Permanent()))

    @celery_app.task(shared=False, name="job", base=Opened, said=[])
    def job() -> str:
        with pytest.raises(Permanent):
            other()
        return "done"

    assert trace(job).retval == "done"


def test_the_verdict_survives_a_failure_that_cannot_be_pickled(celery_app: Celery) -> None:
    class Local(Exception):
        pass

    task = celery_app.task(shared=False, name="job", dead_letter_on=(Local,))(failing(Local("no")))
    tracer = build_tracer("job", task, app=celery_app)
    request = {"id": "1", "retries": 0, "delivery_info": {}}
    traced = tracer("1", (), {}, request)
    assert pickle.loads(pickle.dumps(traced.retval)).verdict.reason == "no"
