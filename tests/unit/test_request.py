"""Request: what happened is noted before Celery settles, and no event tells what a user typed."""

import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated
from celery import Celery, signals
from celery.app.task import Context
from celery.exceptions import (
    Reject,
    Retry,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.utils.serialization import get_pickleable_exception
from celery.worker import state
from celery.worker.state import revoked
from kombu.transport import virtual

from sqs_broker.limits import BATCH
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.happened import Rejected, Suspected
from sqs_broker.rules.happened import happened as happened_of
from sqs_broker.rules.lease import Lease
from sqs_broker.rules.outcomes import (
    HUNG,
    Discarded,
    Failed,
    Happened,
    Interrupted,
    NotTaken,
    Refused,
    RetryAsked,
    Succeeded,
)
from sqs_broker.rules.suspicion import Suspicion
from sqs_broker.worker.channel import Message
from sqs_broker.worker.request import HandedBack, Request
from sqs_broker.worker.task import Task
from tests.unit.conftest import VISIBILITY_TIMEOUT, MakeDelivery, celery_message

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


class Quoting(Exception):
    """Has a `repr` of its own, as many an exception of a library has."""

    def __repr__(self) -> str:
        return f"{self.args[0]} is not possible"


class Hooked(Task):
    """Says which of its hooks were called."""

    abstract = True
    called: list[str]

    def on_failure(self, *_: Any) -> None:
        self.called.append("on_failure")

    def after_return(self, *_: Any) -> None:
        self.called.append("after_return")


@dataclass
class Eventer:
    """Takes what goes to Flower."""

    enabled: bool = True
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def send(self, type_: str, **fields: Any) -> None:
        self.sent.append((type_, fields))


class Channel(virtual.Channel):
    """Notes which deliveries started, with their limit. It has no connection."""

    def __init__(self) -> None:
        # Both in one: what a request asks is asked of the deliveries.
        self.deliveries = self
        self.begun: list[tuple[str, float | None]] = []
        self.jobs: list[Job] = []
        #: The delivery's lease; None once it has ended.
        self.lease: Lease | None = None
        self.suspicions: list[Suspicion] = []
        self.on_suspicion = self.suspicions.append
        self.pool_has_processes = False
        self.ended: list[tuple[str, Happened]] = []
        self.handed_over: list[str] = []
        #: The tags of runs that have ended before their outcome is decided.
        self.undecided: list[str] = []

    def started(self, tag: str, time_limit: float | None, job: Job) -> Lease | None:
        self.begun.append((tag, time_limit))
        self.jobs.append(job)
        if self.lease is not None:
            self.lease.started(time_limit)
        return self.lease

    def run_ended(self, tag: str) -> None:
        self.undecided.append(tag)

    def holds(self, tag: str) -> bool:
        return self.lease is not None

    def end_unstarted(self, tag: str, happened: Happened, *_: Any) -> bool:
        if self.lease is None or self.lease.is_running:
            return False
        self.ended.append((tag, happened))
        return True

    def hand_over(self, tag: str) -> bool:
        self.handed_over.append(tag)
        return self.holds(tag)


@dataclass
class Run:
    """A task in the middle of a delivery, and what was said of it."""

    request: Request
    message: Message
    eventer: Eventer
    #: How it was settled, and what was on the message by then.
    ended: list[tuple[str, Happened | None]]

    @property
    def settled(self) -> list[str]:
        return [how for how, _ in self.ended]

    @property
    def told(self) -> list[tuple[str, str | None]]:
        """The events and their exceptions, without the event that each reject has beside them."""
        sent = self.eventer.sent
        return [(type_, f.get("exception")) for type_, f in sent if type_ != "task-rejected"]

    @property
    def events(self) -> list[str]:
        return [type_ for type_, _ in self.told]


MakeRun = Callable[..., Run]

BODY = ([], {"name": MARKER}, {})


@pytest.fixture
def make_run(make_delivery: MakeDelivery) -> Iterator[MakeRun]:
    """Makes a run of a task, of three attempts, in the given delivery."""
    app = Celery("tests", task_cls="sqs_broker.worker.task:Task", set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_acks_on_failure=False,
        task_acks_on_timeout=False,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_time_limit=30,
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
        },
    )

    def job() -> None: ...

    app.task(job, shared=False, name="job")
    app.task(job, shared=False, name="dependent", suspect_on=(OSError, TimeLimitExceeded))
    app.task(job, shared=False, name="patient", time_limit=300)
    app.task(job, shared=False, name="warned", time_limit=300, soft_time_limit=200)
    app.task(job, shared=False, name="shared", many=list)
    app.task(job, shared=False, name="early", acks_late=False)
    app.task(job, shared=False, name="hooked", base=Hooked, called=[], suspect_on=(OSError,))

    def make(deliveries: int = 1, task: str = "job", body: Any = BODY, **headers: Any) -> Run:
        text = celery_message(task, body, **headers)
        delivery = make_delivery(body=text, count=deliveries)
        message = Message(decode(delivery, None), channel=Channel())
        message.channel.lease = Lease(delivery, delivery.received_at + VISIBILITY_TIMEOUT)
        eventer, ended = Eventer(), list[tuple[str, Happened | None]]()

        def settle(how: str) -> None:
            ended.append((how, message.happened))

        request = Request(
            message,
            app=app,
            eventer=eventer,
            on_ack=lambda *_: settle("ack"),
            on_reject=lambda _log, _errors, requeue=False: settle(
                "requeue" if requeue else "reject"
            ),
        )
        return Run(request, message, eventer, ended)

    yield make
    # Celery's tables are those of the whole process.
    state.active_requests.clear()
    state.reserved_requests.clear()
    state.requests.clear()


@pytest.mark.parametrize("embed", [{}, None, {"errbacks": None}])
def test_the_pool_is_given_what_was_read_of_the_body_and_no_text(
    make_run: MakeRun, embed: Any
) -> None:
    request = make_run(body=[[], {"name": MARKER}, embed]).request
    assert request.body == [[], {"name": MARKER}, embed]
    assert (request.content_type, request.content_encoding) == (None, None)
    assert (request.args, request.kwargs) == ([], {"name": MARKER})
    # The same objects, which pickle writes once.
    assert request.request_dict["kwargs"] is request.body[1]


@pytest.mark.parametrize("eta", ["2026-01-02T03:04:05Z", "20260102T030405", "9999-12-31"])
def test_a_task_knows_its_eta_and_celery_does_not_wait_for_it(make_run: MakeRun, eta: str) -> None:
    run = make_run(eta=eta)
    assert run.request.eta is None
    assert run.request.request_dict["eta"] == eta
    assert run.message.headers["eta"] == eta


def info_of(exc: BaseException, *, pickled: bool = True) -> ExceptionInfo:
    """The exception as the pool tells of it: prefork pickles, threads and solo do not."""
    try:
        raise exc
    except BaseException:
        info = ExceptionInfo()
    if pickled:
        info.exception = pickle.loads(pickle.dumps(info.exception))
    return info


@pytest.mark.parametrize(
    ("headers", "limit"),
    [
        ({}, 30),
        ({"task": "patient"}, 300),
        ({"timelimit": [7, None]}, 7),
        ({"timelimit": [None, 5]}, 30),
        ({"task": "patient", "timelimit": [7, 5]}, 7),
    ],
)
def test_the_lease_is_told_of_the_start_and_of_the_limit_that_holds(
    make_run: MakeRun, headers: dict[str, Any], limit: float
) -> None:
    run = make_run(**headers)
    run.request.on_accepted(pid=7, time_accepted=monotonic())
    assert run.message.channel.begun == [(run.message.delivery_tag, limit)]
    assert run.events == ["task-started"]


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ({}, [30, None]),
        ({"task": "warned"}, [300, 200]),
        ({"task": "warned", "timelimit": [250, None]}, [250, 200]),
        ({"task": "warned", "timelimit": [250, 100]}, [250, 100]),
        # The hard limit comes first.
        ({"task": "warned", "timelimit": [7, None]}, [7, None]),
    ],
)
def test_a_task_sees_the_time_limits_that_hold_for_its_run(
    make_run: MakeRun, headers: dict[str, Any], limits: list[float | None]
) -> None:
    request = make_run(**headers).request
    seen = Context(request.request_dict)
    assert [seen.time_limit, seen.soft_time_limit] == seen.timelimit == limits
    assert list(request.time_limits) == headers.get("timelimit", [None, None])


@pytest.mark.parametrize(
    ("task", "takes", "is_measured"),
    [("job", 1, True), ("shared", BATCH, True), ("early", 1, False)],
)
def test_a_run_says_how_many_share_it_and_whether_its_end_will_be_known(
    make_run: MakeRun, task: str, takes: int, is_measured: bool
) -> None:
    run = make_run(task=task)
    run.request.on_accepted(pid=7, time_accepted=1_000.0)
    (job,) = run.message.channel.jobs
    assert (job.takes, job.is_measured) == (takes, is_measured)


def test_messages_of_one_job_are_known_by_their_process_and_time(make_run: MakeRun) -> None:
    jobs = []
    for pid, time_accepted in [(7, 1_000.0), (7, 1_000.0), (7, 1_001.0), (8, 1_000.0)]:
        run = make_run(task="shared")
        run.request.on_accepted(pid, time_accepted)
        jobs += run.message.channel.jobs
    assert jobs[0] == jobs[1]
    assert len(set(jobs)) == 3


def of_a_local_class() -> Any:
    class Local(Exception):
        pass

    return get_pickleable_exception(Local(MARKER))


class ArrayMemoryError(MemoryError):
    """As numpy has one."""


@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize("return_ok", [True, False])
@pytest.mark.parametrize(
    ("exc", "settled", "event"),
    [
        (Rejected("gone", "Conflict"), "reject", ("task-failed", "Conflict('gone')")),
        (Reject(MARKER), "reject", ("task-failed", "Reject(...)")),
        (Reject("later", requeue=True), "requeue", None),
        (WorkerLostError(MARKER), "requeue", ("task-retried", "WorkerLostError(...)")),
        # Its event comes with `on_timeout`.
        (TimeLimitExceeded(30), "requeue", None),
        (KeyError(MARKER), "reject", ("task-failed", "KeyError(...)")),
        (Quoting(MARKER), "reject", ("task-failed", "Quoting(...)")),
        # The process that is told of it has memory left, and other messages in flight.
        (MemoryError(MARKER), "reject", ("task-failed", "MemoryError(...)")),
        (ArrayMemoryError(), "reject", ("task-failed", "ArrayMemoryError(...)")),
        # Celery puts this in the place of one that pickle refuses.
        (of_a_local_class(), "reject", ("task-failed", "Local(...)")),
    ],
    ids=repr,
)
def test_a_failure_is_noted_before_it_is_settled_and_its_event_tells_no_text(
    make_run: MakeRun, exc: Exception, settled: str, event: Any, return_ok: bool, pickled: bool
) -> None:
    run = make_run()
    run.request.on_failure(info_of(exc, pickled=pickled), return_ok=return_ok)
    assert run.ended == [(settled, happened_of(exc))]
    assert run.message.policy == run.request.task.policy
    assert run.told == ([event] if event else [])
    assert MARKER not in repr(run.eventer.sent)


def test_a_run_that_was_ended_because_of_another_message_is_released_and_no_attempt(
    make_run: MakeRun,
) -> None:
    # The pool gives the same object to each request of a job.
    info = info_of(Terminated(-9))
    revoked, other = make_run(), make_run()
    revoked.request.on_accepted(pid=7, time_accepted=monotonic())
    revoked.request.terminate(SimpleNamespace(terminate_job=lambda *_: None))
    for run in (other, revoked):
        run.request.on_failure(info)
    assert other.ended == [("requeue", Interrupted("ProcessTerminated", 0))]
    assert other.told == [("task-retried", "ProcessTerminated(...)")]
    assert revoked.ended == [("ack", Discarded("terminated"))]
    assert revoked.events == ["task-started", "task-revoked"]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_run_that_is_cancelled_has_no_end_of_its_own(make_run: MakeRun, is_wanted: bool) -> None:
    run = make_run()
    run.request.on_accepted(pid=7, time_accepted=monotonic())
    run.request.cancel(SimpleNamespace(terminate_job=lambda *_: None), emit_retry=is_wanted)
    run.request.on_failure(info_of(Terminated(-9)))
    assert run.ended == []
    assert run.events == ["task-started", "task-cancelled"]


@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize(
    ("retry", "happened", "told"),
    [
        (
            Retry(exc=KeyError(MARKER), when=7),
            RetryAsked(7.0, "KeyError"),
            "KeyError 7",
        ),
        (
            Retry(exc=Quoting(MARKER), when=7),
            RetryAsked(7.0, "Quoting"),
            "Quoting 7",
        ),
        (Retry(when=0.7), RetryAsked(0.7, "Retry"), "Retry 1"),
    ],
    ids=repr,
)
def test_a_retry_is_noted_and_told_with_its_delay_and_the_class_behind_it(
    make_run: MakeRun, retry: Retry, happened: RetryAsked, told: str, pickled: bool
) -> None:
    run = make_run()
    run.request.on_failure(info_of(retry, pickled=pickled), return_ok=True)
    assert run.ended == [("ack", happened)]
    ((event, fields),) = run.eventer.sent
    error, seconds = told.split()
    assert event == "task-retried"
    # Tools that count failures take what is before the first bracket.
    assert fields["exception"] == f"{error}(...), again in {seconds} s"
    assert fields["traceback"].endswith(" in info_of")
    assert MARKER not in repr(fields)


@pytest.mark.parametrize(("deliveries", "event"), [(9, "task-retried"), (10, "task-failed")])
def test_a_retry_in_the_last_delivery_of_sqs_is_shown_as_the_failure_that_it_is(
    make_run: MakeRun, deliveries: int, event: str
) -> None:
    run = make_run(deliveries)
    run.request.on_retry(info_of(Retry(exc=KeyError(MARKER), when=7)))
    assert run.events == [event]
    ((_, fields),) = run.eventer.sent
    assert "KeyError" in fields["exception"]
    assert MARKER not in repr(fields)


@pytest.mark.parametrize(("deliveries", "event"), [(2, "task-retried"), (3, "task-failed")])
@pytest.mark.parametrize("kind", ["lost", "timeout"])
def test_what_the_pool_ended_is_told_as_retried_until_the_last_attempt(
    make_run: MakeRun, kind: str, deliveries: int, event: str
) -> None:
    run = make_run(deliveries)
    if kind == "lost":
        run.request.on_failure(info_of(WorkerLostError(MARKER)))
    else:
        # The pool calls both, in this order (billiard 4.3 pool.py).
        run.request.on_failure(info_of(TimeLimitExceeded(30)))
        run.request.on_timeout(soft=False, timeout=30)
    error = "WorkerLostError" if kind == "lost" else "TimeLimitExceeded"
    assert run.told == [(event, f"{error}(...)")]
    assert MARKER not in repr(run.eventer.sent)
    assert run.settled == ["requeue"]


@pytest.fixture
def reported() -> Iterator[list[str]]:
    """The errors that Celery's signal for failures brings."""
    errors: list[str] = []

    def note(exception: Any, **_: Any) -> None:
        errors.append(getattr(exception, "error", type(exception).__name__))

    signals.task_failure.connect(note)
    yield errors
    signals.task_failure.disconnect(note)


@pytest.mark.parametrize(("deliveries", "is_final"), [(2, False), (3, True)])
@pytest.mark.parametrize("kind", ["lost", "timeout", "suspected"])
def test_a_last_failure_that_its_process_could_not_report_calls_the_hooks(
    make_run: MakeRun, reported: list[str], kind: str, deliveries: int, is_final: bool
) -> None:
    run = make_run(deliveries, task="hooked")
    if kind == "lost":
        run.request.on_failure(info_of(WorkerLostError(MARKER)))
    elif kind == "timeout":
        run.request.on_failure(info_of(TimeLimitExceeded(30)))
        run.request.on_timeout(soft=False, timeout=30)
    else:
        suspected(run, Suspected("OSError", not is_final, None)).dismiss()
    error = {"lost": "WorkerLostError", "timeout": "TimeLimitExceeded", "suspected": "OSError"}
    assert run.request.task.called == (["on_failure", "after_return"] if is_final else [])
    assert reported == ([error[kind]] if is_final else [])


def test_a_last_failure_that_only_the_main_process_knows_is_one_error_in_the_log(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    suspected(make_run(3, task="hooked"), Suspected("OSError", False, None)).dismiss()
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    facts = vars(record)
    assert (facts["event"], facts["error"], facts["task"]) == ("task.failed", "OSError", "hooked")


def test_a_retry_that_sqs_does_not_allow_calls_the_hooks_of_a_failure(
    make_run: MakeRun, reported: list[str]
) -> None:
    run = make_run(10, task="hooked")
    run.request.on_failure(info_of(Retry(exc=KeyError(MARKER), when=7)), return_ok=True)
    assert run.request.task.called == ["on_failure", "after_return"]
    assert reported == ["KeyError"]


def test_a_hook_that_fails_here_keeps_no_message(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(3, task="hooked")
    run.request.task.called = None
    run.request.on_failure(info_of(WorkerLostError(MARKER)))
    assert run.settled == ["requeue"]
    assert vars(caplog.records[-1])["event"] == "task.unreported"


def test_the_verdict_of_the_process_counts_and_the_exception_is_the_tasks(
    make_run: MakeRun, reported: list[str]
) -> None:
    run, failure = make_run(task="hooked"), info_of(KeyError(MARKER))
    failure.verdict = Rejected("no such user", "KeyError")
    run.request.on_failure(failure, return_ok=True)
    assert run.ended == [("reject", Refused("no such user", "KeyError"))]
    assert run.told == [("task-failed", "KeyError('no such user')")]
    # The process has called the hooks, and sent the signal.
    assert (run.request.task.called, reported) == ([], [])


def test_a_soft_limit_ends_nothing(make_run: MakeRun) -> None:
    run = make_run()
    run.request.on_timeout(soft=True, timeout=25)
    assert (run.message.happened, run.settled, run.eventer.sent) == (None, [], [])


def test_the_first_word_on_a_message_counts(make_run: MakeRun) -> None:
    run = make_run()
    run.message.note(Refused("first"))
    run.message.note(Failed("KeyError", "second"))
    assert run.message.happened == Refused("first")


@pytest.mark.parametrize(
    ("expires_in", "expired"),
    [(None, False), (timedelta(minutes=1), False), (timedelta(minutes=-1), True)],
)
@pytest.mark.parametrize("aware", [True, False])
def test_an_expired_message_expires_and_no_other_one_of_its_id(
    make_run: MakeRun, expires_in: timedelta | None, expired: bool, aware: bool
) -> None:
    # Celery revokes the id, so that a later message of it would be discarded.
    expires = expires_in and datetime.now(UTC) + expires_in
    text = expires and (expires if aware else expires.replace(tzinfo=None)).isoformat()
    assert make_run(expires=text).request.maybe_expire() is expired
    assert "id-1" not in revoked


def test_a_message_that_has_expired_or_was_revoked_is_no_success(make_run: MakeRun) -> None:
    late = make_run(expires=(datetime.now(UTC) - timedelta(seconds=9)).isoformat())
    assert late.request.revoked()
    assert late.message.happened == Discarded("expired")

    revoked.add("id-1")
    try:
        stopped = make_run()
        assert stopped.request.revoked()
    finally:
        revoked.discard("id-1")
    assert stopped.message.happened == Discarded("revoked")


# Events


def fails_deep_down() -> None:
    try:
        raise KeyError(f"{MARKER}\n{MARKER}")
    except KeyError as exc:
        raise ValueError(f"{MARKER}\n  {MARKER}") from exc


def test_an_event_tells_the_class_of_an_exception_and_the_frames_of_its_traceback(
    make_run: MakeRun,
) -> None:
    try:
        fails_deep_down()
    except ValueError as exc:
        exc.add_note(MARKER)
        info = ExceptionInfo()
    run = make_run()
    text = repr(KeyError(MARKER))
    run.request.send_event("task-failed", exception=text, traceback=info.traceback)
    ((_, fields),) = run.eventer.sent
    assert fields["exception"] == "KeyError(...)"
    frames = fields["traceback"].splitlines()
    assert MARKER in info.traceback
    assert len(frames) >= 3
    for frame in frames:
        assert frame.startswith('  File "')
        assert MARKER not in frame


@pytest.mark.parametrize("safe", [True, False])
def test_inspect_shows_no_argument_that_is_hidden(make_run: MakeRun, safe: bool) -> None:
    told = make_run(kwargsrepr="{name: hidden}").request.info(safe=safe)
    assert (told["id"], told["name"], told["kwargs"]) == ("id-1", "job", "{name: hidden}")
    assert MARKER not in repr(told)


def test_other_fields_of_an_event_are_sent_as_they_are(make_run: MakeRun) -> None:
    run = make_run()
    run.request.send_event("task-succeeded", result="'registered'", runtime=0.5)
    ((event, fields),) = run.eventer.sent
    assert event == "task-succeeded"
    assert (fields["uuid"], fields["result"], fields["runtime"]) == ("id-1", "'registered'", 0.5)


def failing(fault: Exception) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    return fail


@pytest.mark.parametrize("fault", [RuntimeError(MARKER), MemoryError()], ids=repr)
def test_what_celery_cannot_report_is_settled_and_logged_without_its_text(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    run = make_run()
    run.request.task.backend = SimpleNamespace(mark_as_failure=failing(fault))
    run.request.on_failure(info_of(Rejected("gone", "Conflict")), return_ok=True)
    assert run.settled == ["reject"]
    (record,) = caplog.records
    facts = vars(record)
    assert (facts["event"], facts["error"]) == ("task.unreported", type(fault).__name__)
    assert (facts["task"], facts["message_id"]) == ("job", "id-1")
    assert MARKER not in caplog.text


def test_an_event_that_cannot_be_sent_costs_the_event_and_not_the_message(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    run.eventer.send = failing(RuntimeError(MARKER))  # type: ignore[method-assign]
    run.request.on_failure(info_of(KeyError(MARKER)), return_ok=True)
    assert run.settled == ["reject"]
    assert {vars(record)["event"] for record in caplog.records} == {"event.failed"}
    assert MARKER not in caplog.text


# Where an outage may be the cause


def suspected(run: Run, exc: Suspected) -> Suspicion:
    """The suspicion that a run which failed leads to."""
    run.request.on_accepted(1, monotonic())
    run.request.on_failure(info_of(exc))
    (suspicion,) = run.message.channel.suspicions
    return suspicion


def test_a_failure_that_an_outage_may_have_caused_waits_for_the_verdict(make_run: MakeRun) -> None:
    before = monotonic()
    run = make_run()
    suspicion = suspected(run, Suspected("ConnectionError", True, 7))
    assert suspicion.error == "ConnectionError"
    assert before <= suspicion.started_at <= monotonic()
    assert (run.message.happened, run.settled, run.events) == (None, [], ["task-started"])
    # Nobody must think meanwhile that it hangs.
    assert run.message.channel.undecided == [run.message.delivery_tag]


@pytest.mark.parametrize(("task", "may_be_outage"), [("dependent", True), ("job", False)])
def test_what_must_be_known_of_a_run_that_may_never_end_is_known_from_its_start(
    make_run: MakeRun, task: str, may_be_outage: bool
) -> None:
    run = make_run(task=task)
    run.request.on_accepted(1, monotonic())
    assert run.message.policy is run.request.task.policy
    assert run.message.is_suspect is may_be_outage


@pytest.mark.parametrize(
    ("deliveries", "delay", "released_after"),
    [(1, 60.5, 61), (1, 7, 25), (1, None, 25), (3, 7, 25), (10, 7, 25)],
)
def test_a_failure_of_an_outage_is_none_and_its_task_runs_no_sooner_than_it_wants_to(
    make_run: MakeRun, deliveries: int, delay: float | None, released_after: int
) -> None:
    run = make_run(deliveries)
    suspected(run, Suspected("ConnectionError", False, delay)).confirm(25)
    assert run.ended == [("requeue", Interrupted("ConnectionError", released_after))]
    assert run.events == ["task-started", "task-retried"]


@pytest.mark.parametrize(
    ("deliveries", "is_retry", "settled", "event", "told"),
    [
        (1, True, "requeue", "task-retried", "ConnectionError(...)"),
        (3, False, "reject", "task-failed", "ConnectionError(...)"),
    ],
)
def test_a_failure_without_an_outage_is_the_retry_or_the_last_failure_that_it_was(
    make_run: MakeRun, deliveries: int, is_retry: bool, settled: str, event: str, told: str
) -> None:
    run, exc = make_run(deliveries), Suspected("ConnectionError", is_retry, 7)
    suspected(run, exc).dismiss()
    assert run.ended == [(settled, happened_of(exc))]
    assert run.told == [("task-started", None), (event, told)]


@pytest.mark.parametrize("task", ["dependent", "job"])
def test_a_hard_time_limit_is_a_suspicion_where_the_task_says_so(
    make_run: MakeRun, task: str
) -> None:
    run = make_run(task=task)
    run.request.on_accepted(1, monotonic())
    run.request.on_failure(info_of(TimeLimitExceeded(30)))
    run.request.on_timeout(soft=False, timeout=30)
    if task == "job":
        assert run.message.channel.suspicions == []
        assert run.settled == ["requeue"]
        return
    assert (run.settled, run.events) == ([], ["task-started"])
    (suspicion,) = run.message.channel.suspicions
    suspicion.confirm(25)
    assert run.message.happened == Interrupted("TimeLimitExceeded", 25)


def test_a_task_whose_message_was_handed_back_does_not_start(make_run: MakeRun) -> None:
    run = make_run()
    state.task_reserved(run.request)
    assert not run.request.revoked()
    run.message.channel.lease = None
    assert run.request.revoked()
    with pytest.raises(HandedBack):
        run.request.on_accepted(1, monotonic())
    # The channel knows that it has ended: the ack makes kombu forget it.
    assert (run.settled, run.eventer.sent) == (["ack"], [])
    assert run.request not in state.reserved_requests


# Where the pool does not take it


@pytest.mark.parametrize(
    ("fault", "happened"),
    [
        (RuntimeError("can't start new thread"), NotTaken("RuntimeError")),
        (
            KeyError(MARKER),
            Failed("KeyError", "the worker could not accept the message (KeyError)"),
        ),
    ],
    ids=repr,
)
def test_a_task_that_the_pool_does_not_take_has_not_started(
    make_run: MakeRun, fault: Exception, happened: Happened
) -> None:
    run = make_run()
    state.task_reserved(run.request)
    run.request.not_taken(fault)
    assert run.message.channel.ended == [(run.message.delivery_tag, happened)]
    assert run.request not in state.reserved_requests
    assert MARKER not in repr(run.eventer.sent)


def test_a_task_that_a_thread_has_found_even_so_is_left_alone(make_run: MakeRun) -> None:
    # An executor queues what it then has no thread for; one that becomes free may be there first.
    run = make_run()
    thread = threading.Thread(target=run.request.on_accepted, args=(1, monotonic()))
    thread.start()
    thread.join()
    run.request.not_taken(RuntimeError("can't start new thread"))
    assert (run.message.channel.ended, run.message.happened, run.settled) == ([], None, [])
    assert run.request in state.active_requests


def test_a_task_that_was_handed_back_meanwhile_has_ended_already(make_run: MakeRun) -> None:
    run = make_run()
    run.request.not_taken(HandedBack("id-1"))
    assert (run.message.channel.ended, run.ended) == ([], [])


def test_what_breaks_off_a_task_that_ran_in_this_thread_is_its_failure(make_run: MakeRun) -> None:
    run = make_run()
    run.request.on_accepted(1, monotonic())
    try:
        raise MemoryError
    except MemoryError as exc:
        run.request.not_taken(exc)
    assert run.ended == [("reject", happened_of(MemoryError()))]


def test_a_task_is_handed_over_where_it_goes_to_the_pool_and_not_on_arrival(
    make_run: MakeRun,
) -> None:
    run = make_run()
    assert not run.request.revoked()
    assert run.message.channel.handed_over == []
    state.task_reserved(run.request)
    assert not run.request.revoked()
    assert run.message.channel.handed_over == [run.message.delivery_tag]
    state.task_ready(run.request)


def test_what_a_process_has_started_goes_on_though_its_delivery_has_ended(
    make_run: MakeRun,
) -> None:
    # An exception from here would end the worker (billiard 4.3 pool.py, `ApplyResult._ack`).
    run = make_run()
    run.message.channel.lease = None
    run.message.channel.pool_has_processes = True
    run.request.on_accepted(1, monotonic())
    assert run.request in state.active_requests
    assert run.events == ["task-started"]
    state.task_ready(run.request)


def test_a_request_that_shares_a_job_is_ended_with_it(make_run: MakeRun) -> None:
    class Job:
        def __init__(self) -> None:
            self.ended: list[Any] = []

        def terminate(self, signal: Any) -> None:
            self.ended.append(signal)

    run, job = make_run(), Job()
    run.request.shares(job)
    run.request.cancel(None)
    assert len(job.ended) == 1


def test_a_task_is_past_its_hard_limit_from_its_start_on(make_run: MakeRun) -> None:
    run = make_run(timelimit=[7, None])
    assert run.request.overrun() == float("-inf")
    run.request.on_accepted(1, monotonic())
    run.message.channel.lease.started_at -= 20
    assert run.request.overrun() == pytest.approx(13, abs=1)


@pytest.mark.parametrize(
    ("deliveries", "what", "event"),
    [
        (1, HUNG, ("task-retried", "TimeLimitExceeded")),
        (3, HUNG, ("task-failed", "TimeLimitExceeded")),
        (3, Interrupted("TimeLimitExceeded", 7), ("task-retried", "TimeLimitExceeded")),
    ],
)
def test_of_a_task_that_hangs_one_event_is_sent_and_none_of_its_end(
    make_run: MakeRun, deliveries: int, what: Happened, event: tuple[str, str]
) -> None:
    run = make_run(deliveries)
    run.request.on_accepted(1, monotonic())
    run.request.given_up(what)
    run.request.on_success((False, "result", 0.1))
    assert run.told == [("task-started", None), event]


# Pools without processes


def test_the_success_of_a_run_is_known_before_the_event_loop_acknowledges(
    make_run: MakeRun,
) -> None:
    run = make_run()
    run.request.on_accepted(1, 0.0)
    seen: list[Any] = []
    acknowledge = run.request.acknowledge
    run.request.acknowledge = lambda: (seen.append(run.message.happened), acknowledge())
    run.request.on_success((False, "result", 0.1))
    assert seen == [Succeeded()]


def test_a_run_that_ended_its_thread_has_failed(make_run: MakeRun) -> None:
    # Celery reports it as a success, whose result is this (celery 5.7 concurrency/base.py).
    run = make_run()
    run.request.on_success(info_of(WorkerLostError("SystemExit(2)")))
    assert isinstance(run.message.happened, Failed)
    assert run.settled == ["requeue"]


def test_a_task_whose_message_is_deleted_before_it_runs_is_never_retried(
    make_run: MakeRun,
) -> None:
    # The ack waits for the event loop, which in the solo pool runs the task first.
    run = make_run(task="early")
    run.request.on_accepted(1, 0.0)
    run.request.on_failure(info_of(ValueError(MARKER)))
    assert run.message.happened == Succeeded()
