"""What a pool process gets of plain messages is what it gets of the same messages one by one."""

import json
import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.messages import decode_json
from sqs_broker.errors import Undecodable
from sqs_broker.rules.decoding import decode
from sqs_broker.worker.batch import Call, Job
from sqs_broker.worker.plain import Kind, Plain
from sqs_broker.worker.plain_jobs import PlainJob, PlainJobs
from tests.bodies import ENVELOPE, FIELDS, bodies
from tests.unit.conftest import MakeDelivery

APP = SimpleNamespace(conf=SimpleNamespace(task_time_limit=30))
TASK = SimpleNamespace(name="registerUser", time_limit=None, soft_time_limit=25)
KIND = Kind(TASK, APP, "celery@here", None, None, has_events=True, is_suspect=False)


def plains_of(make_delivery: MakeDelivery, texts: Sequence[str]) -> list[Plain]:
    found = []
    for text in texts:
        try:
            content = decode(make_delivery(body=text), decode_json)
        except Undecodable:
            continue
        found.append(Plain(KIND, None, content))
    return found


def sent(plains: Sequence[Plain]) -> Any:
    jobs = PlainJobs(plains, plains[0].limits, KIND.hostname)
    return pickle.loads(pickle.dumps(jobs, pickle.HIGHEST_PROTOCOL))


def sent_one_by_one(plains: Sequence[Plain]) -> Any:
    jobs = [Job(each.id, each.request_dict, *each.body) for each in plains]
    return pickle.loads(pickle.dumps(jobs, pickle.HIGHEST_PROTOCOL))


def seen(job: Job | PlainJob) -> tuple[str, ...]:
    """All that a process reads of a message. A number that is none is not equal to itself."""
    return (
        repr(job.id),
        repr((job.args, job.kwargs, job.embed)),
        repr(sorted(job.request.items())),
        repr(sorted(job.given.items())),
        repr(sorted(vars(Call(job.args, job.kwargs, job.given).request).items())),
        repr((job.given.get("nobody", "nothing"), len(job.given), "delivery" in job.given)),
    )


def envelope(number: int, **headers: Any) -> str:
    """A registration as Celery sends it."""
    body = json.dumps([[number], FIELDS, ENVELOPE["body"][2]])
    given_ = {**ENVELOPE["headers"], "id": f"id-{number}", **headers}
    return json.dumps({**ENVELOPE, "body": body, "headers": given_})


@settings(derandomize=True, database=None, max_examples=150)
@given(texts=st.lists(bodies, min_size=1, max_size=6))
def test_whatever_the_messages_are_a_process_gets_what_it_gets_one_by_one(
    make_delivery: MakeDelivery, texts: list[str]
) -> None:
    plains = plains_of(make_delivery, [*texts, envelope(1)])
    jobs, wanted = sent(plains), sent_one_by_one(plains)
    assert [seen(job) for job in jobs] == [seen(job) for job in wanted]


@pytest.fixture
def three(make_delivery: MakeDelivery) -> list[Plain]:
    return plains_of(make_delivery, [envelope(n, traceparent=f"trace-{n}") for n in range(3)])


def test_where_a_message_came_from_is_known_before_its_request(three: list[Plain]) -> None:
    for job, plain in zip(sent(three), three, strict=True):
        assert job.given["delivery"] == plain.headers["delivery"]
        assert job.request["delivery"] is job.given["delivery"]


def test_what_is_written_into_a_request_stays_there(three: list[Plain]) -> None:
    # Celery's trace writes the hostname into it, and the job what to call.
    first, second, _ = sent(three)
    second.request["prepared"] = "this"
    assert second.request["prepared"] == "this"
    assert "prepared" not in first.request


def test_the_arguments_of_a_request_are_those_of_the_job(three: list[Plain]) -> None:
    for job in sent(three):
        assert job.request["args"] is job.args
        assert job.request["kwargs"] is job.kwargs


def test_without_another_process_the_messages_are_the_same(three: list[Plain]) -> None:
    jobs = PlainJobs(three, three[0].limits, KIND.hostname)
    assert len(jobs) == 3
    assert [seen(job) for job in jobs] == [seen(job) for job in sent(three)]
    assert [job.id for job in jobs[1:]] == ["id-1", "id-2"]


def test_what_is_sent_does_not_change_the_message_itself(three: list[Plain]) -> None:
    before = [repr(plain.request_dict) for plain in three]
    sent(three)
    assert [repr(plain.request_dict) for plain in three] == before
