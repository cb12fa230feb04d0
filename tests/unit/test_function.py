"""The Lambda function: what becomes of the records of an event, by the rules of the worker."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import pytest
from celery import Celery, current_app, current_task
from celery.exceptions import Ignore, SoftTimeLimitExceeded, TimeLimitExceeded

from app.errors import PermanentError, TransientError
from app.messages import Increment, Registration
from sqs_broker.errors import ConfigurationError
from sqs_broker.function import Function
from sqs_broker.function.event import MalformedEvent
from sqs_broker.function.service import ServiceAway
from sqs_broker.rules.attempts import Record, carried_in
from sqs_broker.rules.dead_letter import read_note
from sqs_broker.sqs.errors import SqsError
from sqs_broker.testing import Clock, FakeSqs, MemoryAttempts, State
from sqs_broker.testing.fake_sqs import EPOCH
from tests.lambda_trigger import VISIBILITY, Context, Trigger
from tests.unit.conftest import GivePlane, celery_message
from tests.unit.in_memory import ControlDatabase

pytestmark = pytest.mark.usefixtures("no_collection")

#: Personal data of the messages.
MARKER = "Kim-1f9c"


class Away(Exception):
    """The service of these tasks cannot be reached."""


class Database:
    """The service of these tasks, which a test switches off."""

    name = "The database"
    aftermath = 0.0

    def __init__(self) -> None:
        self.error: str | None = None
        self.checks = 0
        self.finished = 0
        self.cannot_finish = False

    def open(self) -> None:
        if self.error:
            raise Away

    def find_error(self) -> str | None:
        self.checks += 1
        return self.error

    def finish(self) -> None:
        self.finished += 1
        if self.cannot_finish:
            raise Away


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    made = FakeSqs(clock)
    made.create_queue("jobs", dead_letters="jobs-dlq", visibility_timeout=VISIBILITY)
    return made


@pytest.fixture
def url(fake: FakeSqs) -> str:
    return "https://sqs.test/123456789012/jobs"


@pytest.fixture(autouse=True)
def _current_app() -> Iterator[None]:
    """The function makes its app Celery's current one."""
    before = current_app._get_current_object()
    yield
    before.set_current()


class Made:
    """A function, the tasks of which do what a test sets, and its trigger."""

    def __init__(self, fake: FakeSqs, url: str, database: Database) -> None:
        self.fake, self.url, self.database = fake, url, database
        self.register: Callable[[Registration], Any] = lambda _: None
        self.register_many: Callable[[Sequence[Any]], Any] | None = None
        self.increment: Callable[[Any], Any] = lambda _: None
        self.task_options: dict[str, Any] = {}
        self.conf: dict[str, Any] = {}
        self.options: dict[str, Any] = {}
        self.attempts: MemoryAttempts | None = None
        self.lines: list[dict[str, Any]] = []
        self.ended = threading.Event()
        self._trigger: Trigger | None = None
        self._began_at = fake.clock()

    def wall_clock(self) -> float:
        """The time of SQS, in seconds since 1970."""
        return EPOCH.timestamp() + self.fake.clock() - self._began_at

    @property
    def trigger(self) -> Trigger:
        if self._trigger is None:
            self._trigger = Trigger(self.fake, self.url, self.function())
        return self._trigger

    def function(self) -> Function:
        return Function(
            self.app,
            self.database,
            clock=self.fake.clock,
            attempts=self.attempts,
            wall_clock=self.wall_clock,
            write=lambda line: self.lines.append(json.loads(line)),
            end=self.ended.set,
        )

    @cached_property
    def app(self) -> Celery:
        app = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
        app.conf.update(
            broker_transport_options=self.fake.transport_options(
                decode_json="app.messages:decode_json", **self.options
            ),
            task_acks_late=True,
            task_ignore_result=True,
            task_soft_time_limit=25,
            task_time_limit=30,
            **self.conf,
        )
        many = self.register_many

        @app.task(
            shared=False, name="registerUser", model=Registration, many=many, suspect_on=(Away,)
        )
        def register_user(message: Registration, provenance: Any) -> Any:
            return self.register(message)

        @app.task(
            shared=False,
            name="increment",
            model=Increment,
            bind=True,
            suspect_on=(Away, SoftTimeLimitExceeded),
            **self.task_options,
        )
        def increment(task: Any, message: Increment, provenance: Any) -> Any:
            return self.increment(message)

        return app

    def invoke(self, event: Any = None) -> list[str]:
        """Invoke it with what is visible; give the ids that it returns."""
        answer = self.trigger.invoke(event)
        assert set(answer) == {"batchItemFailures"}
        assert all(set(failure) == {"itemIdentifier"} for failure in answer["batchItemFailures"])
        return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]

    def dead_letters(self) -> list[tuple[str, dict[str, Any]]]:
        return [
            (message.body, read_note(message.attributes) or {})
            for message in self.fake.messages(f"{self.url}-dlq")
        ]

    def metrics(self) -> dict[str, Any]:
        (line,) = self.lines
        return line


@pytest.fixture
def made(fake: FakeSqs, url: str, database: Database) -> Made:
    return Made(fake, url, database)


def registration(user: str, id_: str | None = None) -> str:
    return json.dumps(
        {
            "id": id_ or f"id-{user}",
            "action": "registerUser",
            "data": {"stock_id": "s1", "user_id": user, "user_info": {"nickname": MARKER}},
        }
    )


def increment(number: int) -> str:
    return json.dumps({"id": f"n-{number}", "action": "increment", "data": {"input": number}})


def raising(exc: BaseException) -> Callable[[Any], None]:
    def body(_: Any) -> None:
        raise exc

    return body


# Partial failures -------------------------------------------------------------------------------


def test_exactly_the_messages_that_come_again_are_returned(
    made: Made, fake: FakeSqs, url: str
) -> None:
    ends: dict[str, BaseException] = {
        "fails": KeyError(MARKER),
        "later": TransientError("later", retry_after=77),
        "never": PermanentError("it can never be"),
        "ignored": Ignore(),
    }

    def body(message: Registration) -> None:
        if message.user_id in ends:
            raise ends[message.user_id]

    made.register = body
    done = fake.put(url, registration("u1"))
    fails = fake.put(url, registration("fails"))
    fake.put(url, "nonsense")
    later = fake.put(url, registration("later"))
    fake.put(url, registration("never"))
    unknown = fake.put(url, registration("u2").replace("registerUser", "nobody"))
    fake.put(url, registration("u3").replace("nickname", "name"))
    fake.put(url, registration("ignored"))
    fake.put(url, registration("fails"), receives=2)
    due = datetime.now(UTC) + timedelta(seconds=500)
    early = celery_message("increment", ((), {"input": 1}, {}), eta=due.isoformat())
    fake.put(url, early)

    assert made.invoke() == [fails, later, unknown]
    left = {message.message_id: message for message in fake.messages(url)}
    assert done not in left
    # The last one is the copy of the message that is not due.
    assert [message.body for message in left.values()] == [
        registration("fails"),
        registration("later"),
        registration("u2").replace("registerUser", "nobody"),
        early,
    ]
    assert 0 < left[fails].visible_in <= 2
    assert left[later].visible_in == 77
    assert left[unknown].visible_in == 5
    assert [note["reason"] for _, note in made.dead_letters()] == [
        "the body is neither JSON nor base64 of JSON",
        "it can never be",
        "registerUser: user_info.nickname: Field required",
        "the task failed in the last attempt with KeyError (deliveries: 3)",
    ]


def test_a_dead_letter_has_the_attributes_of_its_message(
    made: Made, fake: FakeSqs, url: str
) -> None:
    attributes = {
        "trace": {"DataType": "String", "StringValue": "00-1"},
        "raw": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
    }
    fake.put(url, "nonsense", attributes=attributes)
    assert made.invoke() == []
    (dead,) = fake.messages(f"{url}-dlq")
    assert {name: dead.attributes[name] for name in attributes} == attributes
    assert (read_note(dead.attributes) or {})["source_queue"] == "jobs"


def test_the_backoff_grows_with_the_deliveries_and_has_jitter(
    made: Made, fake: FakeSqs, url: str
) -> None:
    made.increment = raising(TransientError("again"))
    for _ in range(10):
        fake.put(url, increment(1))
    for _ in range(10):
        fake.put(url, increment(2), receives=1)
    assert len(made.invoke()) == len(made.invoke()) == 10
    first, second = (
        {round(m.visible_in, 3) for m in fake.messages(url) if m.receives == n} for n in (1, 2)
    )
    assert max(first) <= 2
    assert max(second) <= 4
    # Full jitter, in whole seconds.
    assert len(second) > 1


def test_a_refused_change_of_visibility_is_logged_and_counted(
    made: Made, fake: FakeSqs, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    made.increment = raising(KeyError())
    ids = [fake.put(url, increment(number)) for number in range(2)]
    fake.fail("ChangeMessageVisibilityBatch", "InvalidParameterValue", entries=[0])
    assert made.invoke() == ids
    (record,) = [r for r in caplog.records if vars(r).get("event") == "settle.failed"]
    assert vars(record)["sqs_message_id"] == ids[0]
    assert vars(record)["error"] == "InvalidParameterValue"
    assert made.metrics()["SettleFailures"] == 1


def test_a_report_that_fails_once_is_tried_again(made: Made, fake: FakeSqs, url: str) -> None:
    made.increment = raising(KeyError())
    id_ = fake.put(url, increment(1))
    fake.fail("ChangeMessageVisibilityBatch", entries=[0])
    assert made.invoke() == [id_]
    (left,) = fake.messages(url)
    assert left.visible_in <= 2
    assert made.metrics()["SettleFailures"] == 0


def test_a_message_whose_copy_cannot_be_sent_comes_again(
    made: Made, fake: FakeSqs, url: str
) -> None:
    id_ = fake.put(url, "nonsense")
    fake.deny("SendMessage")
    assert made.invoke() == [id_]
    assert len(fake.messages(url)) == 1
    assert made.dead_letters() == []


def test_what_cannot_be_deleted_is_left_to_lambda_to_delete(
    made: Made, fake: FakeSqs, url: str
) -> None:
    runs: list[Any] = []
    made.increment = runs.append
    fake.put(url, increment(1))
    fake.deny("DeleteMessageBatch")
    assert made.invoke() == []
    assert len(runs) == 1


def test_after_its_copy_was_sent_a_message_is_only_deleted(
    made: Made, fake: FakeSqs, url: str, clock: Clock
) -> None:
    runs: list[int] = []

    def body(message: Increment) -> None:
        runs.append(message.input)
        raise PermanentError("it can never be")

    made.increment = body
    fake.put(url, increment(1))
    fake.deny("DeleteMessageBatch")
    made.invoke()
    fake.heal()
    clock.advance(VISIBILITY)
    assert made.invoke() == []
    assert fake.messages(url) == []
    assert len(made.dead_letters()) == 1
    assert runs == [1]


def test_what_was_done_is_deleted_although_the_invocation_fails(
    made: Made, fake: FakeSqs, url: str, database: Database
) -> None:
    def body(message: Increment) -> None:
        if message.input == 2:
            database.error = "AutoReconnect"
            raise Away

    made.increment = body
    for number in range(4):
        fake.put(url, increment(number))
    with pytest.raises(ServiceAway):
        made.invoke()
    assert [json.loads(body)["data"]["input"] for body in fake.bodies(url)] == [2, 3]


def test_what_was_done_is_deleted_before_a_task_that_may_kill_the_process(
    made: Made, fake: FakeSqs, url: str, clock: Clock
) -> None:
    left: list[int] = []

    def body(_: Increment) -> None:
        left.append(len(fake.messages(url)))
        clock.advance(2)

    made.increment = body
    for number in range(3):
        fake.put(url, increment(number))
    made.invoke()
    assert left == [3, 2, 1]


def test_quick_tasks_share_the_calls_of_their_deletes(made: Made, fake: FakeSqs, url: str) -> None:
    for number in range(10):
        fake.put(url, increment(number))
    event = made.trigger.event()
    fake.forget_calls()
    assert made.invoke(event) == []
    assert fake.counts == {"DeleteMessageBatch": 1}


def test_registrations_of_an_event_are_one_call_of_many(
    made: Made, fake: FakeSqs, url: str
) -> None:
    calls: list[list[str]] = []

    def many(pairs: Sequence[tuple[Registration, Any]]) -> list[Any]:
        calls.append([message.user_id for message, _ in pairs])
        return [
            PermanentError("not this one") if message.user_id == "u3" else {"result": "ok"}
            for message, _ in pairs
        ]

    made.register_many = many
    for number in range(9):
        fake.put(url, registration(f"u{number}"))
    fake.put(url, increment(1))
    assert made.invoke() == []
    assert calls == [[f"u{number}" for number in range(9)]]
    assert [note["reason"] for _, note in made.dead_letters()] == ["not this one"]


def test_more_messages_than_a_job_may_have_are_several_jobs(
    made: Made, fake: FakeSqs, url: str
) -> None:
    calls: list[int] = []

    def many(pairs: Sequence[Any]) -> list[Any]:
        calls.append(len(pairs))
        return [None] * len(pairs)

    made.register_many = many
    for number in range(30):
        fake.put(url, registration(f"u{number}"))
    records = [record for _ in range(3) for record in made.trigger.event()["Records"]]
    assert made.invoke({"Records": records}) == []
    assert calls == [20, 10]
    assert fake.messages(url) == []


def test_a_message_that_failed_before_runs_alone(made: Made, fake: FakeSqs, url: str) -> None:
    calls: list[int] = []
    alone: list[str] = []

    def many(pairs: Sequence[Any]) -> list[Any]:
        calls.append(len(pairs))
        return [None] * len(pairs)

    made.register_many, made.register = many, lambda message: alone.append(message.user_id)
    for number in range(3):
        fake.put(url, registration(f"u{number}"), receives=int(number == 1))
    assert made.invoke() == []
    assert (calls, alone) == ([2], ["u1"])


def test_an_expired_message_is_deleted_and_does_not_run(
    made: Made, fake: FakeSqs, url: str
) -> None:
    runs: list[Any] = []
    made.increment = runs.append
    fake.put(
        url, celery_message("increment", ((), {"input": 1}, {}), expires="2020-01-01T00:00:00")
    )
    assert made.invoke() == []
    assert (runs, fake.messages(url)) == ([], [])


def test_a_task_with_acks_late_off_is_deleted_before_it_runs(
    made: Made, fake: FakeSqs, url: str
) -> None:
    left: list[int] = []

    def body(_: Increment) -> None:
        left.append(len(fake.messages(url)))
        raise KeyError

    made.task_options, made.increment = {"acks_late": False}, body
    fake.put(url, increment(1))
    assert made.invoke() == []
    assert left == [0]


def test_a_task_that_exits_fails_and_the_function_goes_on(
    made: Made, fake: FakeSqs, url: str
) -> None:
    def body(message: Increment) -> None:
        if message.input == 1:
            raise SystemExit(3)

    made.increment = body
    exits = fake.put(url, increment(1))
    fake.put(url, increment(2))
    assert made.invoke() == [exits]


# Attempts ---------------------------------------------------------------------------------------


@pytest.fixture
def attempts(made: Made) -> MemoryAttempts:
    """The store of failed runs that the function and the workers have."""
    made.attempts = MemoryAttempts()
    return made.attempts


def test_a_delivery_without_a_failed_run_is_no_attempt(
    made: Made, fake: FakeSqs, url: str, attempts: MemoryAttempts
) -> None:
    made.increment = raising(KeyError())
    id_ = fake.put(url, increment(1), receives=5)
    assert made.invoke() == [id_]
    assert made.dead_letters() == []
    assert attempts.read([id_]) == {id_: Record(failed=frozenset({6}))}


def test_a_task_sees_the_failed_runs_of_workers_as_its_retries(
    made: Made, fake: FakeSqs, url: str, attempts: MemoryAttempts
) -> None:
    seen: list[int] = []

    def body(_: Increment) -> None:
        seen.append(current_task.request.retries)

    made.increment = body
    id_ = fake.put(url, increment(1), receives=5)
    attempts.add({id_: Record(failed=frozenset({2}))})
    assert made.invoke() == []
    assert seen == [1]


def test_a_failed_run_is_recorded_before_sqs_can_deliver_the_message_again(
    made: Made, fake: FakeSqs, url: str
) -> None:
    calls: list[int] = []

    class Store(MemoryAttempts):
        def add(self, changes: Mapping[str, Record]) -> None:
            calls.append(fake.counts["ChangeMessageVisibilityBatch"])
            super().add(changes)

    made.attempts, made.increment = Store(), raising(KeyError())
    ids = [fake.put(url, increment(number)) for number in range(10)]
    event = made.trigger.event()
    fake.forget_calls()
    assert made.invoke(event) == ids
    # One write for all of them.
    assert calls == [0]
    assert fake.counts["ChangeMessageVisibilityBatch"] == 1


def test_what_succeeds_at_its_first_delivery_makes_no_call_of_the_store(
    made: Made, fake: FakeSqs, url: str, attempts: MemoryAttempts
) -> None:
    for number in range(10):
        fake.put(url, increment(number))
    assert made.invoke() == []
    assert (attempts.reads, attempts.writes) == ([], [])


def test_one_read_finds_the_records_of_all_messages_that_were_delivered_before(
    made: Made, fake: FakeSqs, url: str, attempts: MemoryAttempts
) -> None:
    ids = [fake.put(url, increment(number), receives=number % 2) for number in range(4)]
    assert made.invoke() == []
    assert attempts.reads == [(ids[1], ids[3])]


def test_without_a_store_each_delivery_counts_as_an_attempt(
    made: Made, fake: FakeSqs, url: str
) -> None:
    made.increment = raising(KeyError())
    fake.put(url, increment(1), receives=2)
    assert made.invoke() == []
    ((_, note),) = made.dead_letters()
    assert note["reason"] == "the task failed in the last attempt with KeyError (deliveries: 3)"


def test_the_store_is_that_of_the_option_control(
    made: Made, fake: FakeSqs, url: str, give_plane: GivePlane
) -> None:
    store = ControlDatabase()
    address = give_plane(store=store)
    made.options["control"] = {"database_uri": address.uri, "database": address.database}
    made.increment = raising(KeyError())
    id_ = fake.put(url, increment(1))
    assert made.invoke() == [id_]
    assert store.memory.read([id_]) == {id_: Record(failed=frozenset({1}))}


def test_a_copy_in_place_of_a_retry_carries_its_failed_runs(
    made: Made, fake: FakeSqs, url: str, attempts: MemoryAttempts
) -> None:
    made.increment = raising(KeyError())
    id_ = fake.put(url, increment(1), receives=8)
    attempts.add({id_: Record(failed=frozenset({3}))})
    assert made.invoke() == []
    (copy,) = fake.messages(url)
    carried = carried_in(copy.attributes)
    assert (copy.receives, carried.failed, carried.deliveries) == (0, 2, 9)
    # It is a retry, and no release.
    line = made.metrics()
    assert (line["Ended"], line["Failed"], line["Released"]) == (1, 1, 0)
    fake.clock.advance(VISIBILITY)  # type: ignore[attr-defined]  # a Clock
    assert made.invoke() == []
    ((_, note),) = made.dead_letters()
    assert note["reason"] == (
        "the task failed in the last attempt with KeyError (failed runs: 3, deliveries: 10)"
    )


def test_a_failure_in_an_outage_is_recorded_as_a_release(
    made: Made, fake: FakeSqs, url: str, database: Database, attempts: MemoryAttempts
) -> None:
    def body(_: Increment) -> None:
        database.error = "AutoReconnect"
        raise Away

    made.increment = body
    id_ = fake.put(url, increment(1))
    with pytest.raises(ServiceAway):
        made.invoke()
    assert attempts.read([id_]) == {id_: Record(released=frozenset({1}))}


def test_a_message_that_was_only_released_shares_a_job(
    made: Made, fake: FakeSqs, url: str, attempts: MemoryAttempts
) -> None:
    calls: list[int] = []

    def many(pairs: Sequence[Any]) -> list[Any]:
        calls.append(len(pairs))
        return [None] * len(pairs)

    made.register_many = many
    released = fake.put(url, registration("u0"), receives=1)
    attempts.add({released: Record(released=frozenset({1}))})
    fake.put(url, registration("u1"), receives=1)
    for number in range(2, 4):
        fake.put(url, registration(f"u{number}"))
    assert made.invoke() == []
    # It is not known how the delivery of the second one ended.
    assert calls == [3]


def test_a_failed_run_in_the_last_deliveries_of_a_fifo_queue_is_a_retry_in_its_place(
    fake: FakeSqs, database: Database
) -> None:
    url = fake.create_queue("jobs.fifo", dead_letters="jobs-dlq.fifo")
    made = Made(fake, url, database)
    made.attempts, made.increment = MemoryAttempts(), raising(KeyError())
    id_ = fake.put(url, increment(1), receives=8)
    event = made.trigger.event()
    event["Records"][0]["attributes"] |= {"MessageGroupId": "g"}
    assert made.invoke(event) == [id_]
    assert fake.asked("SendMessage") == []
    assert made.attempts.read([id_]) == {id_: Record(failed=frozenset({9}))}


def test_a_message_of_an_unknown_task_is_dead_lettered_after_its_grace(
    made: Made, fake: FakeSqs, url: str, clock: Clock, attempts: MemoryAttempts
) -> None:
    fake.put(url, increment(1).replace("increment", "nobody"))
    began_at = clock()
    while fake.messages(url):
        assert made.dead_letters() == []
        if not made.trigger.poll():
            clock.advance(1)
        assert clock() - began_at < 1000
    assert clock() - began_at >= 600
    ((_, note),) = made.dead_letters()
    assert note["reason"] == "unknown task 'nobody'"


def test_a_message_with_more_callbacks_than_the_options_allow_is_dead_lettered(
    made: Made, fake: FakeSqs, url: str
) -> None:
    made.options["most_callbacks"] = 0
    ran: list[Any] = []
    made.increment = ran.append
    link = {"callbacks": [made.app.signature("increment", (), {"input": 2})]}
    fake.put(url, celery_message("increment", ((), {"input": 1}, link)))
    assert made.invoke() == []
    assert ran == []
    assert len(made.dead_letters()) == 1


def test_the_last_line_of_a_message_has_the_time_of_its_task(
    made: Made, fake: FakeSqs, url: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made.increment = lambda _: clock.advance(3)
    fake.put(url, increment(1))
    clock.advance(5)
    assert made.invoke() == []
    (line,) = [vars(r) for r in caplog.records if vars(r).get("event") == "message.done"]
    assert (line["queue_seconds"], line["wait_seconds"], line["run_seconds"]) == (5, 0, 3)


# Events -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [{"nonsense": 1}, [], None, "Records", {"Records": None}])
def test_what_is_no_event_of_sqs_raises(made: Made, event: Any) -> None:
    with pytest.raises(MalformedEvent):
        made.trigger.function(event, Context(made.fake.clock() + 30, made.fake.clock))


def test_an_event_without_records_has_an_empty_answer(made: Made) -> None:
    assert made.invoke({"Records": []}) == []


@pytest.mark.parametrize(
    "change",
    [
        {"body": None},
        {"receiptHandle": ""},
        {"attributes": {}},
        {"attributes": {"ApproximateReceiveCount": "x", "SentTimestamp": "1"}},
        {"eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:another"},
        {"messageAttributes": {"a": {"binaryValue": "%", "dataType": "Binary"}}},
    ],
)
def test_a_record_that_cannot_be_read_comes_again_and_no_other_does(
    made: Made, fake: FakeSqs, url: str, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    bad = fake.put(url, registration("u1"))
    fake.put(url, registration("u2"))
    event = made.trigger.event()
    event["Records"][0] |= change
    assert made.invoke(event) == [bad]
    assert [message.message_id for message in fake.messages(url)] == [bad]
    assert "function.unreadable" in {vars(record).get("event") for record in caplog.records}
    assert made.lines[-1]["UnreadableRecords"] == 1


@pytest.mark.parametrize("id_", [None, "", 7])
def test_a_record_without_an_id_fails_the_invocation_and_the_others_are_deleted(
    made: Made, fake: FakeSqs, url: str, id_: Any
) -> None:
    bad = fake.put(url, registration("u1"))
    fake.put(url, registration("u2"))
    event = made.trigger.event()
    event["Records"][0]["messageId"] = id_
    with pytest.raises(MalformedEvent):
        made.invoke(event)
    assert [message.message_id for message in fake.messages(url)] == [bad]


def test_no_message_is_returned_twice(made: Made, fake: FakeSqs, url: str) -> None:
    made.increment = raising(KeyError())
    id_ = fake.put(url, increment(1))
    event = made.trigger.event()
    event["Records"] *= 2
    assert made.invoke(event) == [id_]


def test_a_message_through_sns_is_unwrapped(made: Made, fake: FakeSqs, url: str) -> None:
    seen: list[str] = []
    made.register = lambda message: seen.append(message.user_id)
    notification = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-east-1:123456789012:users",
        "Message": registration("u1"),
        "Timestamp": "2026-11-22T12:00:00.000Z",
    }
    fake.put(url, json.dumps(notification))
    assert made.invoke() == []
    assert seen == ["u1"]


def test_fifo_attributes_of_a_standard_queue_mean_no_order(
    made: Made, fake: FakeSqs, url: str
) -> None:
    def body(message: Increment) -> None:
        if message.input == 0:
            raise KeyError

    made.increment = body
    ids = [fake.put(url, increment(number)) for number in range(3)]
    event = made.trigger.event()
    for record in event["Records"]:
        record["attributes"] |= {"MessageGroupId": "g", "SequenceNumber": "18849496460467696128"}
    assert made.invoke(event) == ids[:1]


def test_a_dead_letter_of_a_standard_queue_keeps_its_group(
    made: Made, fake: FakeSqs, url: str
) -> None:
    fake.put(url, "nonsense")
    event = made.trigger.event()
    event["Records"][0]["attributes"] |= {"MessageGroupId": "g"}
    assert made.invoke(event) == []
    (sent,) = fake.asked("SendMessage")
    assert sent["MessageGroupId"] == "g"
    assert "MessageDeduplicationId" not in sent


# FIFO -------------------------------------------------------------------------------------------


def test_in_a_fifo_queue_nothing_behind_a_failure_of_its_group_runs(
    fake: FakeSqs, database: Database
) -> None:
    url = fake.create_queue("jobs.fifo", dead_letters="jobs-dlq.fifo")
    made = Made(fake, url, database)
    ran: list[int] = []

    def body(message: Increment) -> None:
        ran.append(message.input)
        if message.input == 1:
            raise KeyError

    made.increment = body
    bodies = [increment(0), increment(1), increment(2), increment(3), "nonsense", increment(5)]
    ids = [fake.put(url, body) for body in bodies]
    event = made.trigger.event()
    for record, group in zip(event["Records"], "aaabab", strict=True):
        record["attributes"] |= {"MessageGroupId": group, "MessageDeduplicationId": "d"}
    assert made.invoke(event) == [ids[1], ids[2], ids[4]]
    assert ran == [0, 1, 3, 5]


def test_a_dead_letter_of_a_fifo_queue_keeps_its_group(fake: FakeSqs, database: Database) -> None:
    url = fake.create_queue("jobs.fifo", dead_letters="jobs-dlq.fifo")
    made = Made(fake, url, database)
    id_ = fake.put(url, "nonsense")
    event = made.trigger.event()
    event["Records"][0]["attributes"] |= {"MessageGroupId": "g"}
    assert made.invoke(event) == []
    (sent,) = fake.asked("SendMessage")
    assert (sent["MessageGroupId"], sent["MessageDeduplicationId"]) == ("g", id_)


# An outage --------------------------------------------------------------------------------------


def test_in_an_outage_what_was_done_is_deleted_and_the_invocation_fails(
    made: Made, fake: FakeSqs, url: str, database: Database
) -> None:
    ran: list[int] = []

    def body(message: Increment) -> None:
        ran.append(message.input)
        if message.input == 1:
            database.error = "AutoReconnect"
            raise Away(MARKER)

    made.increment = body
    for number in range(5):
        fake.put(url, increment(number))
    fake.put(url, "nonsense")
    with pytest.raises(ServiceAway, match=r"The database is unavailable \(AutoReconnect\)"):
        made.invoke()
    assert ran == [0, 1]
    left = fake.messages(url)
    assert [json.loads(message.body)["data"]["input"] for message in left] == [1, 2, 3, 4]
    assert all(2 <= message.visible_in <= 5 for message in left)
    # A message that can never run needs no database.
    assert len(made.dead_letters()) == 1
    assert made.metrics()["ServiceAway"] == 1


def test_no_task_starts_while_the_outage_goes_on(
    made: Made, fake: FakeSqs, url: str, database: Database
) -> None:
    ran: list[Any] = []
    made.increment = ran.append
    database.error = "AutoReconnect"
    fake.put(url, increment(1))
    with pytest.raises(ServiceAway):
        made.invoke()
    assert ran == []
    database.error = None
    fake.clock.advance(VISIBILITY)  # type: ignore[attr-defined]  # a Clock
    assert made.invoke() == []
    assert len(ran) == 1


def test_a_failure_that_an_outage_caused_does_not_count(
    made: Made, fake: FakeSqs, url: str, database: Database
) -> None:
    def body(_: Increment) -> None:
        database.error = "AutoReconnect"
        raise Away

    made.increment = body
    # A failure would be final in this delivery.
    fake.put(url, increment(1), receives=4)
    with pytest.raises(ServiceAway):
        made.invoke()
    assert len(fake.messages(url)) == 1
    assert made.dead_letters() == []


def test_a_failure_right_after_an_outage_does_not_count(
    made: Made, fake: FakeSqs, url: str, database: Database
) -> None:
    made.increment = raising(Away())
    database.aftermath, database.error = 60.0, "AutoReconnect"
    trigger = made.trigger
    fake.put(url, increment(1), receives=4)
    trigger.poll()
    database.error = None
    while trigger.poll() == 0:
        fake.clock.advance(1)  # type: ignore[attr-defined]  # a Clock
    assert [type(exc) for exc in trigger.raised] == [ServiceAway]
    assert made.dead_letters() == []
    fake.clock.advance(120)  # type: ignore[attr-defined]  # a Clock
    trigger.poll()
    assert len(made.dead_letters()) == 1


def test_a_failure_that_no_outage_caused_counts(
    made: Made, fake: FakeSqs, url: str, database: Database
) -> None:
    made.increment = raising(Away())
    fake.put(url, increment(1), receives=2)
    assert made.invoke() == []
    assert database.checks == 1
    assert len(made.dead_letters()) == 1


def test_the_visibility_grows_with_the_outage(
    made: Made, fake: FakeSqs, url: str, database: Database, clock: Clock
) -> None:
    database.error = "AutoReconnect"
    trigger, began_at = made.trigger, clock()
    for age in (0, 100, 400, 4000):
        clock.advance(began_at + age - clock())
        fake.put(url, increment(age))
        while trigger.poll():
            pass
        delay = fake.messages(url)[-1].visible_in
        # SQS_BACKOFF_MAX is 600 s.
        assert max(min(age, 600) / 2, 2) <= delay <= max(min(age, 600), 5)


def test_in_the_last_delivery_a_copy_is_sent_and_nothing_is_dead_lettered(
    made: Made, fake: FakeSqs, url: str, database: Database
) -> None:
    database.error = "AutoReconnect"
    id_ = fake.put(url, increment(1), receives=9)
    with pytest.raises(ServiceAway):
        made.invoke()
    (copy,) = fake.messages(url)
    assert (copy.body, copy.receives, copy.state) == (increment(1), 0, State.DELAYED)
    assert copy.message_id != id_
    assert made.dead_letters() == []


@pytest.mark.parametrize("is_new", [False, True], ids=["one sandbox", "a new sandbox each time"])
def test_an_outage_of_four_hours_dead_letters_nothing(
    made: Made, fake: FakeSqs, url: str, database: Database, clock: Clock, is_new: bool
) -> None:
    done: list[int] = []

    def body(message: Increment) -> None:
        clock.advance(5)  # The timeout of the driver.
        if database.error:
            raise Away
        done.append(message.input)

    made.increment = body
    trigger = made.trigger
    trigger.poll()
    began_at = clock()
    database.error = "AutoReconnect"
    for number in range(50):
        fake.put(url, increment(number))
    while len(done) < 50:
        if is_new:
            trigger.function = made.function()
        if clock() - began_at >= 4 * 3600:
            database.error = None
        if not trigger.poll():
            clock.advance(min(m.visible_in for m in fake.messages(url)) or 1)
        assert clock() - began_at < 5 * 3600
        assert made.dead_letters() == []
    while fake.messages(url):
        clock.advance(60)
        trigger.poll()
    assert sorted(done) == list(range(50))
    assert made.dead_letters() == []
    assert {type(exc) for exc in trigger.raised} == {ServiceAway}


# Time -------------------------------------------------------------------------------------------


def test_what_cannot_start_in_time_is_handed_back(
    made: Made, fake: FakeSqs, url: str, clock: Clock
) -> None:
    ran: list[int] = []

    def body(message: Increment) -> None:
        ran.append(message.input)
        clock.advance(9)

    made.increment = body
    ids = [fake.put(url, increment(number)) for number in range(5)]
    assert made.invoke() == ids[3:]
    assert ran == [0, 1, 2]
    assert [message.state for message in fake.messages(url)] == [State.VISIBLE] * 2
    assert made.metrics()["Released"] == 2


def test_what_cannot_start_in_time_after_a_slow_report_is_handed_back(
    made: Made, fake: FakeSqs, url: str, clock: Clock
) -> None:
    ran: list[int] = []

    def body(message: Increment) -> None:
        ran.append(message.input)
        clock.advance(19)

    made.increment = body
    ids = [fake.put(url, increment(number)) for number in range(2)]
    event = made.trigger.event()
    fake.slow("DeleteMessageBatch", before=3)
    assert made.invoke(event) == ids[1:]
    assert ran == [0]


def test_a_timeout_in_which_nothing_can_start_is_said_so(
    made: Made, fake: FakeSqs, url: str
) -> None:
    fake.put(url, increment(1))
    made.trigger.timeout = 3
    with pytest.raises(ConfigurationError, match="needs at least 9 s"):
        made.invoke()
    (left,) = fake.messages(url)
    assert left.state is State.VISIBLE


@pytest.mark.parametrize("is_first", [True, False])
def test_a_task_is_stopped_before_the_function_is(
    made: Made, fake: FakeSqs, url: str, is_first: bool
) -> None:
    def body(message: Increment) -> None:
        if message.input == 1:
            time.sleep(60)

    made.increment = body
    made.trigger.timeout = 9.2
    if not is_first:
        fake.put(url, increment(0))
    slow = fake.put(url, increment(1), receives=2)
    began = time.monotonic()
    returned = made.invoke()
    assert time.monotonic() - began < 5
    if is_first:
        # It had all the time that the function can give, so it has failed.
        assert returned == []
        assert len(made.dead_letters()) == 1
    else:
        # It had less, because another task ran before it.
        assert returned == [slow]
        assert fake.messages(url)[0].state is State.VISIBLE


def test_the_soft_time_limit_of_a_task_is_raised_in_it(made: Made, fake: FakeSqs, url: str) -> None:
    caught: list[BaseException] = []

    def body(_: Increment) -> None:
        try:
            time.sleep(60)
        except SoftTimeLimitExceeded as exc:
            caught.append(exc)

    made.task_options, made.increment = {"soft_time_limit": 0.2}, body
    fake.put(url, increment(1))
    began = time.monotonic()
    assert made.invoke() == []
    assert time.monotonic() - began < 5
    assert len(caught) == 1


def test_a_task_that_goes_on_after_its_soft_limit_is_stopped_at_the_hard_one(
    made: Made, fake: FakeSqs, url: str
) -> None:
    def body(_: Increment) -> None:
        while True:
            try:
                time.sleep(60)
            except Exception:
                continue

    made.task_options, made.increment = {"soft_time_limit": 0.1, "time_limit": 0.3}, body
    fake.put(url, increment(1), receives=2)
    began = time.monotonic()
    assert made.invoke() == []
    assert time.monotonic() - began < 5
    ((_, note),) = made.dead_letters()
    assert note["reason"] == (
        "the task exceeded its hard time limit in the last attempt (deliveries: 3)"
    )


def test_if_a_task_cannot_be_stopped_the_rest_is_settled_and_the_process_ends(
    made: Made, fake: FakeSqs, url: str
) -> None:
    def body(message: Increment) -> None:
        # As in an extension that does not return to Python: no exception comes through.
        while message.input == 1 and not made.ended.is_set():
            try:
                made.ended.wait(60)
            except BaseException:
                continue

    made.increment = body
    made.trigger.timeout = 9.2
    for number in range(3):
        fake.put(url, increment(number))
    with pytest.raises(TimeLimitExceeded):
        made.invoke()
    assert made.ended.is_set()
    stuck, waiting = fake.messages(url)
    assert (stuck.body, waiting.body) == (increment(1), increment(2))
    assert stuck.visible_in <= 2
    assert waiting.state is State.VISIBLE
    assert made.metrics()["Ended"] == 2


# Sandboxes --------------------------------------------------------------------------------------


def test_the_service_and_the_client_are_opened_once(made: Made, fake: FakeSqs, url: str) -> None:
    for number in range(3):
        fake.put(url, increment(number))
        assert made.invoke() == []
    assert len(fake.drivers) == 1


def test_the_service_finishes_each_invocation(
    made: Made, fake: FakeSqs, url: str, database: Database
) -> None:
    fake.put(url, increment(1))
    made.invoke()
    assert database.finished == 1
    with pytest.raises(MalformedEvent):
        made.invoke({"Records": 7})
    assert database.finished == 1  # Nothing began.
    database.error = "AutoReconnect"

    def fail(_: Increment) -> None:
        raise Away

    made.increment = fail
    fake.put(url, increment(2))
    with pytest.raises(ServiceAway):
        made.invoke()
    assert database.finished == 2


def test_a_service_that_cannot_finish_changes_no_outcome_and_is_logged(
    made: Made, fake: FakeSqs, url: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.cannot_finish = True
    fake.put(url, increment(1))
    assert made.invoke() == []
    assert [vars(r)["error"] for r in caplog.records if "unfinished" in vars(r)["event"]] == [
        "Away"
    ]


def test_a_service_that_cannot_be_opened_is_an_outage_and_no_error_of_the_start(
    made: Made, fake: FakeSqs, url: str, database: Database
) -> None:
    database.error = "ServerSelectionTimeoutError"
    function = made.function()
    function.open()
    fake.put(url, increment(1))
    trigger = Trigger(fake, url, function)
    trigger.poll()
    assert [type(exc) for exc in trigger.raised] == [ServiceAway]
    assert len(fake.messages(url)) == 1


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidClientTokenId"])
def test_after_credentials_have_expired_others_are_searched(
    made: Made, fake: FakeSqs, url: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    closed: list[None] = []

    monkeypatch.setattr(fake, "close", lambda: closed.append(None))
    fake.put(url, increment(1))
    event = made.trigger.event()
    fake.fail("DeleteMessageBatch", error=SqsError(code))
    assert made.invoke(event) == []
    assert len(closed) == 1
    assert fake.messages(url) == []
    assert made.metrics()["SettleFailures"] == 0


# Metrics and logs -------------------------------------------------------------------------------


def test_an_invocation_writes_one_metric_line(
    made: Made, fake: FakeSqs, url: str, clock: Clock
) -> None:
    made.increment = raising(KeyError())
    fake.put(url, registration("u1"))
    fake.put(url, increment(1))
    fake.put(url, increment(1), receives=2)
    fake.put(url, "nonsense")
    made.invoke()
    line = made.metrics()
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Dimensions"] == [["Queue"]]
    assert line["Queue"] == "jobs"
    units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
    assert {name: line[name] for name in units if name not in ("Age", "SentToDone")} == {
        "Ended": 4,
        "Failed": 3,
        "DeadLettered": 2,
        "LateFailures": 1,
        "Released": 0,
        "SettleFailures": 0,
        "LostLeases": 0,
        "UnreadableRecords": 0,
        "ServiceAway": 0,
        # The two that are deleted, and the other one's visibility. Not those to the other queue.
        "Calls": 2,
    }
    assert units["Age"] == "Seconds"
    assert len(line["SentToDone"]) == 1


def test_neither_the_log_nor_the_metrics_show_personal_data(
    made: Made, fake: FakeSqs, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made.register = raising(KeyError(MARKER))
    for body in (registration("u1"), MARKER, registration("u2").replace("nickname", MARKER)):
        fake.put(url, body)
    made.invoke()
    ours = [record for record in caplog.records if record.name.startswith("sqs_broker")]
    assert ours
    assert MARKER not in str([vars(record) for record in ours]) + str(made.lines)
