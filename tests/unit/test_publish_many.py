"""publish_many(): ten a call and within its limits; what became of each message is told."""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import pytest
from celery import Celery

from app.celery import Registrations
from app.messages import Registration
from sqs_broker import install
from sqs_broker.errors import EtaTooFar
from sqs_broker.sqs.errors import Unreached
from sqs_broker.sqs.publisher import PROGRESS_EVERY, Published, publish_many
from sqs_broker.sqs.queue import TRIES
from sqs_broker.testing import FakeSqs
from tests.services import wait_until

SEND = "SendMessageBatch"
LIMIT = 10_000
#: Seconds for what takes milliseconds.
PATIENCE = 30
AWAY = Unreached("EndpointConnectionError")


class Gate:
    """Holds the first calls until so many are open, and counts how many are."""

    def __init__(self, calls: int) -> None:
        self.most = 0
        self._open = 0
        self._lock = threading.Lock()
        self._barrier = threading.Barrier(calls)

    def pass_(self, call: Any) -> None:
        with self._lock:
            self._open += 1
            self.most = max(self.most, self._open)
        with suppress(threading.BrokenBarrierError):
            self._barrier.wait(timeout=5)
        with self._lock:
            self._open -= 1


@pytest.fixture
def task(fake: FakeSqs) -> Iterator[Any]:
    """A task of an app on this broker, with two queues."""
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.update(
        task_default_queue="jobs",
        task_routes=[lambda name, args, kwargs, options, task=None: {"queue": kwargs.get("to")}],
        task_create_missing_queues=False,
        broker_transport_options=fake.transport_options(max_message_bytes=LIMIT),
    )
    yield app.task(shared=False, name="job")(job)
    app.close()


def job(number: int, text: str = "", to: str = "jobs") -> None:
    """The task."""


def is_of_number(number: int) -> Callable[[Any], bool]:
    """Whether an entry is the message of this number."""
    return lambda entry: json.loads(json.loads(entry["MessageBody"])["body"])[1]["number"] == number


def sizes(fake: FakeSqs) -> list[int]:
    """The number of messages of each call, the largest first: some calls are open at a time."""
    return sorted((len(call["Entries"]) for call in fake.asked(SEND)), reverse=True)


def numbers(count: int) -> Iterator[dict[str, Any]]:
    return ({"number": number} for number in range(count))


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [1]), (10, [10]), (11, [10, 1]), (25, [10, 10, 5])]
)
def test_messages_are_sent_ten_a_call(
    fake: FakeSqs, task: Any, count: int, expected: list[int]
) -> None:
    assert publish_many(task, numbers(count)) == Published(sent=count)
    assert sizes(fake) == expected
    assert set(fake.counts) <= {SEND}


def test_a_call_is_within_the_limit_in_bytes_too(fake: FakeSqs, task: Any) -> None:
    publish_many(task, ({"number": n, "text": "x" * 4_000} for n in range(5)))
    assert sizes(fake) == [2, 2, 1]
    for call in fake.asked(SEND):
        assert sum(len(entry["MessageBody"]) for entry in call["Entries"]) <= LIMIT


def test_what_cannot_be_sent_is_in_the_result_and_the_others_are_sent(
    fake: FakeSqs, task: Any
) -> None:
    published = publish_many(
        task, [{"number": 0}, {"number": 1, "text": "x" * LIMIT}, {"numero": 2}, {"number": 3}]
    )
    assert published.sent == 2
    assert "bytes; the queue accepts 10000" in published.failed[1]
    assert "unexpected keyword argument" in published.failed[2]
    assert sizes(fake) == [2]


def test_what_sqs_refuses_is_in_the_result_by_its_place(fake: FakeSqs, task: Any) -> None:
    fake.fail(SEND, "Refused", entries=[is_of_number(11)], sender_fault=True)
    published = publish_many(task, numbers(15))
    assert published == Published(sent=14, failed={11: "Refused"})
    assert sizes(fake) == [10, 5]


def test_what_sqs_failed_itself_is_sent_again_alone(fake: FakeSqs, task: Any) -> None:
    fake.fail(SEND, entries=[0, 2])
    fake.fail(SEND, entries=[1])
    assert publish_many(task, numbers(3)) == Published(sent=3)
    assert sizes(fake) == [3, 2, 1]


def test_what_sqs_fails_each_time_is_in_the_result(fake: FakeSqs, task: Any) -> None:
    fake.fail(SEND, "Busy", entries=[is_of_number(1)], times=TRIES)
    published = publish_many(task, numbers(3))
    assert published == Published(sent=2, failed={1: "Busy"})
    assert sizes(fake) == [3, *[1] * (TRIES - 1)]


@pytest.mark.parametrize("count", [5, 10, 25])
def test_a_call_that_does_not_reach_sqs_is_tried_again(
    fake: FakeSqs, task: Any, count: int
) -> None:
    fake.fail(SEND, error=AWAY, times=2)
    assert publish_many(task, numbers(count)) == Published(sent=count)


def test_what_sqs_has_accepted_is_not_sent_again_with_a_message_that_it_has_not(
    fake: FakeSqs, task: Any
) -> None:
    fake.fail(SEND, entries=[0])
    fake.fail(SEND, error=AWAY)
    assert publish_many(task, numbers(3)) == Published(sent=3)
    assert sizes(fake) == [3, 1, 1]


@pytest.mark.parametrize("count", [5, 100])
def test_no_message_is_lost_without_a_word_where_sqs_cannot_be_reached(
    fake: FakeSqs, task: Any, count: int
) -> None:
    task.app.conf.broker_transport_options["publish_timeout"] = 0.2
    fake.fail(SEND, error=AWAY, times=inf)
    published = publish_many(task, numbers(count))
    assert published.sent == 0
    assert set(published.failed) == set(range(count))
    # The calls that had begun say why. The others would each have taken as long again.
    assert published.failed[0] == AWAY.code
    assert set(published.failed.values()) == {AWAY.code, *(["NotTried"] if count > 40 else [])}


def test_some_calls_are_open_at_a_time_and_each_result_is_at_its_place(
    fake: FakeSqs, task: Any
) -> None:
    gate = Gate(3)
    fake.on_call = gate.pass_
    fake.fail(SEND, "Refused", entries=[is_of_number(25), is_of_number(3)], sender_fault=True)
    fake.fail(SEND, "Refused", entries=[is_of_number(25), is_of_number(3)], sender_fault=True)
    published = publish_many(task, numbers(30), calls=3)
    assert gate.most == 3
    assert published == Published(sent=28, failed={3: "Refused", 25: "Refused"})


@pytest.mark.parametrize("calls", [1, 2])
def test_no_more_calls_are_open_than_were_asked_for(fake: FakeSqs, task: Any, calls: int) -> None:
    gate = Gate(calls)
    fake.on_call = gate.pass_
    publish_many(task, numbers(100), calls=calls)
    assert gate.most == calls


def test_messages_are_made_while_calls_are_open_and_the_next_calls_begin_meanwhile(
    fake: FakeSqs, task: Any
) -> None:
    made = threading.Event()

    def messages() -> Iterator[dict[str, Any]]:
        yield from numbers(22)
        made.set()
        wait_until(lambda: len(fake.entries(SEND)) == 20, PATIENCE, "two calls")
        yield {"number": 22}

    fake.on_call = lambda call: made.wait(PATIENCE)
    assert publish_many(task, messages(), calls=1) == Published(sent=23)
    assert made.is_set()
    assert sizes(fake) == [10, 10, 3]


def test_if_the_messages_end_with_an_error_those_of_calls_that_have_not_begun_are_not_sent(
    fake: FakeSqs, task: Any
) -> None:
    may_end = threading.Event()

    def messages() -> Iterator[dict[str, Any]]:
        yield from numbers(25)
        raise InterruptedError

    fake.on_call = lambda call: may_end.wait(PATIENCE)
    with pytest.raises(InterruptedError):
        publish_many(task, messages(), calls=1)
    may_end.set()
    task.delay(number=25)
    assert len(fake.entries(SEND)) <= 10


def test_a_message_takes_little_work(fake: FakeSqs) -> None:
    app = Registrations("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    install(app)
    app.conf.update(broker_transport_options=fake.transport_options(), task_default_queue="jobs")
    task = app.task(name="registerUser", model=Registration)(job)
    users = [
        {"stock_id": "s1", "user_id": f"u{number}", "user_info": {"nickname": "kim"}}
        for number in range(100)
    ]
    publish_many(task, users)
    called: list[str] = []
    sys.setprofile(lambda frame, event, _: event == "call" and called.append(frame.f_code.co_name))
    published = publish_many(task, users)
    sys.setprofile(None)
    app.close()
    assert published.sent == 100
    # Functions in Python. They were 377 with a copy of the queue for each message, and a model that
    # was read twice.
    assert len(called) / 100 < 330


@pytest.mark.parametrize("tty", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    task: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tty: bool,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: tty)
    publish_many(task, numbers(PROGRESS_EVERY + 1))
    # The calls that are still open are not counted yet.
    assert (re.fullmatch(r"\r\d+ sent, 0 failed", capsys.readouterr().err) is not None) is tty


def test_the_next_single_message_is_sent_at_once(fake: FakeSqs, task: Any) -> None:
    publish_many(task, numbers(3))
    task.delay(number=3)
    assert fake.counts == {SEND: 1, "SendMessage": 1}


def test_a_task_that_is_due_too_late_is_refused_however_it_is_sent(
    fake: FakeSqs, task: Any
) -> None:
    far = datetime.now(UTC) + timedelta(days=15)
    with pytest.raises(EtaTooFar):
        task.apply_async(kwargs={"number": 1}, eta=far)
    with pytest.raises(EtaTooFar):
        task.app.send_task("job", kwargs={"number": 1}, countdown=15 * 86_400, queue="jobs")
    assert fake.calls == []
