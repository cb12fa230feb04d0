"""`with batching():` sends what its block called, all together, or nothing."""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import Any

import pytest
from celery import Celery, group
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from sqs_broker import BatchError, MessageTooLarge, PublishError, SqsError, batching, install
from sqs_broker.errors import ConfigurationError
from sqs_broker.sqs.errors import Unreached
from sqs_broker.testing import FakeSqs

ONE, MANY = "SendMessage", "SendMessageBatch"
LIMIT = 10_000

#: Seconds that a call has, if it is to fail.
SHORT = 0.2


@pytest.fixture
def task(fake: FakeSqs) -> Iterator[Any]:
    """A task of an app on this broker, with two queues."""
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.update(
        task_queues=[Queue(name, Exchange(""), routing_key=name) for name in ("jobs", "mail")],
        task_default_queue="jobs",
        task_routes=[lambda name, args, kwargs, options, task=None: {"queue": kwargs.get("to")}],
        task_create_missing_queues=False,
        broker_transport_options=fake.transport_options(
            max_message_bytes=LIMIT, publish_timeout=SHORT, observers=[f"{__name__}:WATCH"]
        ),
    )
    WATCH.seen.clear()
    yield app.task(shared=False, name="job")(job)
    fake.release()
    app.close()


def job(number: int, text: str = "", to: str = "jobs") -> None:
    """The task."""


class Watch:
    """An observer of what was published."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def __getattr__(self, step: str) -> Callable[..., None]:
        return lambda *_: None

    def published(self, queue: str, count: int) -> None:
        self.seen.append((queue, count))


WATCH = Watch()


def sent(fake: FakeSqs) -> list[str]:
    """The ids of what SQS was asked to take."""
    return [json.loads(entry["MessageBody"])["headers"]["id"] for entry in fake.entries(MANY)]


def sizes(fake: FakeSqs) -> list[int]:
    return [len(call["Entries"]) for call in fake.asked(MANY)]


def is_of_number(number: int) -> Callable[[Any], bool]:
    return lambda entry: json.loads(json.loads(entry["MessageBody"])["body"])[1]["number"] == number


def block(*calls: Callable[[], Any]) -> None:
    """A block that makes these calls."""
    with batching():
        for call in calls:
            call()


def fails() -> None:
    raise ZeroDivisionError


def test_a_block_sends_its_calls_at_its_end_ten_a_call(fake: FakeSqs, task: Any) -> None:
    with batching():
        results = [task.delay(number=n) for n in range(25)]
        assert fake.calls == []
    assert sorted(sizes(fake)) == [5, 10, 10]
    assert sorted(sent(fake)) == sorted(result.id for result in results)
    assert set(fake.counts) == {MANY}


def test_a_block_without_calls_sends_nothing(fake: FakeSqs) -> None:
    with batching():
        pass
    assert fake.calls == []


def test_each_call_of_a_call_is_within_the_limit_in_bytes(fake: FakeSqs, task: Any) -> None:
    with batching():
        for n in range(5):
            task.delay(number=n, text="x" * 4_000)
    assert sorted(sizes(fake)) == [1, 2, 2]


def test_a_block_sends_to_each_queue(fake: FakeSqs, task: Any) -> None:
    with batching():
        for n in range(6):
            task.delay(number=n, to="jobs" if n % 2 else "mail")
    assert sizes(fake) == [3, 3]
    assert sorted(WATCH.seen) == [("jobs", 3), ("mail", 3)]


def test_all_ways_to_call_a_task_are_collected(fake: FakeSqs, task: Any) -> None:
    with batching():
        task.apply_async(kwargs={"number": 1}, countdown=60)
        task.app.send_task("job", kwargs={"number": 2})
        task.s(number=3).delay()
        group([task.s(number=n) for n in (4, 5)], app=task.app).apply_async()
    assert sizes(fake) == [5]
    assert fake.entries(MANY)[0]["DelaySeconds"] > 0


# Nothing


def test_a_block_that_raises_sends_nothing(fake: FakeSqs, task: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        block(lambda: task.delay(number=1), fails)
    assert fake.calls == []


def test_a_group_with_a_wrong_task_sends_nothing(fake: FakeSqs, task: Any) -> None:
    good, bad = task.s(number=1), task.s(nmber=2)
    with pytest.raises(TypeError, match="nmber"):
        block(group([good, bad, good], app=task.app).apply_async)
    assert fake.calls == []


def test_a_message_that_sqs_would_refuse_raises_at_its_call(fake: FakeSqs, task: Any) -> None:
    with pytest.raises(MessageTooLarge):
        block(
            lambda: task.delay(number=1),
            lambda: task.delay(number=2, text="x" * LIMIT),
        )
    assert fake.calls == []


# What was not taken


def test_the_end_of_a_block_lists_what_sqs_did_not_take(fake: FakeSqs, task: Any) -> None:
    fake.fail(
        MANY, "Refused", entries=[is_of_number(3), is_of_number(14)], times=inf, sender_fault=True
    )
    ids = [f"id-{n}" for n in range(20)]
    calls = (
        partial(task.apply_async, kwargs={"number": n}, task_id=id_) for n, id_ in enumerate(ids)
    )
    with pytest.raises(BatchError, match="2 of 20 messages are not confirmed") as raised:
        block(*calls)
    error = raised.value
    assert isinstance(error, PublishError)
    assert isinstance(error, OperationalError)
    assert [one.message_id for one in error.failures] == ["id-3", "id-14"]
    assert [one.queue for one in error.failures] == ["jobs", "jobs"]
    assert not any(one.may_have_been_sent for one in error.failures)
    assert all(isinstance(one.__cause__, SqsError) for one in error.failures)
    assert error.__cause__ is error.failures[0].__cause__
    assert set(error.sent) == set(ids) - {"id-3", "id-14"}
    assert sum(count for _, count in WATCH.seen) == 18


def test_the_end_of_a_block_is_in_time_although_sqs_is_silent(fake: FakeSqs, task: Any) -> None:
    fake.hold(MANY)
    with pytest.raises(BatchError) as raised:
        block(*(partial(task.delay, number=n) for n in range(100)))
    assert len(raised.value.failures) == 100
    # Four calls had begun. The others would each have taken as long again.
    assert sum(one.may_have_been_sent for one in raised.value.failures) == 40
    assert len(fake.asked(MANY)) == 4


def test_a_call_that_fails_for_a_moment_is_tried_again(fake: FakeSqs, task: Any) -> None:
    fake.fail(MANY, error=Unreached("EndpointConnectionError"))
    with batching():
        task.delay(number=1)
    assert len(sent(fake)) == 2


def test_a_setting_that_boto3_cannot_use_is_raised_as_itself(
    monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    del task.app.conf.broker_transport_options["driver"]
    with pytest.raises(ConfigurationError, match="AWS_PROFILE"):
        block(lambda: task.delay(number=1))


# Whose calls


def test_a_block_is_that_of_its_context_alone(fake: FakeSqs, task: Any) -> None:
    with batching():
        other = threading.Thread(target=task.delay, kwargs={"number": 1})
        other.start()
        other.join()
        assert fake.counts == {ONE: 1}
    assert fake.counts == {ONE: 1}


def test_coroutines_side_by_side_have_each_their_own_block(fake: FakeSqs, task: Any) -> None:
    async def collects(number: int, barrier: asyncio.Barrier) -> str:
        async with batching():
            id_ = task.delay(number=number).id
            await barrier.wait()
            assert fake.calls == []
            await barrier.wait()
        return str(id_)

    async def both() -> list[str]:
        barrier = asyncio.Barrier(2)
        return await asyncio.gather(collects(1, barrier), collects(2, barrier))

    ids = asyncio.run(both())
    assert sizes(fake) == [1, 1]
    assert sorted(sent(fake)) == sorted(ids)


def test_a_block_of_a_coroutine_collects_its_adelay_and_does_not_block_the_loop(
    fake: FakeSqs, task: Any
) -> None:
    task.app.conf.broker_transport_options["publish_timeout"] = 60

    async def sends() -> None:
        async with batching():
            await task.adelay(number=1)
            assert fake.calls == []

    async def both() -> None:
        fake.hold(MANY)
        sending = asyncio.ensure_future(sends())
        # If the end of the block blocked the loop, this would not be reached.
        while not fake.counts[MANY]:
            await asyncio.sleep(0.001)
        assert not sending.done()
        fake.release()
        await sending

    asyncio.run(both())
    assert sizes(fake) == [1]


def test_what_is_called_after_the_block_is_sent_at_once(fake: FakeSqs, task: Any) -> None:
    async def calls(gate: asyncio.Event) -> None:
        await gate.wait()
        task.delay(number=1)

    async def creates() -> None:
        gate = asyncio.Event()
        async with batching():
            # It has the context of the block, which is over when it calls.
            child = asyncio.ensure_future(calls(gate))
        gate.set()
        await child

    asyncio.run(creates())
    assert fake.counts == {ONE: 1}


def test_a_block_within_another_is_part_of_that_one(fake: FakeSqs, task: Any) -> None:
    with batching():
        task.delay(number=1)
        with batching():
            task.delay(number=2)
        assert fake.calls == []
    assert sizes(fake) == [2]


def test_a_block_within_another_that_raises_adds_nothing(fake: FakeSqs, task: Any) -> None:
    with batching():
        kept = task.delay(number=1)
        with pytest.raises(ZeroDivisionError):
            block(lambda: task.delay(number=2), fails)
    assert sent(fake) == [kept.id]
