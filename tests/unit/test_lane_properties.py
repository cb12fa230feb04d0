"""Plain messages go to the pool and back without an object of Celery. Whatever arrives, everything
that a worker shows of it is the same as if each message had its Request on arrival.
"""

import json
import logging
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, current_app, signals
from celery.concurrency.base import BasePool
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded, WorkerLostError
from celery.worker import state
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.asynchronous import set_event_loop

from app.errors import PermanentError, TransientError
from app.messages import Registration
from sqs_broker import install
from sqs_broker.observers.observer import Observer
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import Done, Happened, Outcome, Released, Succeeded
from sqs_broker.sqs.queue import Queue
from sqs_broker.testing import Clock
from sqs_broker.testing.fake_sqs import PURGE_PAUSE
from sqs_broker.worker.plain import Plain
from tests.bodies import ENVELOPE, FIELDS, SIGNATURE, bodies
from tests.services import wait_until
from tests.unit.in_memory import DEADLINE, InMemoryWorker, Outcomes, new_sqs


class Pool(BasePool):
    """One process, as far as it matters: all that goes there and comes back is pickled."""

    num_processes = 1
    uses_semaphore = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.semaphore = kwargs["semaphore"]
        #: The soft and the hard time limit of each message that ran.
        self.limits: list[tuple[str, float | None, float | None]] = []
        #: Called when a job was accepted, and before it ends. If it raises, the process is lost.
        self.meanwhile: Callable[[], None] = lambda: None
        self.terminated: list[int] = []

    def apply_async(
        self, target: Any, args: Any, accept_callback: Any, callback: Any, error_callback: Any,
        timeout_callback: Any, soft_timeout: float | None, timeout: float | None, **_: Any,
    ) -> "Pool":  # fmt: skip
        ids = [job.id for job in args[2]] if len(args) == 3 else [args[1]]
        self.limits += [(id_, soft_timeout, timeout) for id_ in ids]
        target, args = pickle.loads(pickle.dumps((target, args)))
        accept_callback(1, monotonic())
        try:
            self.meanwhile()
            said = pickle.dumps(target(*args))
        except Exception as exc:
            said, callback = pickle.dumps(ExceptionInfo()), error_callback
            if isinstance(exc, TimeLimitExceeded):
                callback(pickle.loads(said))
                timeout_callback(False, 30)
                self.semaphore.release()
                return self
        callback(pickle.loads(said))
        self.semaphore.release()
        return self

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        self.terminated.append(pid)

    def terminate(self, signal: Any = None) -> None:
        """As the result of a job that ends: its process has no signals."""


class Ends(Outcomes):
    """A lost lease is an end, too."""

    def lost(self, message: Facts, why: str) -> None:
        self.by_id[message.delivery.message_id] = Released()
        self.on_change()


@dataclass
class Shown(Observer):
    """All that a worker shows of its messages, in the order of each message."""

    enabled: bool = True
    groups: frozenset[str] = frozenset()
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    settled_ids: set[str] = field(default_factory=set)

    def send(self, type_: str, **fields: Any) -> None:
        # The latter says whether a message ran alone, which is a matter of threads.
        fields = {n: value for n, value in fields.items() if n not in ("runtime", "traceback")}
        self.steps.append(("event", type_, fields))

    def received(self, message: Facts) -> None:
        self._note("received", message)

    def started(self, message: Facts) -> None:
        self._note("started", message)

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        result = happened.result if isinstance(happened, Succeeded) else None
        self._note("ended", message, happened, result, outcome)

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        self._note("settled", message, outcome, error)
        self.settled_ids.add(message.delivery.message_id)

    def lost(self, message: Facts, why: str) -> None:
        # Who notices it first says why: the heartbeat or the end of the run.
        self._note("lost", message)
        self.settled_ids.add(message.delivery.message_id)

    def _note(self, what: str, message: Facts, *more: Any) -> None:
        facts = message.task, message.id, message.source, message.started_at is not None
        self.steps.append((what, message.delivery.message_id, facts, *more))


#: What is compared of a line: no times.
FACTS = frozenset(
    {"event", "task", "message_id", "sqs_message_id", "source", "deliveries", "attempt", "error",
     "reason"}
)  # fmt: skip


#: Celery's logger that says which tasks were received.
CELERYS = "celery.worker.strategy"

#: Whose lines are compared.
LOGGERS = ("sqs_broker", "app", CELERYS)


class Lines(logging.Handler):
    """The lines of the log: their events and facts, without times."""

    def __init__(self, shown: Shown) -> None:
        super().__init__()
        self._shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        facts = {name: value for name, value in vars(record).items() if name in FACTS}
        if record.name == CELERYS:
            self._shown.steps.append(("line", record.getMessage(), vars(record)["data"]))
        elif len(facts) > 1:  # Not only an event: of a message.
            self._shown.steps.append(("line", record.levelname, str(record.msg), facts))


Meanwhile = Callable[[InMemoryWorker], Any]


class Bench:
    """Two workers with the same tasks: in one of them no message is plain. `is_shared`: whether
    messages share jobs."""

    def __init__(self, *, is_shared: bool) -> None:
        self._is_shared = is_shared
        #: Messages of TEN that run at the same time.
        self.at_once = len(TEN) if is_shared else 1
        self.fast, self.slow = self._worker(is_fast=True), self._worker(is_fast=False)

    def _worker(self, *, is_fast: bool) -> tuple[InMemoryWorker, Shown, list[Any]]:
        clock, outcomes, shown, ran = Clock(), Ends(), Shown(), []
        fake = new_sqs(clock)
        made = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
        install(made)
        made.conf.update(
            broker_transport_options=fake.transport_options(
                decode_json="app.messages:decode_json",
                observers=[outcomes, shown],
                max_attempts=2,
                backoff_max=1,
                # What a message calls would run in the middle of another example.
                built_in_tasks=[],
                most_callbacks=0,
            ),
            task_default_queue="jobs",
            task_acks_late=True,
            task_acks_on_failure=False,
            task_ignore_result=True,
            task_time_limit=30,
            task_soft_time_limit=25,
        )

        def work(registration: Registration) -> Any:
            ran.append((registration.user_id, registration.payload_hash()))
            match registration.user_id:
                case "fails":
                    raise TransientError("no")
                case "never":
                    raise PermanentError("never")
                case "retries":
                    raise Retry("again", when=3)
                case "ignores":
                    raise Ignore
                case "rejects":
                    raise Reject("no")
            return {"result": "registered", "user": registration.user_id}

        def many(pairs: Any) -> list[Any]:
            return [_outcome(work, registration) for registration, _ in pairs]

        shared = {"many": many} if self._is_shared else {}

        @made.task(shared=False, name="registerUser", model=Registration, **shared)
        def register_user(registration: Registration, _: Any) -> Any:
            return work(registration)

        made.finalize()
        made.set_current()
        worker = InMemoryWorker(made, fake, clock, outcomes, Pool, events=shown)
        if is_fast:
            worker.consumer.connection.transport.take_plain = worker.consumer.lane.take
        return worker, shown, ran

    def run(
        self,
        messages: Sequence["Sent"],
        meanwhile: "Meanwhile" = lambda worker: None,
        *,
        is_fast: bool,
        is_busy: bool = False,
    ) -> tuple[list[Any], ...]:
        """All that a worker shows of these messages. `meanwhile` is called once, in the first
        job, when a process has taken it; what it returns is shown, too. `is_busy`: the process is
        not free until all messages wait for it."""
        worker, shown, ran = self.fast if is_fast else self.slow
        pool, said = worker.pool, []

        def once() -> None:
            pool.meanwhile = lambda: None
            said.append(meanwhile(worker))

        pool.meanwhile = once
        pool.terminated.clear()
        pool.limits.clear()
        worker.consumer.app.set_current()
        handler, loggers = Lines(shown), [logging.getLogger(name) for name in LOGGERS]
        shown.steps.clear()
        ran.clear()
        counted, begun = dict(state.total_count), state.all_total_count[0]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            ids = [
                worker.fake.put(worker.url, each.body, delay=1, receives=each.receives)
                for each in messages
            ]
            if is_busy:
                pool.semaphore.acquire(lambda: None)
            worker.clock.advance(1)
            if is_busy:
                worker.turn_until(lambda: len(state.reserved_requests) == len(messages))
                pool.semaphore.release()
            outcomes = worker.outcomes_of(ids)
            wait_until(lambda: shown.settled_ids >= set(ids), DEADLINE, "every message is settled")
            # A timer would do this for a message that somebody else has ended.
            worker.consumer.lane.report()
            # What comes again would do so in the middle of another example.
            Queue(worker.url, worker.fake).purge()
            worker.clock.advance(PURGE_PAUSE)
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
        assert not state.requests
        assert not [*state.reserved_requests, *state.active_requests]
        counts = {
            name: n - counted.get(name, 0)
            for name, n in state.total_count.items()
            if n != counted.get(name, 0)
        }
        steps = [_without(step, ids) for step in shown.steps]
        # Each message by itself: which of two comes first is a matter of threads.
        return (
            _without(outcomes, ids), sorted(steps), sorted(ran),
            [counts, state.all_total_count[0] - begun],
            [_without(each, ids) for each in said], pool.terminated.copy(),
            sorted(_without(each, ids) for each in pool.limits),
        )  # fmt: skip


def _outcome(work: Callable[..., Any], registration: Registration) -> Any:
    try:
        return work(registration)
    except Exception as exc:
        return exc


def _without(step: Any, ids: Sequence[str]) -> str:
    text = repr(step)
    for number, id_ in enumerate(ids):
        text = text.replace(id_, f"sqs-{number}")
    # It depends on how long a poll has been open.
    text = re.sub(r"release_after=\d+", "", text)
    return re.sub(r"Released\(delay=\d+\)", "Released()", text)


@dataclass(frozen=True)
class Sent:
    body: str
    receives: int = 0


@pytest.fixture(scope="module", params=[True, False], ids=["shared jobs", "own jobs"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    before = current_app._get_current_object()
    # Celery reads it when it sets up its strategies.
    celerys = logging.getLogger(CELERYS)
    level = celerys.level
    celerys.setLevel(logging.INFO)
    bench = Bench(is_shared=request.param)
    state.revoked_stamps["mark"] = ["x"]
    yield bench
    celerys.setLevel(level)
    for worker, *_ in (bench.fast, bench.slow):
        worker.close()
    set_event_loop(None)
    before.set_current()
    state.revoked.clear()
    state.revoked_stamps.clear()


def envelope(user_id: str, **headers: Any) -> str:
    """A registration as Celery sends it, with other headers."""
    id_ = headers.pop("id", f"id-{user_id}")
    embed = headers.pop("embed", {})
    body = [[], {**FIELDS, "user_id": user_id, **headers.pop("data", {})}, embed]
    given = {**ENVELOPE["headers"], "id": id_, "root_id": id_, **headers}
    return json.dumps(
        {**ENVELOPE, "body": json.dumps(body), "headers": given, "properties": {
            **ENVELOPE["properties"], "correlation_id": id_}}
    )  # fmt: skip


def plain_json(user_id: str) -> str:
    return json.dumps(
        {"id": user_id, "action": "registerUser", "data": {**FIELDS, "user_id": user_id}}
    )


#: What may be in a queue: each must be handled in its own way.
KINDS = [
        envelope("good"), envelope("good", id="twice"), envelope("other", id="twice"),
        envelope("good", id="gone"), envelope("fails"), envelope("never"), envelope("retries"),
        envelope("ignores"), envelope("rejects"), envelope("good", data={"user_info": 5}),
        envelope("good", data={"unknown": "field"}), envelope("good", shadow="another"),
        envelope("good", expires="2020-01-01T00:00:00+00:00"),
        envelope("good", expires="2090-01-01T00:00:00+00:00"),
        envelope("good", eta="2020-01-01T00:00:00+00:00"),
        envelope("good", eta="2090-01-01T00:00:00+00:00", id="far"),
        envelope("good", timelimit=[20, 10]), envelope("good", timelimit=[99, 98]),
        envelope("good", stamped_headers=["mark"], stamps={"mark": "x"}),
        envelope("good", group="g", group_index=1), envelope("good", task="nobody"),
        envelope("good", task="celery.map"),
        envelope("good", embed={"callbacks": [SIGNATURE]}),
        envelope("good", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01", request_id="r1"),
        plain_json("json"), plain_json("fails"), "{", "null",
]  # fmt: skip

messages = st.builds(
    Sent, st.one_of(*[st.sampled_from(KINDS)] * 3, bodies), st.sampled_from([0, 0, 0, 0, 1, 2])
)


@settings(derandomize=True, database=None, max_examples=40)
@given(given_=st.lists(messages, min_size=1, max_size=12))
def test_whatever_arrives_has_the_same_end_as_with_a_request_on_arrival(
    bench: Bench, given_: list[Sent]
) -> None:
    state.revoked.add("gone")
    assert bench.run(given_, is_fast=True) == bench.run(given_, is_fast=False)


def test_each_kind_of_message_ends_beside_a_plain_one_as_with_a_request(bench: Bench) -> None:
    state.revoked.add("gone")
    for body in KINDS:
        for receives in (0, 1):
            both = [Sent(envelope("beside")), Sent(body, receives), Sent(envelope("last"))]
            assert bench.run(both, is_fast=True) == bench.run(both, is_fast=False), body


#: Ten that may share a job.
TEN = [
    Sent(body)
    for body in (
        *[envelope(f"u{n}") for n in range(5)], plain_json("u5"), envelope("fails"),
        envelope("never"), envelope("retries"), envelope("ignores"),
    )
]  # fmt: skip


def active(worker: InMemoryWorker) -> Any:
    """What `inspect active` and `inspect query_task` show, without the time of the start."""
    infos = sorted(
        (request.info() for request in set(state.active_requests)), key=lambda i: i["id"]
    )
    return [{**info, "time_start": info["time_start"] is not None} for info in infos]


def terminate(worker: InMemoryWorker) -> None:
    """`celery control terminate` of one of them."""
    state.revoked.add("id-u1")
    state.requests["id-u1"].terminate(worker.pool, signal="TERM")


def release(worker: InMemoryWorker) -> int:
    """The end of a forced stop, in a pause: so none of them comes again soon."""
    worker.deliveries.pause("test", 60)
    released = worker.deliveries.release(running=True)
    worker.deliveries.resume("test")
    return released


def lose_leases(worker: InMemoryWorker) -> int:
    """Their leases are over before the job ends."""
    leases = worker.deliveries.leases
    for lease in leases.all():
        leases.extended(lease.delivery.tag, monotonic() - 1)
    return len(leases)


def cancel(worker: InMemoryWorker) -> None:
    """Each lease is lost, and the heartbeat has noticed it."""
    for request in set(state.active_requests):
        request.cancel(worker.pool, emit_retry=False)


def kinds_of(worker: InMemoryWorker) -> Any:
    return [type(request) for request in state.active_requests]


def overrun(worker: InMemoryWorker) -> Any:
    return [request.overrun() < 0 for request in set(state.active_requests)]


def lose_the_process(worker: InMemoryWorker) -> None:
    raise WorkerLostError("lost")


def reach_the_limit(worker: InMemoryWorker) -> None:
    raise TimeLimitExceeded(30)


def run_out_of_memory(worker: InMemoryWorker) -> None:
    raise MemoryError


def send_nothing_more(worker: InMemoryWorker) -> None:
    """Celery closes the connection: it keeps only the requests that run."""
    for request in tuple(state.reserved_requests):
        request.eventer = None


@pytest.mark.parametrize(
    "meanwhile",
    [
        active, terminate, release, lose_leases, cancel, overrun, lose_the_process,
        reach_the_limit, run_out_of_memory, send_nothing_more,
    ],
)  # fmt: skip
def test_what_happens_in_the_middle_of_a_job_has_the_same_effect_as_with_requests(
    bench: Bench, meanwhile: Meanwhile
) -> None:
    fast = bench.run(TEN, meanwhile, is_fast=True, is_busy=True)
    state.revoked.discard("id-u1")
    slow = bench.run(TEN, meanwhile, is_fast=False, is_busy=True)
    state.revoked.discard("id-u1")
    assert fast == slow


def test_a_process_has_a_message_before_the_observers_hear_that_it_was_received(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, shown, _ = bench.fast
    submit, heard = worker.pool.apply_async, []

    def submitted(*args: Any, **options: Any) -> Any:
        heard.append([step for step in shown.steps if step[0] == "received"])
        return submit(*args, **options)

    monkeypatch.setattr(worker.pool, "apply_async", submitted)
    _, steps, *_ = bench.run(TEN[:1], is_fast=True)
    assert heard == [[]]
    assert sum(step.startswith("('received'") for step in steps) == 1


def test_messages_whose_event_cannot_be_sent_come_again_and_the_worker_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shown, _ = bench.fast

    def fail(type_: str, **fields: Any) -> None:
        raise OSError

    with monkeypatch.context() as broken:
        broken.setattr(shown, "send", fail)
        outcomes, _, ran, *_ = bench.run(TEN[:3], is_fast=True)
    assert outcomes.count("Retry") == 3
    assert ran == []
    assert bench.run(TEN, is_fast=True) == bench.run(TEN, is_fast=False)


@pytest.mark.parametrize("is_fast", [True, False])
def test_who_is_revoked_while_it_waits_for_the_process_does_not_run(
    bench: Bench, *, is_fast: bool
) -> None:
    worker, shown, ran = bench.fast if is_fast else bench.slow
    worker.consumer.app.set_current()
    semaphore = worker.consumer.controller.semaphore
    shown.steps.clear()
    ran.clear()
    semaphore.acquire(lambda: None)
    ids = [worker.fake.put(worker.url, envelope(f"u{n}"), delay=1) for n in range(5)]
    worker.clock.advance(1)
    worker.turn_until(lambda: len(state.reserved_requests) == 5)
    state.revoked.add("id-u3")
    semaphore.release()
    assert worker.outcomes_of(ids) == [Done()] * 5
    state.revoked.discard("id-u3")
    assert sorted(user for user, _ in ran) == ["u0", "u1", "u2", "u4"]
    events = [(type_, facts["uuid"]) for what, type_, facts, *_ in shown.steps if what == "event"]
    assert [uuid for type_, uuid in events if type_ == "task-revoked"] == ["id-u3"]


def test_messages_that_succeed_together_have_no_request(bench: Bench) -> None:
    good = [Sent(envelope(f"u{n}")) for n in range(10)]

    *_, kinds, _, _ = bench.run(good, kinds_of, is_fast=True, is_busy=True)
    assert kinds == [repr([Plain] * bench.at_once)]
    *_, kinds, _, _ = bench.run(good, kinds_of, is_fast=False, is_busy=True)
    assert "Plain" not in kinds[0]


def test_the_process_gets_of_a_plain_message_what_it_gets_of_a_request(bench: Bench) -> None:
    pairs: list[tuple[Any, Any]] = []

    def compare(worker: InMemoryWorker) -> None:
        for each in set(state.reserved_requests):
            assert isinstance(each, Plain)
            pairs.append((each.request_dict, each.full().request_dict))

    bench.run(TEN, compare, is_fast=True, is_busy=True)
    assert len(pairs) == len(TEN)
    for light, full in pairs:
        assert light == full


def test_who_is_asked_for_has_a_request_in_celerys_state(bench: Bench) -> None:
    kinds: list[Any] = []

    def look(worker: InMemoryWorker) -> None:
        for request in set(state.active_requests):
            request.info()
        for found in (state.active_requests, state.reserved_requests, state.requests.values()):
            kinds.extend((len(found), isinstance(request, Plain)) for request in found)

    bench.run(TEN, look, is_fast=True, is_busy=True)
    assert [is_plain for _, is_plain in kinds].count(False) == 3 * bench.at_once
    assert [count for count, _ in kinds] == (
        [bench.at_once] * bench.at_once + [len(TEN)] * 2 * len(TEN)
    )


def test_a_message_that_runs_alone_has_no_request(bench: Bench) -> None:
    *_, kinds, _, _ = bench.run([Sent(envelope("alone"))], kinds_of, is_fast=True)
    assert kinds == [repr([Plain])]


class Waits:
    """Stands for a request that waits for a process for ever."""


def test_a_run_that_has_succeeded_is_reported_also_if_the_others_wait_for_ever(
    bench: Bench,
) -> None:
    worker, *_ = bench.fast
    waits = Waits()
    state.reserved_requests.add(waits)
    id_ = worker.fake.put(worker.url, envelope("u0"), delay=1)
    worker.clock.advance(1)
    try:
        assert worker.outcomes_of([id_]) == [Done()]
    finally:
        state.reserved_requests.discard(waits)


@pytest.mark.parametrize("bench", [False], ids=["own jobs"], indirect=True)
def test_a_success_is_a_success_also_if_the_others_of_its_report_cannot_be_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(tags: Sequence[str]) -> None:
        raise ValueError(tags)

    worker, *_ = bench.fast
    monkeypatch.setattr(worker.deliveries, "end_messages", broken)
    ids = [worker.fake.put(worker.url, envelope(f"u{n}"), delay=1) for n in range(3)]
    worker.clock.advance(1)
    assert worker.outcomes_of(ids) == [Done()] * 3
    assert "task.unreported" in {getattr(record, "event", None) for record in caplog.records}


# Who needs a request on arrival gets one


def test_a_receiver_of_the_signal_task_received_gets_each_request(bench: Bench) -> None:
    seen: list[Any] = []

    def receive(request: Any, **_: Any) -> None:
        seen.append((request.id, isinstance(request, Plain)))

    signals.task_received.connect(receive)
    try:
        bench.run([Sent(envelope(f"u{n}")) for n in range(3)], is_fast=True)
    finally:
        signals.task_received.disconnect(receive)
    assert sorted(seen) == [(f"id-u{n}", False) for n in range(3)]


def test_if_somebody_reads_celerys_line_of_a_task_that_is_accepted_each_has_a_request(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    worker, *_ = bench.fast
    with caplog.at_level(logging.DEBUG, "celery.worker.request"):
        worker.consumer.update_strategies()
        *_, kinds, _, _ = bench.run([Sent(envelope("u0"))], kinds_of, is_fast=True)
    worker.consumer.update_strategies()
    assert "Plain" not in kinds[0]


def test_a_message_of_a_task_with_a_rate_limit_has_a_request(bench: Bench) -> None:
    worker, *_ = bench.fast
    task = worker.consumer.app.tasks["registerUser"]
    task.rate_limit = "1000/s"
    worker.consumer.reset_rate_limits()
    try:
        *_, kinds, _, _ = bench.run([Sent(envelope("u0"))], kinds_of, is_fast=True)
    finally:
        task.rate_limit = None
        worker.consumer.reset_rate_limits()
    assert "Plain" not in kinds[0]


@pytest.mark.parametrize("acks_late", [True, False])
def test_a_task_whose_message_is_deleted_before_it_runs_has_a_request(
    bench: Bench, *, acks_late: bool
) -> None:
    worker, *_ = bench.fast
    task = worker.consumer.app.tasks["registerUser"]
    task.acks_late = acks_late
    worker.consumer.update_strategies()
    try:
        *_, kinds, _, _ = bench.run([Sent(envelope("u0"))], kinds_of, is_fast=True)
    finally:
        task.acks_late = True
        worker.consumer.update_strategies()
    assert ("Plain" in kinds[0]) is acks_late
