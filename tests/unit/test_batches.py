"""Batches: what waits for the pool shares a job, and each message ends by itself."""

import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery.exceptions import Reject, SoftTimeLimitExceeded

from sqs_broker.worker.batch import Job, Traced, run
from sqs_broker.worker.batches import Batches
from sqs_broker.worker.failures import unwrapped
from sqs_broker.worker.request import HandedBack


class Pool:
    """Keeps the jobs it is given."""

    def __init__(self, processes: int) -> None:
        self.num_processes = processes
        self.jobs: list[dict[str, Any]] = []

    def apply_async(self, target: Any, args: Any, **callbacks: Any) -> "Pool":
        self.jobs.append({"target": target, "args": args} | callbacks)
        return self

    def sizes(self) -> list[int]:
        return [len(job["args"][2]) for job in self.jobs]


class Semaphore:
    """Processes of a pool: `free` ones run who asks at once, others when one is released."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.waiting: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def acquire(self, callback: Callable[..., Any], *args: Any) -> None:
        if self.free:
            self.free -= 1
            callback(*args)
        else:
            self.waiting.append((callback, args))

    def release(self) -> None:
        if self.waiting:
            callback, args = self.waiting.popleft()
            callback(*args)
        else:
            self.free += 1


@dataclass
class Message:
    may_share: bool = True
    delivery_info: dict[str, str] = field(default_factory=dict)


class App:
    use_fast_trace_task = False


@dataclass
class Task:
    name: str = "many"
    many: Callable[..., Any] | None = list
    acks_late: bool = True
    soft_time_limit: float | None = 5
    time_limit: float | None = 9
    app: Any = field(default_factory=App)


class Request:
    """A request that notes what it is told."""

    def __init__(self, id_: str, task: Task, *, may_share: bool = True, limits: Any = (None, None)):
        self.id = id_
        self.task = task
        self.name = task.name
        self.message = Message(may_share)
        self.time_limits = limits
        self.request_dict = {"id": id_}
        self.body = [[], {"of": id_}, {}]
        self.is_revoked = False
        #: What is raised when it is told anything.
        self.fault: Exception | None = None
        self.rejected: list[bool] = []
        self.is_handed_back = False
        self.heard: list[tuple[str, Any]] = []

    def shares(self, job: Any) -> None:
        self.job = job

    def reject(self, requeue: bool = False) -> None:
        self.rejected.append(requeue)

    def revoked(self) -> bool:
        self.break_()
        return self.is_revoked

    def on_accepted(self, *args: Any) -> None:
        if self.is_handed_back:
            raise HandedBack(self.id)
        self.hear("accepted", args)

    def on_success(self, traced: Any, **_: Any) -> None:
        self.hear("success", traced)

    def on_failure(self, exc_info: Any) -> None:
        self.hear("failure", exc_info)

    def not_taken(self, exc: Exception) -> None:
        self.heard.append(("not taken", exc))

    def on_timeout(self, *args: Any) -> None:
        self.hear("timeout", args)

    def hear(self, what: str, said: Any) -> None:
        self.break_()
        self.heard.append((what, said))

    def break_(self) -> None:
        if self.fault is not None:
            raise self.fault


class Worker:
    """Batches with a pool, a semaphore and a loop that turns when it is told to."""

    def __init__(self, free: int | None = 1, processes: int = 3) -> None:
        self.pool = Pool(processes)
        self.semaphore = None if free is None else Semaphore(free)
        self.alone: list[Request] = []
        self.processed: list[Request] = []
        self.due: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.later: list[tuple[float, Callable[..., Any], tuple[Any, ...]]] = []
        self.ended_lately = 0
        self.batches = Batches(
            self.pool,
            self.alone.append,
            self.processed.append,
            self.semaphore,
            soon=lambda callback, *args: self.due.append((callback, args)),
            later=lambda delay, callback, *args: self.later.append((delay, callback, args)),
            ended_lately=lambda: self.ended_lately,
        )

    def wait(self) -> None:
        """Let the timers pass that are set now."""
        timers, self.later = self.later, []
        for _, callback, args in timers:
            callback(*args)
        self.turn()

    def turn(self) -> None:
        while self.due:
            callback, args = self.due.pop(0)
            callback(*args)

    def make(self, count: int, **how: Any) -> list[Request]:
        return [Request(f"id-{n}", Task(), **how) for n in range(count)]

    def take(self, count: int, **how: Any) -> list[Request]:
        for request in (requests := self.make(count, **how)):
            self.batches.take(request)
        return requests


@pytest.mark.parametrize(
    ("free", "count", "sizes"),
    [(1, 2, [2]), (1, 10, [10]), (1, 25, [10]), (2, 25, [10, 10]), (3, 25, [10, 10, 5])],
)
def test_free_processes_take_up_to_ten_messages_each(
    free: int, count: int, sizes: list[int]
) -> None:
    worker = Worker(free)
    worker.take(count)
    worker.turn()
    assert worker.pool.sizes() == sizes


@pytest.mark.parametrize(
    ("processes", "count", "size"),
    [(1, 12, 12), (1, 20, 20), (1, 50, 20), (2, 19, 10), (2, 30, 15), (2, 80, 20), (0, 15, 15)],
)
def test_a_job_grows_to_twenty_messages_where_so_many_wait_for_each_process(
    processes: int, count: int, size: int
) -> None:
    worker = Worker(free=1, processes=processes)
    worker.take(count)
    worker.turn()
    assert worker.pool.sizes() == [size]


def test_while_a_thousand_end_each_second_a_batch_waits_for_its_twentieth_message() -> None:
    worker = Worker(free=3)
    worker.ended_lately = 100
    worker.take(13)
    worker.turn()
    assert worker.pool.sizes() == []
    worker.take(7)
    worker.turn()
    assert worker.pool.sizes() == [20]


def test_a_batch_waits_for_more_messages_a_hundredth_of_a_second_at_most() -> None:
    worker = Worker(free=3)
    worker.ended_lately = 100
    worker.take(13)
    worker.turn()
    assert [delay for delay, *_ in worker.later] == [0.01]
    worker.wait()
    assert worker.pool.sizes() == [13]


def test_what_a_full_batch_leaves_waits_for_more_too() -> None:
    worker = Worker(free=3)
    worker.ended_lately = 100
    worker.take(25)
    worker.turn()
    worker.wait()
    assert worker.pool.sizes() == [20, 5]


def test_at_fewer_than_1000_a_second_no_batch_waits() -> None:
    worker = Worker(free=3)
    worker.ended_lately = 99
    worker.take(13)
    worker.turn()
    assert worker.pool.sizes() == [10, 3]
    assert worker.later == []


def test_what_waited_for_more_when_the_connection_closed_does_not_start() -> None:
    worker = Worker(free=3)
    worker.ended_lately = 100
    worker.take(13)
    worker.turn()
    worker.batches.clear()
    worker.wait()
    assert worker.pool.sizes() == []
    worker.take(3)
    worker.turn()
    worker.wait()
    assert worker.pool.sizes() == [3]


def test_what_gathers_while_the_pool_is_busy_goes_when_a_process_is_free() -> None:
    worker = Worker(free=0)
    worker.take(3)
    worker.turn()
    worker.take(4)
    worker.turn()
    assert worker.pool.jobs == []
    worker.semaphore.release()
    worker.turn()
    assert worker.pool.sizes() == [7]
    assert not worker.semaphore.waiting


def test_each_process_that_becomes_free_takes_the_next_ten() -> None:
    worker = Worker(free=1)
    worker.take(21)
    worker.turn()
    for _ in range(2):
        worker.semaphore.release()
        worker.turn()
    assert worker.pool.sizes() == [10, 10]
    assert [request.id for request in worker.processed] == ["id-20"]


def test_pools_that_queue_by_themselves_get_batches_at_once() -> None:
    worker = Worker(free=None)
    worker.take(12)
    worker.turn()
    assert worker.pool.sizes() == [10, 2]


def test_a_message_of_a_quiet_queue_does_not_wait_for_those_of_a_busy_one() -> None:
    worker = Worker(free=0, processes=30)
    for number in range(60):
        request = Request(f"busy-{number}", Task())
        request.message.delivery_info = {"routing_key": "busy"}
        worker.batches.take(request)
    for number in range(2):
        request = Request(f"quiet-{number}", Task())
        request.message.delivery_info = {"routing_key": "quiet"}
        worker.batches.take(request)
    worker.turn()
    for _ in range(7):
        worker.semaphore.release()
        worker.turn()

    jobs = [[job.id for job in each["args"][2]] for each in worker.pool.jobs]
    assert jobs[0] == [*(f"busy-{n}" for n in range(8)), "quiet-0", "quiet-1"]
    # Nothing else has changed its order.
    ids = [id_ for job in jobs for id_ in job] + [request.id for request in worker.processed]
    assert [id_ for id_ in ids if id_.startswith("busy")] == [f"busy-{n}" for n in range(60)]


def test_one_message_by_itself_is_an_ordinary_job() -> None:
    worker = Worker()
    (request,) = worker.take(1)
    worker.turn()
    assert (worker.processed, worker.pool.jobs) == ([request], [])


@pytest.mark.parametrize(
    "how",
    [{"may_share": False}, {"limits": [None, 3]}],
    ids=["delivered before", "time limits of its own"],
)
def test_a_message_that_may_not_share_runs_alone(how: dict[str, Any]) -> None:
    worker = Worker()
    requests = worker.take(2, **how)
    worker.turn()
    assert (worker.alone, worker.pool.jobs) == (requests, [])


@pytest.mark.parametrize("task", [Task(many=None), Task(acks_late=False)])
def test_a_task_that_runs_one_at_a_time_does(task: Task) -> None:
    worker = Worker()
    worker.batches.take(Request("id-1", task))
    assert len(worker.alone) == 1


def test_tasks_do_not_share_with_each_other() -> None:
    worker = Worker(free=2)
    for name in ("one", "two", "one", "two"):
        worker.batches.take(Request("id", Task(name)))
    worker.turn()
    assert [(job["args"][1], len(job["args"][2])) for job in worker.pool.jobs] == [
        ("one", 2),
        ("two", 2),
    ]


def test_a_revoked_message_does_not_run_and_the_others_do() -> None:
    worker = Worker(free=0)
    requests = worker.take(3)
    worker.turn()
    requests[1].is_revoked = True
    worker.semaphore.release()
    assert [job.id for job in worker.pool.jobs[0]["args"][2]] == ["id-0", "id-2"]


def test_a_batch_of_revoked_messages_leaves_its_process_free() -> None:
    worker = Worker(free=1)
    for request in worker.take(2):
        request.is_revoked = True
    worker.turn()
    assert (worker.semaphore.free, worker.pool.jobs) == (1, [])


def test_what_waits_is_forgotten_with_the_connection() -> None:
    worker = Worker(free=0)
    worker.take(2)
    worker.turn()
    worker.batches.clear()
    worker.semaphore.waiting.clear()
    worker.semaphore.free = 1
    worker.take(3)
    worker.turn()
    assert worker.pool.sizes() == [3]


def test_each_message_hears_of_its_own_end() -> None:
    worker = Worker()
    requests = worker.take(2)
    worker.turn()
    (job,) = worker.pool.jobs
    job["accept_callback"](7, 1.5)
    job["callback"]([(0, "a", 0.1), (1, "b", 0.2)])
    assert [request.heard for request in requests] == [
        [("accepted", (7, 1.5)), ("success", (0, "a", 0.1))],
        [("accepted", (7, 1.5)), ("success", (1, "b", 0.2))],
    ]


@pytest.mark.parametrize("fault", [ValueError("broken"), MemoryError()], ids=repr)
@pytest.mark.parametrize(
    ("callback", "said", "is_end"),
    [
        ("accept_callback", (7, 1.5), False),
        ("callback", ([(0, n, 0.1) for n in range(3)],), True),
        ("error_callback", ("lost",), True),
        ("timeout_callback", (False, 9), False),
    ],
)
def test_a_message_that_breaks_leaves_the_others(
    callback: str, said: Any, is_end: bool, fault: Exception
) -> None:
    worker = Worker()
    requests = worker.take(3)
    worker.turn()
    requests[0].fault = fault
    worker.pool.jobs[0][callback](*said)
    assert [len(request.heard) for request in requests] == [0, 1, 1]
    # At its end it is handed back: nobody would tell of it again.
    assert [request.rejected for request in requests] == [[True] if is_end else [], [], []]


def test_what_cannot_be_told_of_being_revoked_does_not_keep_the_others_back() -> None:
    worker = Worker(free=0)
    requests = worker.take(3)
    worker.turn()
    requests[1].fault = OSError()
    worker.semaphore.release()
    assert [job.id for job in worker.pool.jobs[0]["args"][2]] == ["id-0", "id-2"]
    assert requests[1].rejected == [True]


def test_a_job_that_ended_its_thread_has_failed_for_each_message() -> None:
    # So a pool of threads tells of a SystemExit (celery 5.7 concurrency/base.py).
    worker = Worker(free=None)
    requests = worker.take(2)
    worker.turn()
    try:
        raise SystemExit
    except SystemExit:
        lost = ExceptionInfo()
    worker.pool.jobs[0]["callback"](lost)
    assert [request.heard for request in requests] == [[("failure", lost)]] * 2


def test_a_message_that_was_handed_back_is_told_nothing_more() -> None:
    worker = Worker()
    requests = worker.take(2)
    worker.turn()
    (job,) = worker.pool.jobs
    requests[0].is_handed_back = True
    job["accept_callback"](7, 1.5)
    job["callback"]([(0, "a", 0.1), (0, "b", 0.1)])
    assert requests[0].heard == []
    assert [what for what, _ in requests[1].heard] == ["accepted", "success"]


def test_a_batch_that_was_handed_back_whole_is_not_started() -> None:
    worker = Worker()
    for request in worker.take(2):
        request.is_handed_back = True
    worker.turn()
    with pytest.raises(HandedBack):
        worker.pool.jobs[0]["accept_callback"](7, 1.5)


def test_a_job_that_the_pool_does_not_take_is_told_to_each_message_and_frees_its_process() -> None:
    worker = Worker()
    refusal = OSError()

    def refuse(*_: Any, **__: Any) -> None:
        raise refusal

    worker.pool.apply_async = refuse
    requests = worker.take(2)
    worker.turn()
    assert [told for request in requests for told in request.heard] == [("not taken", refusal)] * 2
    assert worker.semaphore is not None
    assert worker.semaphore.free == 1


def test_a_lost_process_and_a_time_limit_are_told_to_every_message() -> None:
    worker = Worker()
    requests = worker.take(2)
    worker.turn()
    (job,) = worker.pool.jobs
    job["error_callback"]("lost")
    job["timeout_callback"](False, 9)
    expected = [("failure", "lost"), ("timeout", (False, 9))]
    assert [request.heard for request in requests] == [expected, expected]


def test_a_batch_has_the_time_limits_of_its_task() -> None:
    worker = Worker()
    worker.take(2)
    worker.turn()
    assert (worker.pool.jobs[0]["soft_timeout"], worker.pool.jobs[0]["timeout"]) == (5, 9)


def test_every_message_of_a_batch_can_end_its_job() -> None:
    worker = Worker()
    requests = worker.take(2)
    worker.turn()
    assert [request.job for request in requests] == [worker.pool] * 2


def test_a_job_carries_what_was_read_of_each_body_once() -> None:
    text = "x" * 100_000
    worker = Worker()
    for request in (requests := worker.make(2)):
        request.body = [[], {"introduction": text}, None]
        # As Celery's request has it (celery 5.7 worker/request.py).
        request.request_dict |= {"args": request.body[0], "kwargs": request.body[1]}
        worker.batches.take(request)
    worker.turn()
    sent = pickle.dumps(worker.pool.jobs[0]["args"][2])
    assert len(sent) < 1.1 * len(requests) * len(text)
    assert [(job.args, job.kwargs, job.embed) for job in pickle.loads(sent)] == [
        ([], {"introduction": text}, None)
    ] * 2


# In the pool's process


class Broken(dict[str, Any]):
    """A request that cannot even be looked into."""

    def __iter__(self) -> Iterator[str]:
        raise KeyError

    keys = __iter__  # type: ignore[assignment]


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Registers a task whose work for many is the given function; runs it on so many messages."""

    def ran(work: Callable[[Sequence[Any]], Any], count: int = 3, **how: Any) -> list[Any]:
        class Many:
            name = "many"
            run_many = staticmethod(work)

        class App:
            tasks = {"many": Many}  # noqa: RUF012 - a stand-in

        monkeypatch.setattr("sqs_broker.worker.batch.current_app", App)
        broken = how.get("broken")
        jobs = [
            Job(f"id-{n}", (Broken if n == broken else dict)(id=f"id-{n}"), [], {"n": n}, {})
            for n in range(count)
        ]
        return run(how.get("trace", trace), "many", jobs)

    return ran


Many = Callable[..., list[Traced]]


def trace(name: str, id_: str, request: Any, body: Any, *types: Any) -> Traced:
    """Celery's, as far as it matters here."""
    assert types == (None, None)
    try:
        return 0, (id_, request["prepared"](*body[0], **body[1])), 0.0
    except Exception as exc:
        return 1, (id_, type(exc).__name__), None


def fine(calls: Sequence[Any]) -> list[Any]:
    return ["fine" for _ in calls]


def ends(traced: Sequence[Traced]) -> list[str]:
    """The result of each message, or the class of its failure."""
    told = []
    for failed, result, _ in traced:
        assert failed == isinstance(result, ExceptionInfo) or isinstance(result, tuple)
        told.append(
            type(unwrapped(result)).__name__ if isinstance(result, ExceptionInfo) else result[1]
        )
    return told


def test_an_outcome_is_the_same_whatever_the_arguments_are_called(many: Many) -> None:
    def named(name: str, id_: str, request: Any, body: Any, *types: Any) -> Traced:
        return trace(name, id_, request, ([1], {"self": 2, "place": 3, "shared": 4}, {}), *types)

    assert ends(many(fine, trace=named)) == ["fine"] * 3


def test_all_messages_are_entered_before_the_work_and_left_in_their_order(many: Many) -> None:
    seen: list[str] = []

    def noting(name: str, id_: str, *rest: Any) -> Traced:
        seen.append(f"enter {id_}")
        traced = trace(name, id_, *rest)
        seen.append(f"leave {id_}")
        return traced

    def work(calls: Sequence[Any]) -> list[Any]:
        seen.append("work " + " ".join(call.request.id for call in calls))
        return fine(calls)

    many(work, trace=noting)
    assert seen == [
        "enter id-2", "enter id-1", "enter id-0",
        "work id-0 id-1 id-2",
        "leave id-0", "leave id-1", "leave id-2",
    ]  # fmt: skip


@pytest.mark.parametrize("early", [0, 1, 2])
def test_a_message_that_fails_before_the_work_has_no_part_in_it(many: Many, early: int) -> None:
    worked: list[str] = []

    def fails_early(name: str, id_: str, *rest: Any) -> Traced:
        return (1, (id_, "KeyError"), None) if id_ == f"id-{early}" else trace(name, id_, *rest)

    def work(calls: Sequence[Any]) -> list[Any]:
        worked.extend(call.request.id for call in calls)
        return fine(calls)

    expected = ["fine"] * 3
    expected[early] = "KeyError"
    assert ends(many(work, trace=fails_early)) == expected
    assert worked == [f"id-{n}" for n in range(3) if n != early]


def test_the_work_for_all_is_done_once_and_each_message_has_its_outcome(many: Many) -> None:
    worked: list[Any] = []

    def work(calls: Sequence[Any]) -> list[Any]:
        worked.append([(call.kwargs["n"], call.request.id) for call in calls])
        return ["fine", ValueError("mine"), "fine too"]

    traced = many(work)

    assert worked == [[(0, "id-0"), (1, "id-1"), (2, "id-2")]]
    assert [(failed, result) for failed, result, _ in traced] == [
        (0, ("id-0", "fine")),
        (1, ("id-1", "ValueError")),
        (0, ("id-2", "fine too")),
    ]


@pytest.mark.parametrize("fault", [ConnectionError(), MemoryError(), SoftTimeLimitExceeded()])
def test_work_that_fails_has_failed_for_each_message(many: Many, fault: Exception) -> None:
    def work(calls: Sequence[Any]) -> list[Any]:
        raise fault

    assert ends(many(work)) == [type(fault).__name__] * 3


@pytest.mark.parametrize(
    "outcomes",
    [
        pytest.param(outcomes, id=what)
        for what, outcomes in {
            "one too few": ["fine"] * 2,
            "one too many": ["fine"] * 4,
            "an empty list": [],
            "nothing": None,
            "a number": 7,
            "a string": "abc",
            "bytes": b"abc",
            "a mapping": {"a": 1, "b": 2, "c": 3},
            "a set": {1, 2, 3},
            "a generator": (n for n in range(3)),
            "a class": SystemExit,
        }.items()
    ],
)
def test_what_is_no_list_of_an_outcome_for_each_is_a_failure_of_each(
    many: Many, outcomes: Any
) -> None:
    assert ends(many(lambda _: outcomes)) == ["RuntimeError"] * 3


@pytest.mark.parametrize("odd", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), ValueError])
def test_an_outcome_that_is_neither_result_nor_exception_is_a_failure_of_its_message(
    many: Many, odd: Any
) -> None:
    assert ends(many(lambda _: ["fine", odd, "fine"])) == ["fine", "TypeError", "fine"]


def test_a_message_whose_call_cannot_be_made_keeps_no_other_back(many: Many) -> None:
    def work(calls: Sequence[Any]) -> list[Any]:
        return [call.request.id for call in calls]

    assert ends(many(work, broken=1)) == ["id-0", "KeyError", "id-2"]


def test_a_message_that_cannot_be_traced_keeps_no_other_back(many: Many) -> None:
    def short_of_memory(name: str, id_: str, *rest: Any) -> Traced:
        if id_ == "id-1":
            raise MemoryError
        return trace(name, id_, *rest)

    assert ends(many(fine, trace=short_of_memory)) == ["fine", "MemoryError", "fine"]


def test_a_time_limit_that_passes_before_the_work_leaves_none_done(many: Many) -> None:
    def too_long(name: str, id_: str, *rest: Any) -> Traced:
        if id_ == "id-2":
            raise SoftTimeLimitExceeded
        return trace(name, id_, *rest)

    worked: list[Any] = []
    traced = many(worked.append, count=4, trace=too_long)

    assert ends(traced) == ["SoftTimeLimitExceeded"] * 4
    assert worked == []


@pytest.mark.parametrize("fault", [SoftTimeLimitExceeded(), MemoryError(), RecursionError()])
def test_where_nothing_can_be_traced_each_message_has_failed(many: Many, fault: Exception) -> None:
    def trace_nothing(*_: Any) -> Traced:
        raise fault

    assert ends(many(fine, trace=trace_nothing)) == [type(fault).__name__] * 3


def test_a_time_limit_of_the_process_after_the_work_is_that_of_the_message_it_meets(
    many: Many,
) -> None:
    def told_to_stop(name: str, id_: str, *rest: Any) -> Traced:
        traced = trace(name, id_, *rest)
        if id_ == "id-1":
            signal.raise_signal(signal.SIGUSR1)
        return traced

    def stop(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        traced = many(fine, trace=told_to_stop)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ends(traced) == ["fine", "SoftTimeLimitExceeded", "fine"]


class Unsendable(Reject):
    """Cannot be read in another process."""

    def __init__(self) -> None:
        super().__init__("no")


class Local(Exception):
    """Has what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__(lambda: None)


@pytest.mark.parametrize(
    ("exc", "told"),
    [(Unsendable(), "Reject"), (Local(), "UnpickleableExceptionWrapper")],
    ids=["Reject", "Exception"],
)
def test_a_failure_that_cannot_be_sent_takes_no_other_along(
    many: Many, exc: Exception, told: str
) -> None:
    def as_it_is(name: str, id_: str, request: Any, *rest: Any) -> Traced:
        try:
            return 0, (id_, request["prepared"]()), 0.0
        except Exception:
            return 1, ExceptionInfo(), None

    traced = many(lambda _: ["fine", exc, "fine"], trace=as_it_is)

    assert ends(pickle.loads(pickle.dumps(traced))) == ["fine", told, "fine"]
