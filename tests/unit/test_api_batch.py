"""POST /registrations/batch: each item has its own answer, and one bad item stops nobody else."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.api.batch import MOST_ITEMS, WINDOW
from sqs_broker.testing import FakeSqs
from tests.unit.api_service import API_KEYS, Running, until
from tests.unit.asgi import Answer, CutOff
from tests.unit.test_api_sending import SEND, SNAKE, USER, api, kind

NDJSON = "application/x-ndjson"
BATCH = "/registrations/batch"


def user(n: int) -> dict[str, Any]:
    return USER | {"userId": f"u{n}"}


def ndjson(*items: Any) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


async def post(made: Running, body: Any, **headers: str) -> Answer:
    return await made.client.post(BATCH, body, kind=NDJSON, **headers)


@pytest.mark.parametrize("as_array", [False, True], ids=["lines", "array"])
def test_each_item_is_answered_in_order(fake: FakeSqs, as_array: bool) -> None:
    items = [user(2), {"userId": "u2"}, SNAKE, 5, user(3)]

    async def test(made: Running) -> None:
        answer = await (made.client.post(BATCH, items) if as_array else post(made, ndjson(*items)))
        content = answer.json()
        assert answer.status == 202
        assert answer.headers["content-type"] == "application/json"
        counts = {name: content[name] for name in ("accepted", "invalid", "unavailable")}
        assert counts == {"accepted": 3, "invalid": 2, "unavailable": 0}
        states = [item["state"] for item in content["items"]]
        assert states == ["pending", "invalid", "pending", "invalid", "pending"]
        assert [fault["pointer"] for fault in content["items"][1]["errors"]] == [
            "#/stockId",
            "#/userInfo",
        ]
        sent = {body["id"]: body["data"] for body in map(json.loads, made.bodies)}
        ids = [item["id"] for item in content["items"] if item["state"] == "pending"]
        assert [sent[id_] for id_ in ids] == [user(2), SNAKE, user(3)]
        assert content["items"][0]["links"] == {"self": f"/registrations/{ids[0]}"}

    api(fake, test)


def test_lines_that_are_no_json_and_empty_lines(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        body = b"\n\r\n" + ndjson(user(1)) + b"{\n  \n\xff\n" + ndjson(user(2)).rstrip()
        content = (await post(made, body)).json()
        states = [item["state"] for item in content["items"]]
        assert states == ["pending", "invalid", "invalid", "pending"]
        assert content["items"][1]["errors"][0]["pointer"] == "#"

    api(fake, test)


def test_a_repeat_of_the_whole_batch_is_the_whole_answer_again(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        body = ndjson(*(user(n) for n in range(25)), {})
        first, again = await post(made, body), await post(made, body)
        assert first.body == again.body
        keyed = await post(made, body, Idempotency_Key="1")
        assert keyed.body == (await post(made, body, Idempotency_Key="1")).body != first.body
        single = await made.client.post("/registrations", user(0))
        assert single.json()["id"] == first.json()["items"][0]["id"]

    api(fake, test)


def test_ten_thousand_items_are_a_thousand_calls_and_four_at_a_time(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.hold(SEND)
        body = ndjson(*(user(n) for n in range(MOST_ITEMS)))
        sending = asyncio.create_task(post(made, body))
        await until(lambda: made.service.gatherers["registerUser"].counts.calls >= 4)
        fake.release(SEND)
        answer = await sending
        assert answer.json()["accepted"] == MOST_ITEMS == len(made.bodies)
        assert fake.counts[SEND] == MOST_ITEMS / 10

    api(fake, test)


def test_items_are_sent_while_the_rest_is_uploaded_and_answered_after_the_last(
    fake: FakeSqs,
) -> None:
    async def test(made: Running) -> None:
        seen: list[int] = []

        async def upload() -> AsyncIterator[bytes]:
            for start in range(0, 100, 10):
                yield ndjson(*(user(n) for n in range(start, start + 10)))
                await until(lambda end=start + 10: len(made.bodies) >= end)
                seen.append(len(made.bodies))

        answer = await post(made, upload())
        assert seen == list(range(10, 101, 10))
        assert answer.json()["accepted"] == 100

    api(fake, test)


def test_the_upload_is_not_read_faster_than_sqs_takes_it(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.hold(SEND)
        given = 0

        async def upload() -> AsyncIterator[bytes]:
            nonlocal given
            for n in range(1_000):
                given += 1
                yield ndjson(user(n))

        sending = asyncio.create_task(post(made, upload()))
        await until(lambda: given >= WINDOW)
        done, _ = await asyncio.wait([sending], timeout=0.1)
        assert not done
        assert given <= WINDOW + 11
        fake.release(SEND)
        assert (await sending).json()["accepted"] == 1_000

    api(fake, test)


def test_a_line_across_parts_and_one_that_is_too_long(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        long = ndjson(user(2) | {"x": "y" * (1 << 20)})

        async def upload() -> AsyncIterator[bytes]:
            body = ndjson(user(1)) + long + ndjson(user(3))
            for start in range(0, len(body), 65_536):
                yield body[start : start + 65_536]
            first = ndjson(user(4))
            for n in range(len(first)):
                yield first[n : n + 1]

        content = (await post(made, upload())).json()
        states = [item["state"] for item in content["items"]]
        assert states == ["pending", "invalid", "pending", "pending"]
        assert content["items"][1]["errors"] == [{"pointer": "#", "detail": "has more than 1 MiB"}]

    api(fake, test)


def test_more_items_than_a_batch_may_have_end_the_upload(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        line = ndjson(user(1))
        parts = 0

        async def upload() -> AsyncIterator[bytes]:
            nonlocal parts
            for _ in range(1_000):
                parts += 1
                yield line * 100

        answer = await post(made, upload())
        assert (answer.status, kind(answer)) == (413, "too-large")
        assert answer.headers["connection"] == "close"
        assert parts == MOST_ITEMS / 100 + 1
        # What was sent until then is known to no one, and it does no harm.
        assert len(made.bodies) == MOST_ITEMS

    api(fake, test)


def test_more_bytes_than_a_batch_may_have_end_the_upload(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        parts = 0

        async def upload() -> AsyncIterator[bytes]:
            nonlocal parts
            for _ in range(1_000):
                parts += 1
                yield b" " * (1 << 20)

        answer = await post(made, upload())
        assert (answer.status, kind(answer)) == (413, "too-large")
        assert parts == 65
        declared = await made.client.request(
            "POST",
            BATCH,
            upload(),
            headers={"Content-Type": NDJSON, "Content-Length": str(65 << 20)},
        )
        assert (declared.status, declared.bytes_read) == (413, 0)

    api(fake, test)


def test_more_lines_than_a_batch_may_have_end_the_upload_also_if_they_are_empty(
    fake: FakeSqs,
) -> None:
    async def test(made: Running) -> None:
        answer = await post(made, b"\n" * (1 << 20))
        assert (answer.status, kind(answer)) == (413, "too-large")

    api(fake, test)


def test_if_all_items_are_invalid_the_batch_is(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        answer = await post(made, ndjson({}, 5))
        assert (answer.status, kind(answer)) == (400, "invalid-request")
        assert [item["state"] for item in answer.json()["items"]] == ["invalid", "invalid"]
        empty = await post(made, b"\n")
        assert (empty.status, empty.json()["items"]) == (400, [])
        array = await made.client.post(BATCH, {"items": []})
        assert (array.status, kind(array)) == (400, "invalid-request")

    api(fake, test)


def test_what_sqs_does_not_take_is_unavailable_and_the_others_are_accepted(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.fail(SEND, "InvalidMessageContents", entries=[1, 4], sender_fault=True)
        content = (await post(made, ndjson(*(user(n) for n in range(6))))).json()
        states = [item["state"] for item in content["items"]]
        assert states == [
            "pending", "unavailable", "pending", "pending", "unavailable", "pending"
        ]  # fmt: skip
        assert (content["accepted"], content["unavailable"]) == (4, 2)
        assert len(made.bodies) == 4

    api(fake, test)


def test_if_sqs_took_none_the_batch_is_to_be_sent_again(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.fail(SEND, "ServiceUnavailable", times=float("inf"))
        answer = await post(made, ndjson(*(user(n) for n in range(5_000)), {}))
        assert (answer.status, kind(answer)) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) > 0
        states = [item["state"] for item in answer.json()["items"]]
        assert states == ["unavailable"] * 5_000 + ["invalid"]
        # It is not tried five hundred times.
        assert fake.counts[SEND] <= 2 * WINDOW / 10

    api(fake, test)


def test_a_silent_sqs_is_a_503_within_about_the_deadline(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.hold(SEND)
        body = ndjson(*(user(n) for n in range(2_000)))
        answer = await asyncio.wait_for(post(made, body), 10)
        assert answer.status == 503
        fake.release(SEND)

    api(fake, test, send_timeout=0.3)


def test_a_batch_waits_for_room(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        body = ndjson(*(user(n) for n in range(500)))
        answers = await asyncio.gather(*(post(made, body) for _ in range(5)))
        assert [answer.json()["accepted"] for answer in answers] == [500] * 5

    api(fake, test, most_waiting=20)


def test_a_client_that_is_gone_leaves_nothing_behind(
    fake: FakeSqs, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(made: Running) -> None:
        body = CutOff(ndjson(*(user(n) for n in range(15))))
        await post(made, body)
        # What arrived was sent, as it may be.
        assert len(made.bodies) == 15

    api(fake, test)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_the_items_of_a_batch_count(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        client = made.with_key("register")
        body = ndjson(*(user(n) for n in range(50)))
        assert (await client.post(BATCH, body, kind=NDJSON)).status == 202
        refused = await client.post("/registrations", USER)
        assert (refused.status, kind(refused)) == (429, "rate-limited")
        assert 3 <= int(refused.headers["retry-after"]) <= 5
        assert (await made.with_key("other").post("/registrations", USER)).status == 202

    api(fake, test, keys=API_KEYS, rate=10)
