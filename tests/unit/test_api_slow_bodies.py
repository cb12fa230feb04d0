"""A body that arrives too slowly ends its request, and the connection."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from app.api.bodies import Bodies
from sqs_broker.testing import FakeSqs
from tests.unit.api_service import LONG, Running, until
from tests.unit.asgi import Answer
from tests.unit.test_api_batch import BATCH, NDJSON, ndjson, user
from tests.unit.test_api_sending import SEND, USER, api, kind

#: Seconds that a body has, or a part of it.
SHORT = 0.05


async def stuck(*parts: bytes) -> AsyncIterator[bytes]:
    """A body of which only these parts arrive."""
    for part in parts:
        yield part
    await asyncio.Event().wait()


async def dripping(made: Running) -> AsyncIterator[bytes]:
    """A body without an end. Each line arrives once the one before is on the queue."""
    for n in range(1_000_000):
        yield ndjson(user(n)) * 10
        await until(lambda end=n: len(made.bodies) >= 10 * end)


def is_too_late(answer: Answer) -> bool:
    return (answer.status, kind(answer), answer.headers["connection"]) == (
        408,
        "request-timeout",
        "close",
    )


@pytest.mark.parametrize(
    "target", ["/registrations", "/produce", BATCH], ids=["register", "produce", "array"]
)
@pytest.mark.parametrize("parts", [(), (json.dumps(USER).encode()[:10],)], ids=["none", "some"])
def test_a_body_that_does_not_arrive_in_time_ends_the_request(
    fake: FakeSqs, target: str, parts: tuple[bytes, ...]
) -> None:
    async def test(made: Running) -> None:
        answer = await asyncio.wait_for(made.client.post(target, stuck(*parts)), LONG)
        assert is_too_late(answer)
        assert made.bodies == []

    api(fake, test, read=Bodies(SHORT))


def test_a_part_of_a_batch_that_does_not_arrive_in_time_ends_it_and_what_arrived_was_sent(
    fake: FakeSqs,
) -> None:
    async def test(made: Running) -> None:
        upload = stuck(ndjson(user(1), user(2)), ndjson(user(3))[:20])
        answer = await asyncio.wait_for(made.client.post(BATCH, upload, kind=NDJSON), LONG)
        assert is_too_late(answer)
        assert {json.loads(body)["data"]["userId"] for body in made.bodies} == {"u1", "u2"}

    api(fake, test, read=Bodies(SHORT))


def test_a_batch_that_does_not_end_in_time_ends_although_each_part_was_quick(
    fake: FakeSqs,
) -> None:
    async def test(made: Running) -> None:
        upload = made.client.post(BATCH, dripping(made), kind=NDJSON)
        assert is_too_late(await asyncio.wait_for(upload, LONG))
        assert made.bodies

    api(fake, test, read=Bodies(LONG, 4 * SHORT))


def test_a_batch_that_waits_for_sqs_when_its_time_is_over_is_answered(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.hold(SEND)
        body = ndjson(*(user(n) for n in range(1_000)))
        answer = await asyncio.wait_for(made.client.post(BATCH, body, kind=NDJSON), LONG)
        assert is_too_late(answer)
        fake.release(SEND)

    # The time ends long before SQS has failed.
    api(fake, test, read=Bodies(LONG, SHORT), send_timeout=0.5)


def test_the_time_of_a_body_says_nothing_about_the_time_of_sqs(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.hold(SEND)
        sending = asyncio.create_task(made.client.post("/registrations", USER))
        done, _ = await asyncio.wait([sending], timeout=4 * SHORT)
        assert not done
        fake.release(SEND)
        assert (await asyncio.wait_for(sending, LONG)).status == 202

    api(fake, test, read=Bodies(SHORT))
