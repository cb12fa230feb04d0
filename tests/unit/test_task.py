"""Task: a retry is the same message later, and each failure is a retry or a dead letter."""

import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry

from sqs_broker.errors import ConfigurationError
from sqs_broker.rules.happened import Rejected, Suspected
from sqs_broker.rules.policy import Policy
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


# Asking for a retry


@pytest.mark.parametrize(
    ("asked", "delay"),
    [({}, 1), ({"countdown": 7}, 7), ({"countdown": 0}, 0), ({"countdown": 0.5}, 0.5)],
)
def test_a_retry_raises_with_the_delay_in_seconds(
    define: Define, asked: dict[str, Any], delay: float
) -> None:
    task = define(lambda self: self.retry(**asked))
    with pytest.raises(Retry) as raised:
        task()
    assert raised.value.when == delay


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=9)), None])
@pytest.mark.parametrize(
    ("due_in", "delay"), [(timedelta(minutes=5), 300), (timedelta(minutes=-5), 0)]
)
def test_a_time_becomes_the_seconds_until_then(
    define: Define, zone: tzinfo | None, due_in: timedelta, delay: float
) -> None:
    eta = datetime.now(UTC) + due_in
    eta = eta.astimezone(zone) if zone else eta.replace(tzinfo=None)
    task = define(lambda self: self.retry(eta=eta))
    with pytest.raises(Retry) as raised:
        task()
    assert delay - 60 < raised.value.when <= delay


@pytest.mark.parametrize(("retries", "longest"), [(0, 2), (1, 4), (3, 16)])
def test_the_backoff_is_that_of_the_delivery(
    celery_app: Celery,
    define: Define,
    monkeypatch: pytest.MonkeyPatch,
    retries: int,
    longest: float,
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    celery_app.conf.broker_transport_options["backoff_max"] = 600
    task = define(lambda self: self.retry(), retries=retries)
    with pytest.raises(Retry) as raised:
        task()
    assert raised.value.when == longest


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
    task = define(lambda self: self.retry(**options), dead_letter_on=(TypeError,))
    with pytest.raises(Rejected, match="takes no args, kwargs, throw=False or options"):
        task()


def test_a_retry_beyond_the_last_raises_the_error_behind_it(define: Define) -> None:
    task = define(lambda self: self.retry(exc=KeyError("k")), retries=4)
    with pytest.raises(KeyError):
        task()


def test_a_retry_beyond_the_last_raises_without_an_error_too(define: Define) -> None:
    task = define(lambda self: self.retry(), retries=4)
    with pytest.raises(MaxRetriesExceededError, match="job has used its 4 retries"):
        task()


def test_a_call_may_name_a_lower_limit(define: Define) -> None:
    with pytest.raises(Retry):
        define(lambda self: self.retry(exc=KeyError(), max_retries=1), retries=0)()


@pytest.mark.parametrize("error", [KeyError(MARKER), None])
def test_a_failure_after_the_last_retry_that_its_call_allows_is_final(
    define: Define, error: Exception | None
) -> None:
    task = define(lambda self: self.retry(exc=error, max_retries=1), retries=1)
    with pytest.raises(Rejected) as raised:
        task()
    name = "KeyError" if error else "MaxRetriesExceededError"
    assert (raised.value.error, raised.value.requeue) == (name, False)
    assert name in raised.value.reason
    assert MARKER not in raised.value.reason


@pytest.mark.parametrize(("retries", "raised"), [(1, Retry), (2, Rejected)])
def test_autoretry_may_name_a_lower_limit(
    define: Define, retries: int, raised: type[Exception]
) -> None:
    options = {"autoretry_for": (KeyError,), "retry_kwargs": {"max_retries": 2}}
    with pytest.raises(raised):
        define(fails_with(KeyError()), retries=retries, **options)()


def asks_for_more(self: Any) -> None:
    self.retry(countdown=1, max_retries=100)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (asks_for_more, {}),
        (
            fails_with(KeyError()),
            {"autoretry_for": (KeyError,), "retry_kwargs": {"max_retries": 100}},
        ),
    ],
    ids=["retry", "autoretry"],
)
@pytest.mark.parametrize(
    ("retries", "raised"), [(3, Retry), (4, (KeyError, MaxRetriesExceededError))]
)
def test_no_call_may_ask_for_more_retries_than_the_queue_allows(
    define: Define, body: Any, options: dict[str, Any], retries: int, raised: Any
) -> None:
    with pytest.raises(raised):
        define(body, retries=retries, **options)()


def test_a_call_may_ask_for_more_retries_than_its_task_has(define: Define) -> None:
    def body(self: Any) -> None:
        self.retry(max_retries=3)

    with pytest.raises(Retry):
        define(body, retries=2, max_retries=1)()


def test_a_limit_named_at_a_call_does_not_outlive_it(define: Define) -> None:
    task = define(lambda self: self.retry(max_retries=99))
    with pytest.raises(Retry):
        task()
    assert task.max_retries == 4
    assert getattr(task, "override_max_retries", None) is None


def test_autoretry_retries_the_same_message(define: Define) -> None:
    options = {"autoretry_for": (KeyError,), "retry_backoff": 3, "retry_jitter": False}
    task = define(fails_with(KeyError()), retries=2, **options)
    with pytest.raises(Retry) as raised:
        task()
    assert raised.value.when == 12
    assert isinstance(raised.value.exc, KeyError)


def test_autoretry_ends_with_the_error_itself(define: Define) -> None:
    options = {"autoretry_for": (KeyError,), "max_retries": 2}
    task = define(fails_with(KeyError()), retries=2, **options)
    with pytest.raises(KeyError):
        task()


# What a failure is


@pytest.mark.parametrize("error", [ValueError(MARKER), OSError(), RecursionError(), MemoryError()])
def test_an_unknown_exception_is_retried(define: Define, error: Exception) -> None:
    with pytest.raises(Retry) as raised:
        define(fails_with(error))()
    assert raised.value.exc is error
    assert raised.value.when == 1


def test_an_unknown_exception_in_the_last_attempt_is_raised(define: Define) -> None:
    error = ValueError(MARKER)
    with pytest.raises(ValueError, match=MARKER) as raised:
        define(fails_with(error), retries=4)()
    assert raised.value is error


@pytest.mark.parametrize("retries", [0, 4, 9])
def test_a_permanent_error_is_rejected_at_once(define: Define, retries: int) -> None:
    task = define(fails_with(Permanent("no such user")), retries, dead_letter_on=(Permanent,))
    with pytest.raises(Rejected) as raised:
        task()
    assert raised.value.reason == "no such user"
    assert raised.value.error == "Permanent"
    assert raised.value.requeue is False


@pytest.mark.parametrize("word", [Ignore(), Reject("no", requeue=True), Retry(when=9)])
def test_a_word_of_celery_passes_as_it_is(define: Define, word: Exception) -> None:
    with pytest.raises(type(word)) as raised:
        define(fails_with(word), dead_letter_on=(Exception,))()
    assert raised.value is word


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_the_end_of_the_process_is_no_failure_of_the_task(
    define: Define, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        define(fails_with(error))()


def test_a_result_is_returned(define: Define) -> None:
    assert define(lambda _: 7)() == 7


def test_a_direct_call_raises_what_the_function_raises(celery_app: Celery) -> None:
    job = celery_app.task(shared=False, name="job", dead_letter_on=(Permanent,))(
        fails_with(Permanent())
    )
    with pytest.raises(Permanent):
        job(None)


def test_an_eager_task_fails_as_celery_has_it(celery_app: Celery) -> None:
    job = celery_app.task(shared=False, name="job", dead_letter_on=(Permanent,))(
        fails_with(Permanent())
    )
    result = job.apply((None,))
    assert result.state == "FAILURE"
    assert isinstance(result.result, Permanent)


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
    task = define(lambda self: self.retry(), acks_late=False)
    with pytest.raises(TypeError, match="its message is deleted before it runs"):
        task()


def test_a_failure_of_a_task_whose_message_is_gone_is_raised(define: Define) -> None:
    error = ValueError(MARKER)
    with pytest.raises(ValueError, match=MARKER) as raised:
        define(fails_with(error), acks_late=False)()
    assert raised.value is error


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


def test_a_number_of_a_common_base_counts(celery_app: Celery) -> None:
    from sqs_broker.worker.task import Task

    class Patient(Task):
        abstract = True
        max_retries = 1

    task = celery_app.task(shared=False, base=Patient, name="job")(nothing)
    assert task.max_retries == 1
    assert task.policy.max_attempts == 2


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
    with pytest.raises(Suspected) as raised:
        define(body, suspect_on=(OSError,))()
    assert raised.value.error == "TimeoutError"
    assert (raised.value.is_retry, raised.value.delay, raised.value.requeue) == (True, delay, True)


def test_in_the_last_attempt_it_is_told_as_one_too(define: Define) -> None:
    with pytest.raises(Suspected) as raised:
        define(fails_with(TimeoutError()), retries=4, suspect_on=(OSError,))()
    assert raised.value.is_retry is False


def test_a_delay_of_the_error_itself_goes_with_it(
    define: Define, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = define(fails_with(TimeoutError()), retries=4, suspect_on=(OSError,))
    monkeypatch.setattr(Task, "retry_delay", lambda _self, exc: 60)
    with pytest.raises(Suspected) as raised:
        task()
    assert (raised.value.is_retry, raised.value.delay) == (False, 60)


@pytest.mark.parametrize("error", [Permanent(), KeyError(), Reject("no", requeue=True)])
def test_other_failures_are_what_they_are(define: Define, error: Exception) -> None:
    task = define(fails_with(error), suspect_on=(OSError,), dead_letter_on=(Permanent,))
    with pytest.raises((Reject, Retry)) as raised:
        task()
    assert not isinstance(raised.value, Suspected)


def test_an_error_that_was_dealt_with_means_nothing(define: Define) -> None:
    def body(_: Any) -> None:
        try:
            raise TimeoutError
        except TimeoutError:
            raise KeyError from None

    with pytest.raises(Retry):
        define(body, suspect_on=(OSError,))()


# On the way to the main process


@pytest.mark.parametrize("requeue", [True, False])
def test_a_rejection_survives_pickle(requeue: bool) -> None:
    copy = pickle.loads(pickle.dumps(Rejected("no such user", "Conflict", requeue)))
    assert isinstance(copy, Rejected)
    assert (copy.reason, copy.error, copy.requeue) == ("no such user", "Conflict", requeue)


def test_a_suspicion_reaches_the_main_process_as_the_pool_sends_it() -> None:
    try:
        raise Suspected("TimeoutError", True, 7) from Permanent(lambda: None)
    except Suspected:
        sent = ExceptionInfo(internal=True)
    received = pickle.loads(pickle.dumps(sent)).exception
    assert isinstance(received, Suspected)
    assert (received.error, received.is_retry, received.delay) == ("TimeoutError", True, 7)


def test_a_rejection_reaches_the_main_process_as_the_pool_sends_it() -> None:
    try:
        raise Rejected("no such user", "Conflict") from Permanent(lambda: None)
    except Rejected:
        sent = ExceptionInfo(internal=True)
    received = pickle.loads(pickle.dumps(sent)).exception
    assert isinstance(received, Rejected)
    assert (received.reason, received.error) == ("no such user", "Conflict")


def test_a_task_whose_message_is_deleted_before_it_runs_cannot_retry(
    define: Callable[..., Any],
) -> None:
    task = define(lambda task: task.retry(), acks_late=False)

    with pytest.raises(TypeError, match="acks_late"):
        task()


def test_the_failure_of_such_a_task_stays_its_own(define: Callable[..., Any]) -> None:
    def fail(_: Any) -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError):
        define(fail, acks_late=False)()
