"""Each figure moves by what it counts, and by nothing else."""

import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.utils.saferepr import saferepr
from celery.worker import state
from kombu.asynchronous import set_event_loop

from app.messages import Increment
from app.metrics import class_of
from sqs_broker import install
from sqs_broker.observers import instruments as of
from sqs_broker.observers import steps
from sqs_broker.observers.figures import MOST_NEW, MOST_SERIES, OTHER, Figures, Histogram
from sqs_broker.observers.instruments import ALL, OF_QUEUES, Kind
from sqs_broker.observers.metering import Metering
from sqs_broker.rules.attempts import Record
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import (
    Copied,
    DeadLetter,
    Discarded,
    Done,
    Failed,
    Happened,
    Interrupted,
    NotDue,
    NotStarted,
    NotTaken,
    Outcome,
    Postponed,
    Refused,
    Released,
    Retry,
    RetryAsked,
    Succeeded,
    UnknownTask,
)
from sqs_broker.testing import Clock, FakeSqs
from sqs_broker.worker.metrics import MEASURED, Readings
from tests.unit.conftest import MakeDelivery
from tests.unit.counted import Series, counted
from tests.unit.in_memory import InMemoryWorker, Outcomes, new_sqs
from tests.unit.test_metrics_docs import PAGE
from tests.unit.test_observing import Pool

SENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

#: When the message was sent, and by the other clock received, started and ended.
NOW, RECEIVED, STARTED, ENDED = SENT.timestamp() + 100, 1000.0, 1002.0, 1005.0

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"

Step = Callable[[Metering, Callable[..., Facts]], None]


@pytest.fixture
def figures() -> Figures:
    return Figures()


@pytest.fixture
def metering(figures: Figures) -> Metering:
    return Metering(
        [figures],
        lambda task, result: "registered" if "registered" in result else None,
        clock=lambda: ENDED,
        wall_clock=lambda: NOW,
    )


@pytest.fixture
def message(make_delivery: MakeDelivery) -> Callable[..., Facts]:
    def make(*, started: bool = True, **changes: Any) -> Facts:
        given = {"enqueued_at": SENT, "received_at": RECEIVED, "body": MARKER} | changes
        delivery = make_delivery(**given)
        return Facts(delivery, "register", MARKER, None, STARTED if started else None)

    return make


def ends(happened: Happened, outcome: Outcome, **changes: Any) -> Step:
    return lambda metering, message: metering.ended(message(**changes), happened, outcome)


def failed(error: str = "KeyError") -> Failed:
    return Failed(error, MARKER)


def run(outcome: str, error: str = "", attempt: float = 1) -> dict[Series, float]:
    """What each end of a run moves."""
    return {(of.RUN, ("jobs", "register", error)): 3.0, (of.ATTEMPT, ("jobs", outcome)): attempt}


RAN = {"record": Record()}

CASES: dict[str, tuple[Step, dict[Series, float]]] = {
    "received": (
        lambda metering, message: metering.received(message()),
        # It has been in the worker for five seconds.
        {(of.IN_QUEUE, ("jobs",)): 95.0},
    ),
    "received again": (lambda metering, message: metering.received(message(count=2)), {}),
    "started": (
        lambda metering, message: metering.started(message()),
        {(of.STARTED, ("jobs", "register")): 1, (of.IN_WORKER, ("jobs",)): 2.0},
    ),
    "done": (
        ends(Succeeded("7"), Done()),
        run("done")
        | {(of.DONE, ("jobs", "register", "succeeded")): 1, (of.WHOLE, ("jobs",)): 100.0},
    ),
    "done with a result that has a class": (
        ends(Succeeded("{'result': 'registered'}"), Done()),
        run("done")
        | {(of.DONE, ("jobs", "register", "registered")): 1, (of.WHOLE, ("jobs",)): 100.0},
    ),
    "done though nobody saw it start": (
        ends(Succeeded(), Done(), started=False),
        {(of.DONE, ("jobs", "register", "succeeded")): 1, (of.WHOLE, ("jobs",)): 100.0},
    ),
    "done in the second attempt": (
        ends(Succeeded(), Done(), count=2),
        run("done", attempt=2)
        | {(of.DONE, ("jobs", "register", "succeeded")): 1, (of.WHOLE, ("jobs",)): 100.0},
    ),
    "revoked": (
        ends(Discarded("revoked"), Done(), started=False),
        {(of.DISCARDED, ("jobs", "revoked")): 1},
    ),
    "terminated": (
        ends(Discarded("terminated"), Done()),
        run("done", "terminated") | {(of.DISCARDED, ("jobs", "terminated")): 1},
    ),
    "expired": (
        ends(Discarded("expired"), Done(), started=False),
        {(of.DISCARDED, ("jobs", "expired")): 1},
    ),
    "copied before": (ends(Copied(), Done(), started=False), {}),
    "retried": (
        ends(failed(), Retry(5, "KeyError")),
        run("retry", "KeyError") | {(of.RETRIED, ("jobs", "KeyError")): 1},
    ),
    "retried as a copy": (
        ends(RetryAsked(5, "KeyError"), Postponed(5, "KeyError", is_again=True)),
        run("retry", "KeyError") | {(of.RETRIED, ("jobs", "KeyError")): 1},
    ),
    "dead-lettered after the last attempt": (
        ends(failed(), DeadLetter(MARKER, "KeyError"), count=3),
        run("dead-letter", "KeyError", 3) | {(of.DEAD_LETTERED, ("jobs", "failed", "KeyError")): 1},
    ),
    "dead-lettered because of a conflict": (
        ends(Refused(MARKER, "Conflict"), DeadLetter(MARKER, "Conflict")),
        run("dead-letter", "Conflict") | {(of.DEAD_LETTERED, ("jobs", "refused", "Conflict")): 1},
    ),
    "dead-lettered because it may not be retried again": (
        ends(RetryAsked(5, "KeyError"), DeadLetter(MARKER, "KeyError")),
        run("dead-letter", "KeyError")
        | {(of.DEAD_LETTERED, ("jobs", "retry asked", "KeyError")): 1},
    ),
    "dead-lettered without a run": (
        ends(UnknownTask(MARKER), DeadLetter(MARKER, "KeyError"), started=False),
        {(of.DEAD_LETTERED, ("jobs", "unknown task", "KeyError")): 1},
    ),
    "released before its start": (
        ends(NotStarted(3), Released(3), started=False),
        {(of.RELEASED, ("jobs", "not started")): 1},
    ),
    "released for want of memory": (
        ends(NotTaken("MemoryError"), Released(3), started=False),
        {(of.RELEASED, ("jobs", "no resources")): 1},
    ),
    "released because the worker stops": (
        ends(Interrupted("WorkerShutdown", 3), Released(3)),
        run("released", "WorkerShutdown") | {(of.RELEASED, ("jobs", "interrupted")): 1},
    ),
    "released because another worker may know its task": (
        ends(UnknownTask(MARKER), Released(3), started=False),
        {(of.RELEASED, ("jobs", "unknown task")): 1},
    ),
    "postponed": (
        ends(NotDue(900), Postponed(900), started=False),
        {(of.POSTPONED, ("jobs",)): 1},
    ),
    "settled": (
        lambda metering, message: metering.settled(message(), Done(), None),
        {(of.SETTLED, ("jobs", "done", "")): 1},
    ),
    "settled as a copy": (
        lambda metering, message: metering.settled(message(), Postponed(900), None),
        {(of.SETTLED, ("jobs", "postponed", "")): 1},
    ),
    "settled with an error": (
        lambda metering, message: metering.settled(message(), Retry(1, MARKER), "AccessDenied"),
        {(of.SETTLED, ("jobs", "retry", "AccessDenied")): 1},
    ),
    "lost": (
        lambda metering, message: metering.lost(message(), "its time ran out"),
        {(of.LOST, ("jobs", "its time ran out")): 1},
    ),
    "sent": (
        lambda metering, message: metering.published("jobs", 7),
        {(of.SENT, ("jobs",)): 7},
    ),
    "an empty receive": (
        lambda metering, message: metering.polled("jobs", 10, 0),
        {(of.RECEIVES, ("jobs", "empty")): 1},
    ),
    "a receive that returned less than it could": (
        lambda metering, message: metering.polled("jobs", 10, 9),
        {(of.RECEIVES, ("jobs", "partial")): 1, (of.CONSUMED, ("jobs",)): 9},
    ),
    "a full receive": (
        lambda metering, message: metering.polled("jobs", 4, 4),
        {(of.RECEIVES, ("jobs", "full")): 1, (of.CONSUMED, ("jobs",)): 4},
    ),
    "a call": (
        lambda metering, message: metering.called("DeleteMessageBatch", "jobs", 0.25, None),
        {(of.CALL, ("jobs", "DeleteMessageBatch", "")): 0.25},
    ),
    "a call that failed": (
        lambda metering, message: metering.called("SendMessage", "jobs-dlq", 2, "AccessDenied"),
        {(of.CALL, ("jobs-dlq", "SendMessage", "AccessDenied")): 2},
    ),
    "a pause": (lambda metering, message: metering.paused(frozenset({"why"})), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_moves_what_counts_it_and_nothing_else(
    name: str, metering: Metering, figures: Figures, message: Callable[..., Facts]
) -> None:
    step, expected = CASES[name]
    step(metering, message)
    assert counted(figures.samples()) == expected
    step(metering, message)
    assert counted(figures.samples()) == {series: 2 * was for series, was in expected.items()}


def test_each_figure_that_a_step_moves_has_a_case() -> None:
    moved = {instrument for _, expected in CASES.values() for instrument, _ in expected}
    assert moved == set(ALL) - set(MEASURED) - set(OF_QUEUES)


def test_each_value_of_a_label_that_the_page_lists_has_a_case() -> None:
    keys = [key for _, expected in CASES.values() for key in expected]

    def values(instrument: of.Instrument, label: str) -> set[str]:
        place = instrument.labels.index(label)
        return {labels[place] for each, labels in keys if each is instrument}

    assert values(of.DEAD_LETTERED, of.REASON) == listed("`sqs_broker_reason` of a dead letter")
    assert values(of.RELEASED, of.REASON) == listed("`sqs_broker_reason` of a release")
    assert values(of.DISCARDED, of.REASON) == listed("`sqs_broker_reason` of what was discarded")
    outcomes = values(of.SETTLED, of.OUTCOME) | values(of.ATTEMPT, of.OUTCOME)
    assert outcomes == listed("`sqs_broker_outcome`")


def listed(label: str) -> set[str]:
    """The values that docs/metrics.md lists for a label."""
    (found,) = re.findall(rf"^- {label}: (.*?)(?=^[-\n])", PAGE, re.MULTILINE | re.DOTALL)
    return set(re.findall("`(.+?)`", found))


def test_a_time_is_never_negative_though_clocks_differ(
    metering: Metering, figures: Figures, message: Callable[..., Facts]
) -> None:
    late = SENT + timedelta(hours=1)
    metering.received(message(enqueued_at=late))
    metering.ended(message(enqueued_at=late), Succeeded(), Done())
    found = counted(figures.samples())
    assert (found[of.IN_QUEUE, ("jobs",)], found[of.WHOLE, ("jobs",)]) == (0.0, 0.0)


def test_no_label_has_an_id_or_what_somebody_typed(
    metering: Metering, figures: Figures, message: Callable[..., Facts]
) -> None:
    for step, _ in CASES.values():
        step(metering, message)
    labels = {label for each in figures.samples() for label in each.labels}
    assert labels
    assert not [label for label in labels if MARKER in label or "sqs-" in label]


def test_the_series_of_a_figure_are_limited_and_none_is_lost(
    metering: Metering, figures: Figures, message: Callable[..., Facts]
) -> None:
    for number in range(MOST_SERIES + 20):
        metering.lost(message(), str(number))
        metering.called("SendMessage", str(number), 1.0, None)
    found = counted(figures.samples())
    assert len([each for each in found if each[0] is of.LOST]) == MOST_SERIES + 1
    assert found[of.LOST, (OTHER, OTHER)] == 20
    assert found[of.CALL, (OTHER, OTHER, OTHER)] == 20.0


def test_no_value_is_lost_however_many_come_between_two_looks(figures: Figures) -> None:
    for number in range(3 * MOST_NEW + 1):
        figures.add(of.SENT, ("jobs",), 2)
        figures.record(of.WHOLE, ("jobs",), number % 2 * 7.0)
    (sent, whole) = figures.samples()
    assert sent.value == 2 * (3 * MOST_NEW + 1)
    assert isinstance(whole.value, Histogram)
    assert sum(whole.value.counts) == 3 * MOST_NEW + 1
    assert whole.value.total == 7.0 * (3 * MOST_NEW // 2)
    # A further look changes nothing.
    assert figures.samples() == [sent, whole]


def test_a_value_is_in_the_bucket_of_its_bound(figures: Figures) -> None:
    for value in (1, 2, 4, 11):
        figures.record(of.ATTEMPT, ("jobs", "done"), value)
    (found,) = figures.samples()
    assert found.value.counts == (1, 1, 0, 1, 0, 1)  # type: ignore[union-attr]  # a histogram
    assert of.ATTEMPT.buckets == (1, 2, 3, 5, 10)


def test_names_and_units_are_those_of_opentelemetry_or_begin_with_our_namespace() -> None:
    assert len({each.name for each in ALL}) == len(ALL)
    assert {each.name for each in ALL if not each.name.startswith("sqs_broker.")} == {
        "messaging.client.sent.messages",
        "messaging.client.consumed.messages",
        "messaging.client.operation.duration",
        "messaging.process.duration",
    }
    for each in ALL:
        assert bool(each.buckets) == (each.kind is Kind.HISTOGRAM)
        assert list(each.buckets) == sorted(each.buckets)


def test_a_message_that_succeeds_is_noted_four_times(message: Callable[..., Facts]) -> None:
    taken: list[Any] = []

    class Counting:
        def add(self, instrument: of.Instrument, labels: Any, number: int = 1) -> None:
            taken.append(instrument)

        def record(self, instrument: of.Instrument, labels: Any, value: float) -> None:
            taken.append(instrument)

        def noting(self, step: steps.Step) -> Any:
            return lambda labels, measured: taken.append(step)

    metering = Metering([Counting()])
    metering.received(message())
    metering.started(message())
    metering.ended(message(), Succeeded(), Done())
    metering.settled(message(), Done(), None)
    assert len(taken) == len(set(taken)) == 4


def test_no_step_is_lost_however_many_come_between_two_looks(
    metering: Metering, figures: Figures, message: Callable[..., Facts]
) -> None:
    for _ in range(3 * MOST_NEW + 1):
        metering.started(message())
        metering.ended(message(), Succeeded(), Done())
    first = figures.samples()
    found = counted(first)
    assert found[of.STARTED, ("jobs", "register")] == 3 * MOST_NEW + 1
    assert found[of.DONE, ("jobs", "register", "succeeded")] == 3 * MOST_NEW + 1
    assert found[of.ATTEMPT, ("jobs", "done")] == 3 * MOST_NEW + 1
    for each in first:
        if isinstance(each.value, Histogram):
            assert sum(each.value.counts) == 3 * MOST_NEW + 1
    # A further look changes nothing.
    assert figures.samples() == first


def test_steps_of_many_threads_are_all_counted_also_while_somebody_looks(
    metering: Metering, figures: Figures, message: Callable[..., Facts]
) -> None:
    done = message()

    def work() -> None:
        for _ in range(2_000):
            metering.ended(done, Succeeded(), Done())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        figures.samples()
    for thread in threads:
        thread.join()
    assert counted(figures.samples())[of.DONE, ("jobs", "register", "succeeded")] == 6_000


# In a worker


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    return new_sqs(clock)


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


@pytest.fixture
def worker(fake: FakeSqs, clock: Clock, outcomes: Outcomes, figures: Figures) -> Iterator[Any]:
    app = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    install(app)
    app.conf.update(
        broker_transport_options=fake.transport_options(
            decode_json="app.messages:decode_json", observers=[Metering([figures]), outcomes]
        ),
        task_default_queue="jobs",
        task_acks_late=True,
        task_ignore_result=True,
        task_time_limit=30,
    )

    @app.task(shared=False, name="increment", model=Increment)
    def increment(*_: Any) -> None: ...

    running = InMemoryWorker(app, fake, clock, outcomes, Pool)
    yield running
    running.close()
    set_event_loop(None)
    state.requests.clear()
    state.reserved_requests.clear()


PLAIN = '{"id": "id-1", "action": "increment", "data": {"input": 1}}'


def test_the_main_process_of_a_worker_counts_messages_and_calls(
    worker: InMemoryWorker, figures: Figures
) -> None:
    worker.receive([PLAIN, "nonsense"])
    found = counted(figures.samples())
    assert found[of.CONSUMED, ("jobs",)] == 2
    assert found[of.DONE, ("jobs", "increment", "succeeded")] == 1
    assert found[of.DEAD_LETTERED, ("jobs", "refused", "Undecodable")] == 1
    assert found[of.SETTLED, ("jobs", "done", "")] == 1
    assert found[of.SETTLED, ("jobs", "dead-letter", "")] == 1
    # The copy for the dead-letter queue is no new message.
    assert of.SENT not in {instrument for instrument, _ in found}
    calls = {labels for instrument, labels in found if instrument is of.CALL}
    assert calls >= {
        ("jobs", "ReceiveMessage", ""),
        ("jobs", "DeleteMessageBatch", ""),
        ("jobs-dlq", "SendMessage", ""),
    }


def test_a_call_that_sqs_refuses_is_counted_by_its_error(
    worker: InMemoryWorker, fake: FakeSqs, figures: Figures
) -> None:
    fake.fail("DeleteMessageBatch", "AccessDenied")
    worker.receive([PLAIN])
    found = counted(figures.samples())
    assert ("jobs", "DeleteMessageBatch", "AccessDenied") in {labels for _, labels in found}
    assert found[of.SETTLED, ("jobs", "done", "AccessDenied")] == 1


# The state of a worker


@pytest.fixture
def read(worker: InMemoryWorker) -> Readings:
    readings = Readings()
    readings.consumer = worker.consumer
    return readings


def test_each_state_of_a_worker_has_a_figure_and_moves_alone(
    worker: InMemoryWorker, read: Readings, fake: FakeSqs, make_delivery: MakeDelivery
) -> None:
    leases = worker.deliveries.leases
    idle = counted(read())
    assert {instrument for instrument, _ in idle} == set(MEASURED) - {of.PAUSED}
    assert idle[of.IN_FLIGHT, ("jobs",)] == idle[of.OLDEST, ("jobs",)] == 0
    processes = int(idle[of.POOL, ()])

    def moved() -> dict[Series, float]:
        now = counted(read())
        return {series: value for series, value in now.items() if idle.get(series) != value}

    old = make_delivery(enqueued_at=datetime.now(UTC) - timedelta(seconds=500))
    leases.fill(0, [old])
    found = moved()
    assert found.pop((of.OLDEST, ("jobs",))) == pytest.approx(500, abs=60)
    assert found == {(of.IN_FLIGHT, ("jobs",)): 1}
    leases.started(old.tag, 30)
    assert moved()[of.BUSY, ()] == 1
    leases.take(old.tag)
    assert (of.BUSY, ()) not in moved()
    assert (of.IN_FLIGHT, ("jobs",)) not in moved()
    before = counted(read())[of.WAITING, ()]
    leases.count_unreported(3)
    assert counted(read())[of.WAITING, ()] == before + 3
    leases.count_unreported(-3)
    leases.resize(processes + 5)
    assert {instrument for instrument, _ in moved()} == {of.POOL, of.WINDOW}
    assert moved()[of.POOL, ()] == processes + 5
    assert moved()[of.WINDOW, ()] == idle[of.WINDOW, ()] + 5


def test_a_pause_is_1_while_it_lasts_and_0_after_it(worker: InMemoryWorker, read: Readings) -> None:
    idle = counted(read())
    worker.deliveries.pause("MongoDB is unavailable", 0)
    moved = counted(read()).items() - idle.items()
    assert {instrument for (instrument, _), _ in moved} == {of.PAUSED}
    worker.deliveries.pause("other", 0)
    assert paused(read) == {("MongoDB is unavailable",): 1, ("other",): 1}
    worker.deliveries.resume("other")
    assert paused(read) == {("MongoDB is unavailable",): 1, ("other",): 0}


def paused(read: Readings) -> dict[tuple[str, ...], float]:
    return {labels: value for (each, labels), value in counted(read()).items() if each is of.PAUSED}


@pytest.mark.parametrize(("silence", "lag"), [(0.0, 0.0), (0.9, 0.0), (4.0, 3.0)])
def test_the_lag_is_what_the_heartbeat_of_the_loop_is_late(
    worker: InMemoryWorker, silence: float, lag: float
) -> None:
    connection = SimpleNamespace(silence=lambda: silence, control=SimpleNamespace(lost=7))
    channel = SimpleNamespace(deliveries=worker.deliveries, connection=connection)
    readings = Readings()
    readings.consumer = SimpleNamespace(task_consumer=SimpleNamespace(channel=channel))
    found = counted(readings())
    assert found[of.LAG, ()] == lag
    assert found[of.CONTROL_LOST, ()] == 7


def test_a_worker_that_connects_has_no_state_and_a_broken_one_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    readings = Readings()
    assert readings() == []
    readings.consumer = SimpleNamespace(task_consumer=None)
    assert readings() == []
    assert not caplog.records
    readings.consumer = SimpleNamespace(task_consumer=SimpleNamespace(channel=object()))
    assert readings() == readings() == []
    assert [record.__dict__["event"] for record in caplog.records] == ["metrics.failed"]


# The results of this application


@pytest.mark.parametrize(
    ("task", "result", "name"),
    [
        (
            "registerUser",
            {"result": "registered", "stock_id": "s", "user_id": MARKER},
            "registered",
        ),
        ("registerUser", {"result": "already registered"}, "already registered"),
        ("registerUser", {"result": MARKER}, None),
        ("registerUser", {"result": "anything else", "user_id": "registered"}, None),
        ("registerUser", MARKER, None),
        ("increment", {"result": "registered"}, None),
    ],
)
def test_a_registration_is_counted_by_its_result_and_by_nothing_of_the_user(
    task: str, result: Any, name: str | None
) -> None:
    assert class_of(task, saferepr(result, maxlen=1024)) == name
