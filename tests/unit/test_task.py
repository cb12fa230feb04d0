"""Task: a retry is the same message later, and each failure is a retry or a dead letter."""

import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry
from pydantic import BaseModel

from sqs_broker.errors import ConfigurationError, EtaTooFar
from sqs_broker.rules.happened import Rejected, Suspected
from sqs_broker.rules.policy import Policy
from sqs_broker.rules.randomness import RANDOM
from sqs_broker.worker.task import Task

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


class Permanent(Exception):
    """What the tests' tasks dead-letter."""


@pytest.fixture
def celery_app() -> Celery:
    """An app with the task class and a policy of five attempts. Nothing is sent."""
    app = Celery("tests", task_cls="sqs_broker.worker.task:Task", set_as_current=False)
    app.conf.broker_transport_options = {
        "region": "us-east-1",
        "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
        "max_attempts": 5,
        "max_receive_count": 10,
        # A ceiling of one second leaves the jitter no choice.
        "backoff_max": 1,
    }
    app.conf.task_acks_late = True
    return app


@pytest.fixture
def define(celery_app: Celery) -> Iterator[Callable[..., Any]]:
    """Defines a task that runs `body(task)`, in the middle of a delivery."""
    running = []

    def define_it(body: Callable[[Any], Any], retries: int = 0, **options: Any) -> Any:
        def job(self: Any) -> Any:
            return body(self)

        task = celery_app.task(shared=False, bind=True, name="job", **options)(job)
        task.push_request(id="id-1", retries=retries, called_directly=False, is_eager=False)
        running.append(task)
        return task

    yield define_it
    for task in running:
        task.pop_request()


Define = Callable[..., Any]


def nothing(*_: Any) -> None:
    """The body of a task whose options are all that matters."""


def fails_with(error: BaseException) -> Callable[[Any], None]:
    def body(_: Any) -> None:
        raise error

    return body


def raised_by(task: Any) -> Any:
    """What a run of the task raises."""
    with pytest.raises(BaseException) as raised:  # noqa: PT011 - for the test to look at
        task()
    return raised.value


def told_by(task: Any) -> Any:
    """What the main process is told of a run: the verdict of the task, or else what it raises."""
    raised, failure = raised_by(task), SimpleNamespace()
    # Celery's tracer calls this hook for a run that has failed for good.
    task.on_failure(raised, "id-1", (), {}, failure)
    return getattr(failure, "verdict", raised)


# Asking for a retry


@pytest.mark.parametrize(
    ("asked", "delay"),
    [({}, 1), ({"countdown": 7}, 7), ({"countdown": 0}, 0), ({"countdown": 0.5}, 0.5)],
)
def test_a_retry_raises_with_the_delay_in_seconds(
    define: Define, asked: dict[str, Any], delay: float
) -> None:
    retry = raised_by(define(lambda self: self.retry(**asked)))
    assert isinstance(retry, Retry)
    assert retry.when == delay


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=9)), None])
@pytest.mark.parametrize(
    ("due_in", "delay"), [(timedelta(minutes=5), 300), (timedelta(minutes=-5), 0)]
)
def test_a_time_becomes_the_seconds_until_then(
    define: Define, zone: tzinfo | None, due_in: timedelta, delay: float
) -> None:
    eta = datetime.now(UTC) + due_in
    eta = eta.astimezone(zone) if zone else eta.replace(tzinfo=None)
    assert delay - 60 < raised_by(define(lambda self: self.retry(eta=eta))).when <= delay


@pytest.mark.parametrize(
    "asked",
    [
        {"countdown": 15 * 86_400},
        {"countdown": float("inf")},
        {"eta": datetime(9999, 12, 31, tzinfo=UTC)},
    ],
    ids=repr,
)
def test_a_retry_that_is_too_far_is_refused(define: Define, asked: dict[str, Any]) -> None:
    refused = raised_by(define(lambda self: self.retry(**asked)))
    # The refusal is a failed attempt of its own, so it is retried as any other.
    assert isinstance(refused, Retry)
    assert isinstance(refused.exc, EtaTooFar)
    assert refused.when < 60


@pytest.mark.parametrize("countdown", [15 * 86_400, 1e12])
def test_a_countdown_that_is_too_far_is_refused_at_the_caller(
    define: Define, countdown: float
) -> None:
    with pytest.raises(EtaTooFar, match="`eta_max`"):
        define(nothing).apply_async(countdown=countdown)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_backoff_is_that_of_the_delivery(
    celery_app: Celery, define: Define, retries: int
) -> None:
    celery_app.conf.broker_transport_options["backoff_max"] = 600
    task = define(lambda self: self.retry(), retries=retries)
    RANDOM.seed(7)
    expected = task.policy.backoff(retries + 1)
    RANDOM.seed(7)
    assert raised_by(task).when == expected


@pytest.mark.parametrize(
    "options",
    [
        {"args": ()},
        {"args": (1,)},
        {"kwargs": {}},
        {"kwargs": {"a": 1}},
        {"throw": False},
        {"queue": "other"},
        {"priority": 9},
        {"expires": 60},
        {"headers": {}},
    ],
)
def test_what_the_same_message_cannot_express_raises_at_the_call(
    define: Define, options: dict[str, Any]
) -> None:
    def body(self: Any) -> None:
        with pytest.raises(TypeError, match="takes no args, kwargs, throw=False or options"):
            self.retry(**options)
        ran.append(1)

    ran: list[int] = []
    define(body)()
    assert ran


def test_an_option_of_retry_that_is_none_asks_for_nothing(define: Define) -> None:
    task = define(lambda self: self.retry(countdown=9, expires=None, queue=None), retries=1)
    assert raised_by(task).when == 9


@pytest.mark.parametrize("is_raised", [True, False])
@pytest.mark.parametrize("options", [{"kwargs": {"a": 1}}, {"args": (1,)}, {"throw": False}])
def test_a_misuse_of_retry_is_dead_lettered_in_its_first_run_and_says_so(
    define: Define, options: dict[str, Any], is_raised: bool
) -> None:
    def body(self: Any) -> None:
        asked = self.retry(**options)
        if is_raised:
            raise asked

    rejected = told_by(define(body))
    assert isinstance(rejected, Rejected)
    assert not rejected.requeue
    assert rejected.error == "RetryMisused"
    assert "takes no args, kwargs, throw=False or options of apply_async" in rejected.reason


def test_celery_s_own_retries_do_not_hide_a_misuse_of_retry(define: Define) -> None:
    task = define(lambda self: self.retry(kwargs={"a": 1}), autoretry_for=(Exception,))
    assert isinstance(told_by(task), Rejected)


def test_a_misuse_of_retry_while_a_failure_is_handled_is_dead_lettered_too(define: Define) -> None:
    def body(self: Any) -> None:
        try:
            raise KeyError("Kim-1f9c")
        except KeyError as exc:
            raise self.retry(exc=exc, kwargs={"a": 1}) from exc

    rejected = told_by(define(body))
    assert isinstance(rejected, Rejected)
    assert "Kim-1f9c" not in rejected.reason


def asks(**how: Any) -> Callable[[Any], None]:
    def body(task: Any) -> None:
        task.retry(**how)

    return body


def auto(**how: Any) -> dict[str, Any]:
    """Options of a task that Celery retries by itself."""
    return {"autoretry_for": (KeyError,), "retry_kwargs": how}


def without_a_limit(task: Any) -> None:
    """As celery-heimdall's tasks do."""
    task.max_retries = None
    task.retry()


USED_UP = MaxRetriesExceededError


@pytest.mark.parametrize(
    ("body", "options", "retries", "raised"),
    [
        # The queue allows 4.
        (asks(exc=KeyError()), {}, 3, Retry),
        (asks(exc=KeyError()), {}, 4, KeyError),
        (asks(), {}, 4, USED_UP),
        # A call may name fewer, and then a failure after the last one is final.
        (asks(exc=KeyError(), max_retries=1), {}, 0, Retry),
        (asks(exc=KeyError(), max_retries=1), {}, 1, Rejected),
        (asks(max_retries=1), {}, 1, Rejected),
        (fails_with(KeyError()), auto(max_retries=2), 1, Retry),
        (fails_with(KeyError()), auto(max_retries=2), 2, Rejected),
        # No call may name more.
        (asks(max_retries=100), {}, 3, Retry),
        (asks(max_retries=100), {}, 4, USED_UP),
        (fails_with(KeyError()), auto(max_retries=100), 3, Retry),
        (fails_with(KeyError()), auto(max_retries=100), 4, KeyError),
        # But more than its task has.
        (asks(max_retries=3), {"max_retries": 1}, 2, Retry),
        (fails_with(KeyError()), auto() | {"max_retries": 2}, 2, KeyError),
        # A task may take its limit away while it runs. The one of the queue stays.
        (without_a_limit, {}, 3, Retry),
        (without_a_limit, {}, 4, Rejected),
        # Without a word of the task itself.
        (fails_with(KeyError()), {}, 3, Retry),
        (fails_with(KeyError()), {}, 4, KeyError),
    ],
)
def test_a_task_is_retried_as_often_as_its_queue_its_class_and_its_call_allow(
    define: Define, body: Any, options: dict[str, Any], retries: int, raised: type[Exception]
) -> None:
    assert type(told_by(define(body, retries=retries, **options))) is raised


def test_the_error_of_used_up_retries_tells_how_many_there_were(define: Define) -> None:
    error = raised_by(define(asks(), retries=4))
    assert str(error) == "job has used its 4 retries"


@pytest.mark.parametrize(
    ("error", "name"), [(KeyError(MARKER), "KeyError"), (None, "MaxRetriesExceededError")]
)
def test_a_failure_that_its_call_makes_final_is_rejected_with_its_class(
    define: Define, error: Exception | None, name: str
) -> None:
    rejected = told_by(define(asks(exc=error, max_retries=1), retries=1))
    assert (rejected.error, rejected.requeue) == (name, False)
    assert name in rejected.reason
    assert MARKER not in rejected.reason


def test_a_limit_named_at_a_call_does_not_outlive_it(define: Define) -> None:
    task = define(lambda self: self.retry(max_retries=99))
    with pytest.raises(Retry):
        task()
    assert task.max_retries == 4
    assert getattr(task, "override_max_retries", None) is None


def test_autoretry_has_the_delay_that_celery_computes(define: Define) -> None:
    options = {"autoretry_for": (KeyError,), "retry_backoff": 3, "retry_jitter": False}
    retry = raised_by(define(fails_with(KeyError()), retries=2, **options))
    assert (retry.when, type(retry.exc)) == (12, KeyError)


# What a failure is


@pytest.mark.parametrize("error", [ValueError(MARKER), OSError(), RecursionError(), MemoryError()])
def test_an_unknown_exception_is_retried(define: Define, error: Exception) -> None:
    retry = raised_by(define(fails_with(error)))
    assert (type(retry), retry.exc, retry.when) == (Retry, error, 1)


@pytest.mark.parametrize("options", [{"retries": 4}, {"acks_late": False}])
def test_without_a_delivery_to_come_an_unknown_exception_is_raised(
    define: Define, options: dict[str, Any]
) -> None:
    error = ValueError(MARKER)
    assert raised_by(define(fails_with(error), **options)) is error


@pytest.mark.parametrize("retries", [0, 4, 9])
def test_a_permanent_error_fails_its_run_and_is_rejected_at_once(
    define: Define, retries: int
) -> None:
    error = Permanent("no such user")
    task = define(fails_with(error), retries, dead_letter_on=(Permanent,))
    # For Celery and the libraries that watch it, it is a failure as any other.
    assert raised_by(task) is error
    assert told_by(task).args == ("no such user", "Permanent", False)


def test_a_run_after_a_permanent_error_is_judged_anew(define: Define) -> None:
    errors = [Permanent("no such user"), KeyError()]
    task = define(lambda _: fails_with(errors.pop(0))(_), dead_letter_on=(Permanent,))
    assert type(told_by(task)) is Rejected
    assert type(told_by(task)) is Retry


@pytest.mark.parametrize("word", [Ignore(), Reject("no", requeue=True), Retry(when=9)])
def test_a_word_of_celery_passes_as_it_is(define: Define, word: Exception) -> None:
    assert raised_by(define(fails_with(word), dead_letter_on=(Exception,))) is word


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_the_end_of_the_process_is_no_failure_of_the_task(
    define: Define, error: BaseException
) -> None:
    assert raised_by(define(fails_with(error))) is error


def test_a_result_is_returned(define: Define) -> None:
    assert define(lambda _: 7)() == 7


def test_outside_a_worker_a_task_fails_as_celery_has_it(celery_app: Celery) -> None:
    error = Permanent()
    job = celery_app.task(shared=False, name="job", dead_letter_on=(Permanent,))(fails_with(error))
    assert raised_by(lambda: job(None)) is error
    eager = job.apply((None,))
    assert (eager.state, eager.result) == ("FAILURE", error)


def test_an_eager_task_runs_its_retries(celery_app: Celery) -> None:
    @celery_app.task(shared=False, bind=True, name="job")
    def job(self: Any) -> int:
        return int(self.request.retries) if self.request.retries == 2 else self.retry(countdown=0)

    assert job.apply().get() == 2


def test_an_eager_task_keeps_the_limit_that_its_call_names(celery_app: Celery) -> None:
    @celery_app.task(shared=False, bind=True, name="job")
    def job(self: Any) -> None:
        self.retry(exc=Permanent(str(self.request.retries)), countdown=0, max_retries=1)

    assert str(job.apply().result) == "1"


# Without acks_late


def test_a_task_whose_message_is_gone_cannot_be_retried(define: Define) -> None:
    task = define(asks(), acks_late=False)
    with pytest.raises(TypeError, match="its message is deleted before it runs"):
        task()


# How many retries


def test_a_task_that_says_nothing_has_the_retries_of_the_queue(define: Define) -> None:
    task = define(nothing)
    assert task.max_retries == 4
    assert task.policy.max_attempts == 5


@pytest.mark.parametrize("max_retries", [0, 3, 4])
def test_a_task_may_have_fewer_retries(define: Define, max_retries: int) -> None:
    task = define(nothing, max_retries=max_retries)
    assert task.max_retries == max_retries
    assert task.policy == Policy(max_attempts=max_retries + 1, max_receive_count=10, backoff_max=1)


@pytest.mark.parametrize(
    ("max_retries", "names"),
    [(5, ("max_retries (5)", "max_attempts (5)")), (None, ("max_retries=None", "max_attempts"))],
)
def test_more_retries_than_the_queue_has_is_refused_at_definition(
    define: Define, max_retries: int | None, names: tuple[str, str]
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        define(nothing, max_retries=max_retries)
    assert all(name in raised.value.message for name in ("Task job", *names))


def test_a_number_of_a_common_base_counts(define: Define) -> None:
    class Patient(Task):
        abstract = True
        max_retries = 1

    task = define(nothing, base=Patient)
    assert (task.max_retries, task.policy.max_attempts) == (1, 2)


def test_tasks_of_celery_itself_keep_their_numbers(celery_app: Celery) -> None:
    task = celery_app.task(shared=False, name="celery.job", max_retries=None)(nothing)
    assert task.max_retries is None


# What is shown


@pytest.mark.parametrize(
    ("args", "kwargs", "shown"),
    [
        ((), {}, "() {0 hidden}"),
        ((MARKER,), {}, "(1 hidden) {0 hidden}"),
        # A name may come from the wire, as a value does.
        ((1, [MARKER]), {"name": MARKER, MARKER: 7}, "(2 hidden) {2 hidden}"),
    ],
)
def test_of_arguments_only_their_number_is_shown(
    define: Define, args: Any, kwargs: Any, shown: str
) -> None:
    assert " ".join(define(nothing).shown(args, kwargs)) == shown


# Arguments that pydantic checks


class Order(BaseModel):
    """What a task with `pydantic=True` takes."""

    number: int


@pytest.fixture
def order(celery_app: Celery) -> Iterator[Callable[[Any], Any]]:
    """Runs a task of an order in the middle of a delivery; what the main process is told."""

    @celery_app.task(shared=False, name="order", pydantic=True)
    def order(order: Order) -> None:
        if order.number < 0:
            Order.model_validate({"number": MARKER})

    order.push_request(id="id-1", retries=0, called_directly=False, is_eager=False)

    def told(given: Any) -> Any:
        task, failure = order, SimpleNamespace()
        try:
            return task(given)
        except Exception as raised:
            task.on_failure(raised, "id-1", (), {}, failure)
            return getattr(failure, "verdict", raised)

    yield told
    order.pop_request()


@pytest.mark.parametrize(
    ("given", "kinds"), [({"number": MARKER}, "int_parsing"), ({MARKER: 1}, "missing")]
)
def test_arguments_that_pydantic_refuses_are_permanent(
    order: Callable[[Any], Any], given: Any, kinds: str
) -> None:
    told = order(given)
    assert type(told) is Rejected
    assert (told.reason, told.error) == (f"the arguments are invalid ({kinds})", "ValidationError")


def test_what_pydantic_refuses_in_a_run_may_be_temporary(order: Callable[[Any], Any]) -> None:
    assert order({"number": 1}) is None
    assert type(order({"number": -1})) is Retry


# What may mean an outage


def cause(error: Exception, by: Exception) -> Callable[[Any], None]:
    def body(_: Any) -> None:
        raise error from by

    return body


def retry_after(error: Exception) -> Callable[[Any], None]:
    def body(task: Any) -> None:
        try:
            raise error
        except OSError as exc:
            task.retry(exc=exc, countdown=7)

    return body


@pytest.mark.parametrize(
    ("body", "delay"),
    [
        (fails_with(TimeoutError()), 1),
        (cause(KeyError(), by=TimeoutError()), 1),
        (retry_after(TimeoutError()), 7),
    ],
    ids=["itself", "as a cause", "in a retry"],
)
def test_an_error_that_may_mean_an_outage_is_told_as_one(
    define: Define, body: Callable[[Any], None], delay: float
) -> None:
    suspected = raised_by(define(body, suspect_on=(OSError,)))
    assert suspected.args == ("TimeoutError", True, delay, False)
    assert suspected.requeue is True


def test_in_the_last_attempt_it_is_told_as_one_too(define: Define) -> None:
    task = define(fails_with(TimeoutError()), retries=4, suspect_on=(OSError,))
    assert raised_by(task).args == ("TimeoutError", False, None, False)


def test_a_delay_of_the_error_itself_goes_with_it(define: Define) -> None:
    class Patient(Task):
        abstract = True

        def retry_delay(self, exc: Exception) -> float:
            return 60

    task = define(fails_with(TimeoutError()), retries=4, suspect_on=(OSError,), base=Patient)
    assert raised_by(task).args == ("TimeoutError", False, 60, False)


@pytest.mark.parametrize("error", [Permanent(), KeyError(), Reject("no", requeue=True)])
def test_other_failures_are_what_they_are(define: Define, error: Exception) -> None:
    options = {"suspect_on": (OSError,), "dead_letter_on": (Permanent,)}
    told = told_by(define(fails_with(error), **options))
    assert isinstance(told, Reject | Retry)
    assert not isinstance(told, Suspected)


def test_a_permanent_error_that_an_outage_caused_is_permanent(define: Define) -> None:
    options = {"suspect_on": (OSError,), "dead_letter_on": (Permanent,)}
    task = define(cause(Permanent("no"), by=TimeoutError()), **options)
    assert type(raised_by(task)) is Permanent
    assert type(told_by(task)) is Rejected


def test_an_error_that_was_dealt_with_means_nothing(define: Define) -> None:
    def body(_: Any) -> None:
        try:
            raise TimeoutError
        except TimeoutError:
            raise KeyError from None

    assert type(raised_by(define(body, suspect_on=(OSError,)))) is Retry


# On the way to the main process


@pytest.mark.parametrize("as_pool_sends_it", [True, False])
@pytest.mark.parametrize(
    "exc",
    [
        Rejected("no such user", "Conflict"),
        Rejected("no such user", "Conflict", True),
        Suspected("TimeoutError", True, 7, True),
    ],
    ids=repr,
)
def test_a_failure_reaches_the_main_process_with_all_it_says(
    exc: Reject, as_pool_sends_it: bool
) -> None:
    try:
        raise exc from Permanent(lambda: None)
    except Reject:
        sent = ExceptionInfo(internal=True)
    sent = sent if as_pool_sends_it else SimpleNamespace(exception=exc)
    received = pickle.loads(pickle.dumps(sent)).exception
    assert type(received) is type(exc)
    assert vars(received) == vars(exc)
