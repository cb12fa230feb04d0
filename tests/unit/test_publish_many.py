"""publish_many(): ten a call and within its limits; what became of each message is told."""

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from celery import Celery
from kombu.exceptions import OperationalError

from sqs_broker import install
from sqs_broker.sqs.publisher import TRIES, Published, publish_many

JOBS, MAIL = "https://sqs.test/jobs", "https://sqs.test/mail"
LIMIT = 10_000


class Sqs:
    """Takes batches. `faults` are those of the next calls: an exception, or the ids of the entries
    that fail, each with whether it is the sender's fault."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.faults: list[Any] = []

    def send_message_batch(self, **call: Any) -> dict[str, Any]:
        self.calls.append(call)
        fault = self.faults.pop(0) if self.faults else {}
        if isinstance(fault, Exception):
            raise fault
        ids = [entry["Id"] for entry in call["Entries"]]
        return {
            "Successful": [{"Id": id_} for id_ in ids if id_ not in fault],
            "Failed": [
                {"Id": id_, "SenderFault": fault[id_], "Code": "Refused" if fault[id_] else "Busy"}
                for id_ in ids
                if id_ in fault
            ],
        }

    def send_message(self, **call: Any) -> None:
        self.calls.append(call | {"Entries": [call]})

    @property
    def sizes(self) -> list[int]:
        return [len(call["Entries"]) for call in self.calls]


@pytest.fixture
def sqs(monkeypatch: pytest.MonkeyPatch) -> Sqs:
    """What stands where boto3's client stands. Nothing pauses."""
    made = Sqs()
    monkeypatch.setattr("sqs_broker.sqs.clients.new_client", lambda _, **how: made)
    monkeypatch.setattr("sqs_broker.sqs.publisher.FIRST_PAUSE", 0)
    return made


@pytest.fixture
def task(sqs: Sqs) -> Iterator[Any]:
    """A task of an app on this broker, with two queues."""
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.update(
        task_default_queue="jobs",
        task_routes=[lambda name, args, kwargs, options, task=None: {"queue": kwargs.get("to")}],
        task_create_missing_queues=False,
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": JOBS}, "mail": {"url": MAIL}},
            "max_message_bytes": LIMIT,
        },
    )
    yield app.task(shared=False, name="job")(job)
    app.close()


def job(number: int, text: str = "", to: str = "jobs") -> None:
    """The task."""


def numbers(count: int) -> Iterator[dict[str, Any]]:
    return ({"number": number} for number in range(count))


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (10, [10]), (11, [10, 1]), (25, [10, 10, 5])]
)
def test_messages_are_sent_ten_a_call(sqs: Sqs, task: Any, count: int, sizes: list[int]) -> None:
    assert publish_many(task, numbers(count)) == Published(sent=count)
    assert sqs.sizes == sizes
    assert all(len({entry["Id"] for entry in call["Entries"]}) > 0 for call in sqs.calls)


def test_a_call_is_within_the_limit_in_bytes_too(sqs: Sqs, task: Any) -> None:
    publish_many(task, ({"number": n, "text": "x" * 4_000} for n in range(5)))
    assert sqs.sizes == [2, 2, 1]
    for call in sqs.calls:
        assert sum(len(entry["MessageBody"]) for entry in call["Entries"]) <= LIMIT


def test_what_cannot_be_sent_is_in_the_result_and_the_others_are_sent(sqs: Sqs, task: Any) -> None:
    published = publish_many(
        task, [{"number": 0}, {"number": 1, "text": "x" * LIMIT}, {"numero": 2}, {"number": 3}]
    )
    assert published.sent == 2
    assert "bytes; the queue takes 10000" in published.failed[1]
    assert "unexpected keyword argument" in published.failed[2]
    assert sqs.sizes == [2]


def test_what_sqs_refuses_is_in_the_result_by_its_place(sqs: Sqs, task: Any) -> None:
    sqs.faults = [{}, {"1": True}]
    published = publish_many(task, numbers(15))
    assert published == Published(sent=14, failed={11: "Refused"})
    assert len(sqs.calls) == 2


def test_what_sqs_failed_itself_is_sent_again_alone(sqs: Sqs, task: Any) -> None:
    sqs.faults = [{"0": False, "2": False}, {"1": False}]
    assert publish_many(task, numbers(3)) == Published(sent=3)
    assert sqs.sizes == [3, 2, 1]


def test_what_sqs_fails_each_time_is_in_the_result(sqs: Sqs, task: Any) -> None:
    sqs.faults = [{"1": False}, *[{"0": False}] * TRIES]
    published = publish_many(task, numbers(3))
    assert published == Published(sent=2, failed={1: "Busy"})
    assert sqs.sizes == [3, *[1] * (TRIES - 1)]


@pytest.mark.parametrize("count", [5, 10, 25])
@pytest.mark.parametrize("times", [1, 100])
def test_no_message_is_lost_without_a_word_where_sqs_cannot_be_reached(
    sqs: Sqs, task: Any, count: int, times: int
) -> None:
    sqs.faults = [EndpointConnectionError(endpoint_url=JOBS)] * times
    try:
        published = publish_many(task, numbers(count))
    except (EndpointConnectionError, OperationalError):
        # Celery says the second for the first.
        return
    assert published.sent + len(published.failed) == count


@pytest.mark.parametrize("tty", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    task: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tty: bool,
) -> None:
    monkeypatch.setattr("sqs_broker.sqs.publisher.PROGRESS_EVERY", 10)
    monkeypatch.setattr("sys.stderr.isatty", lambda: tty)
    publish_many(task, numbers(21))
    assert ("20 sent, 0 failed" in capsys.readouterr().err) is tty


def test_the_next_single_message_is_sent_at_once(sqs: Sqs, task: Any) -> None:
    publish_many(task, numbers(3))
    task.delay(number=3)
    assert sqs.sizes == [3, 1]
