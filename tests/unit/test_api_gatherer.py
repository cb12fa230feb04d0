"""The gatherer: few calls for many requests, and each request has its own answer."""

import asyncio
import threading
from collections.abc import Awaitable, Coroutine
from typing import Any

import pytest

from app.api.gatherer import CALLS, Full, Gatherer, Mark, Stopped
from app.errors import Unavailable
from sqs_broker.limits import BATCH
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing
from sqs_broker.testing import FakeSqs
from tests.unit.api_service import LONG, until

SEND = "SendMessageBatch"


def url_of(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").url


def gatherer(fake: FakeSqs, **changes: Any) -> Gatherer:
    options = {"most_waiting": 1_000, "seconds": LONG} | changes
    return Gatherer(Queue(url_of(fake), fake), **options)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def results(sends: list[Awaitable[None]]) -> list[BaseException | None]:
    return await asyncio.gather(*sends, return_exceptions=True)


def sizes(fake: FakeSqs) -> list[int]:
    """How many entries each call had."""
    return sorted(len(call["Entries"]) for call in fake.asked(SEND))


def test_a_lone_message_is_sent_at_once(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake)
        await made.send(Outgoing("one"))
        assert fake.bodies(url_of(fake)) == ["one"]
        await made.close()

    run(test())


def test_while_four_calls_are_out_messages_fill_the_next(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake)
        fake.hold(SEND)
        sends = [asyncio.create_task(made.send(Outgoing(str(n)))) for n in range(CALLS + 9)]
        await until(lambda: made.counts.calls == CALLS)
        fake.release(SEND)
        assert await results(sends) == [None] * (CALLS + 9)
        assert sizes(fake) == [1, 1, 1, 1, 9]
        await made.close()

    run(test())


def test_a_full_call_is_sent_at_once_as_long_as_there_are_connections(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake)
        fake.hold(SEND)
        sends = [asyncio.create_task(made.send(Outgoing(str(n)))) for n in range(CALLS + 70)]
        await until(lambda: len(fake.asked(SEND)) == 10)
        assert made.counts.calls == 10
        fake.release(SEND)
        assert await results(sends) == [None] * (CALLS + 70)
        assert sizes(fake) == [1] * CALLS + [BATCH] * 7
        await made.close()

    run(test())


def test_a_call_that_is_full_by_its_bytes_is_sent_at_once(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake, most_bytes=1_000)
        fake.hold(SEND)
        sends = [asyncio.create_task(made.send(Outgoing("x" * 500))) for _ in range(CALLS + 2)]
        await until(lambda: made.counts.calls == CALLS + 1)
        fake.release(SEND)
        assert await results(sends) == [None] * (CALLS + 2)
        assert sizes(fake) == [1, 1, 1, 1, 2]
        await made.close()

    run(test())


def test_a_thousand_messages_of_one_batch_are_a_hundred_calls(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake)
        for start in range(0, 1_000, BATCH):
            ten = [(None, Outgoing(str(n))) for n in range(start, start + BATCH)]
            for entry in made.add(ten):
                await entry.sent
        assert made.counts.calls == 100
        await made.close()

    run(test())


def test_a_call_holds_no_more_bytes_than_sqs_takes(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake, most_bytes=1_000)
        await results([e.sent for e in made.add([(None, Outgoing("x" * 400)) for n in range(6)])])
        assert sizes(fake) == [2, 2, 2]
        await made.close()

    run(test())


def test_each_request_has_the_answer_of_its_own_entry(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake)
        fake.fail(SEND, "InvalidMessageContents", entries=[1], sender_fault=True)
        entries = made.add([(None, Outgoing(str(n))) for n in range(3)])
        first, second, third = await results([entry.sent for entry in entries])
        assert first is third is None
        assert isinstance(second, Unavailable)
        assert sorted(fake.bodies(url_of(fake))) == ["0", "2"]
        await made.close()

    run(test())


def test_an_entry_that_sqs_fails_for_an_internal_reason_is_sent_again_and_nobody_waits_for_it(
    fake: FakeSqs,
) -> None:
    async def test() -> None:
        made = gatherer(fake)
        fake.fail(SEND, "InternalError", entries=[1])
        entries = made.add([(None, Outgoing(str(n))) for n in range(3)])
        await entries[0].sent
        assert await results([entry.sent for entry in entries]) == [None] * 3
        assert sizes(fake) == [1, 3]
        await made.close()

    run(test())


def test_a_call_that_fails_is_the_failure_of_all_its_messages(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake)
        fake.fail(SEND, "AccessDenied")
        entries = made.add([(None, Outgoing("a")), (None, Outgoing("b"))])
        outcomes = await results([entry.sent for entry in entries])
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 2
        assert made.error == "AccessDenied"
        await made.send(Outgoing("c"))
        assert made.error is None
        await made.close()

    run(test())


def test_nobody_waits_longer_than_the_deadline(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake, seconds=0.2)
        fake.hold(SEND)
        sends = [asyncio.create_task(made.send(Outgoing(str(n)))) for n in range(10)]
        outcomes = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), LONG)
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        fake.release(SEND)
        # Those that waited behind the calls were never sent.
        await until(lambda: len(fake.bodies(url_of(fake))) == CALLS)
        await made.send(Outgoing("later"))
        assert len(fake.bodies(url_of(fake))) == CALLS + 1
        await made.close()

    run(test())


def test_more_than_may_wait_are_refused_at_once_and_not_sent(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake, most_waiting=3)
        fake.hold(SEND)
        sends = [asyncio.create_task(made.send(Outgoing(str(n)))) for n in range(CALLS + 3)]
        await until(lambda: made.counts.calls == CALLS)
        with pytest.raises(Full):
            await made.send(Outgoing("too many"))
        fake.release(SEND)
        assert await results(sends) == [None] * (CALLS + 3)
        assert "too many" not in fake.bodies(url_of(fake))
        await made.close()

    run(test())


def test_what_was_gathered_is_sent_before_the_end_and_nothing_after(fake: FakeSqs) -> None:
    async def test() -> None:
        made = gatherer(fake)
        fake.hold(SEND)
        sends = [asyncio.create_task(made.send(Outgoing(str(n)))) for n in range(30)]
        await until(lambda: made.counts.calls == CALLS + 2)
        closing = asyncio.create_task(made.close())
        await asyncio.sleep(0)
        with pytest.raises(Stopped):
            await made.send(Outgoing("late"))
        assert not closing.done()
        fake.release(SEND)
        await closing
        assert await results(sends) == [None] * 30
        assert len(fake.bodies(url_of(fake))) == 30

    run(test())


def test_the_registrations_that_a_call_took_are_reported_also_if_nobody_waits_for_them(
    fake: FakeSqs,
) -> None:
    async def test() -> None:
        slow, bad, good = (Mark(name, "s1", name) for name in ("slow", "bad", "good"))
        taken: list[Mark] = []
        made = gatherer(fake, seconds=0.1, on_taken=taken.extend)
        fake.hold(SEND)
        with pytest.raises(Unavailable):
            await made.send(Outgoing("slow"), slow)
        fake.release(SEND)
        await until(lambda: taken == [slow])
        fake.fail(SEND, "InvalidMessageContents", entries=[0], sender_fault=True)
        entries = made.add(
            [(bad, Outgoing("bad")), (good, Outgoing("good")), (None, Outgoing("no registration"))]
        )
        await results([entry.sent for entry in entries])
        assert taken == [slow, good]
        await made.close()

    run(test())


def test_no_thread_starts_before_the_first_message(fake: FakeSqs) -> None:
    before = set(threading.enumerate())
    made = gatherer(fake)
    assert set(threading.enumerate()) - before == set()
    run(made.close())
