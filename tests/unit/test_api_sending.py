"""POST /registrations and POST /produce: what is accepted, and what is not."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from app.api.problems import PREFIX
from app.messages import Registration, decode_json
from sqs_broker.rules.decoding import DEEPEST, decode
from sqs_broker.rules.lease import Delivery
from sqs_broker.testing import FakeSqs
from tests.unit.api_service import API_KEYS, Running, running, until

USER = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": "kim", "gender": "F"}}
SNAKE = {"stock_id": "s1", "user_id": "u1", "user_info": {"nickname": "kim", "gender": "F"}}
SEND = "SendMessageBatch"

Test = Callable[[Running], Awaitable[None]]


def api(fake: FakeSqs, test: Test, **options: Any) -> None:
    """Run a test with the API."""

    async def run() -> None:
        async with running(fake, **options) as made:
            await test(made)

    asyncio.run(run())


def kind(answer: Any) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert content["status"] == answer.status
    return str(content["type"].removeprefix(PREFIX))


@pytest.mark.parametrize("data", [USER, SNAKE], ids=["camel", "snake"])
def test_a_registration_is_on_the_queue_when_it_is_answered(
    fake: FakeSqs, data: dict[str, Any]
) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.post("/registrations", data)
        assert answer.status == 202
        id_ = answer.json()["id"]
        assert answer.json() == {
            "id": id_,
            "state": "pending",
            "links": {"self": f"/registrations/{id_}"},
        }
        assert answer.headers["location"] == f"/registrations/{id_}"
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["content-length"] == str(len(answer.body))
        (body,) = map(json.loads, made.bodies)
        assert body == {"id": id_, "action": "registerUser", "data": data}
        assert Registration.model_validate(body["data"]).user_id == "u1"

    api(fake, test)


def test_a_repeat_is_the_same_registration_in_either_spelling(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        first = await made.client.post("/registrations", USER)
        again = await made.client.post("/registrations", SNAKE)
        other = await made.client.post("/registrations", USER | {"money": 5})
        assert first.json()["id"] == again.json()["id"] != other.json()["id"]

    api(fake, test)


def test_the_id_depends_on_client_idempotency_key_and_user(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        async def id_of(name: str, data: dict[str, Any], key: str) -> str:
            client = made.with_key(name)
            answer = await client.post("/registrations", data, Idempotency_Key=key)
            return str(answer.json()["id"])

        first = await id_of("register", USER, "1")
        assert await id_of("register", USER, '"1"') == first
        assert await id_of("register", USER | {"money": 5}, "1") == first
        assert await id_of("other", USER, "1") != first
        assert await id_of("register", USER, "2") != first
        assert await id_of("register", USER | {"userId": "u2"}, "1") != first
        assert await id_of("register", USER | {"stockId": "s2"}, "1") != first

    api(fake, test, keys=API_KEYS)


@pytest.mark.parametrize("key", ["", '""', "x" * 129, "a\tb", "na\xefve"])
def test_an_idempotency_key_that_is_none(fake: FakeSqs, key: str) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.post("/registrations", USER, Idempotency_Key=key)
        assert (answer.status, kind(answer)) == (400, "invalid-request")
        assert [fault["parameter"] for fault in answer.json()["errors"]] == ["Idempotency-Key"]
        assert made.bodies == []

    api(fake, test)


def test_two_idempotency_keys_are_a_fault(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", "1"),
            ("Idempotency-Key", "2"),
        ]
        body = json.dumps(USER).encode()
        answer = await made.client.request("POST", "/registrations", body, headers=headers)
        assert answer.status == 400

    api(fake, test)


@pytest.mark.parametrize(
    ("data", "pointers"),
    [
        ({}, ["#/stockId", "#/userId", "#/userInfo"]),
        ({"user_info": {}}, ["#/stock_id", "#/user_id", "#/user_info/nickname"]),
        (USER | {"userInfo": {"gender": 1}}, ["#/userInfo/nickname", "#/userInfo/gender"]),
        (USER | {"loanCount": -1}, ["#/loanCount"]),
        (USER | {"loan_count": True}, ["#/loan_count"]),
        (USER | {"money": "1"}, ["#/money"]),
        (USER | {"index": 2**53 + 1}, ["#/index"]),
        (USER | {"stockId": "a\u0000"}, ["#/stockId"]),
        (USER | {"stockId": "\ud800"}, ["#/stockId"]),
        (USER | {"stock_id": "s1"}, ["#/stockId"]),
        (USER | {"userInfo": []}, ["#/userInfo"]),
        ([], ["#"]),
        (None, ["#"]),
        ("text", ["#"]),
    ],
)
def test_every_fault_is_named_in_the_client_s_spelling(
    fake: FakeSqs, data: Any, pointers: list[str]
) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.post("/registrations", data)
        assert (answer.status, kind(answer)) == (400, "invalid-request")
        assert [fault["pointer"] for fault in answer.json()["errors"]] == pointers
        assert all(fault["detail"] for fault in answer.json()["errors"])
        assert made.bodies == []

    api(fake, test)


def test_a_fault_shows_no_value(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        secret = "kim-7f3a"
        for data in (
            USER | {"money": secret},
            USER | {"userInfo": {"nickname": secret * 100}},
            USER | {"stockId": secret + "\u0001"},
        ):
            answer = await made.client.post("/registrations", data)
            assert answer.status == 400
            assert secret not in answer.body.decode()

    api(fake, test)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"a": 1}}', b"\xff\xfe", b"[" * 100_000, b"1" * 5_000, "\ufeff{}".encode()],
    ids=["empty", "cut off", "too much", "not UTF-8", "deep", "a long number", "a mark"],
)
def test_what_is_no_json_is_malformed(fake: FakeSqs, body: bytes) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.post("/registrations", body)
        assert (answer.status, kind(answer)) == (400, "malformed-json")
        assert made.bodies == []

    api(fake, test)


def test_a_field_that_this_release_does_not_know_goes_to_the_worker(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        await made.client.post("/registrations", USER | {"country": "\uffff\ud800 KR"})
        (body,) = made.bodies
        assert body.isascii()
        assert json.loads(body)["data"]["country"] == "\uffff\ud800 KR"

    api(fake, test)


@pytest.mark.parametrize("batch", [False, True])
def test_data_that_a_worker_could_not_read_is_a_fault(fake: FakeSqs, batch: bool) -> None:
    def nested(levels: int) -> Any:
        return json.loads('{"x":' * levels + "1" + "}" * levels)

    async def test(made: Running) -> None:
        async def post(data: Any) -> Any:
            path = "/registrations/batch" if batch else "/registrations"
            return await made.client.post(path, [data] if batch else data)

        # The worker counts the message, the data and the number too.
        assert (await post(USER | nested(DEEPEST - 2))).status == 202
        delivery = Delivery("0", "jobs", "s", "h", made.bodies[0], {}, 1, datetime.now(UTC), 0.0)
        assert decode(delivery, decode_json)
        answer = await post(USER | nested(DEEPEST - 1))
        assert answer.status == 400
        assert "nested deeper than 63 levels" in str(answer.json())
        assert len(made.bodies) == 1

    api(fake, test)


def test_a_number_that_json_does_not_have_is_a_fault_also_in_an_unknown_field(
    fake: FakeSqs,
) -> None:
    async def test(made: Running) -> None:
        body = json.dumps(USER | {"x": float("inf")}).encode()
        answer = await made.client.post("/registrations", body)
        assert answer.status == 400
        assert made.bodies == []

    api(fake, test)


def test_a_number_without_a_fraction_is_an_integer_however_it_is_written(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        body = b'{"stockId":"s1","userId":"u1","userInfo":{"nickname":"k"},"money":%s}'
        ids = set()
        for number in (b"100", b"100.0", b"1e2"):
            answer = await made.client.post("/registrations", body % number)
            assert answer.status == 202
            ids.add(answer.json()["id"])
        assert len(ids) == 1
        assert {type(json.loads(each)["data"]["money"]) for each in made.bodies} == {int}
        assert (await made.client.post("/registrations", body % b"1.5")).status == 400

    api(fake, test)


# Produce


@pytest.mark.parametrize("number", [0, -1, 1.5, 2**53, -(2**53), 1e10])
def test_a_number_is_queued(fake: FakeSqs, number: float) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.post("/produce", {"input": number})
        assert answer.status == 202
        (body,) = map(json.loads, made.bodies)
        assert body == {
            "id": answer.json()["id"],
            "action": "increment",
            "data": {"input": number},
        }

    api(fake, test)


@pytest.mark.parametrize(
    "body",
    ["{}", '{"input":"1"}', '{"input":true}', '{"input":NaN}', '{"input":Infinity}',
     '{"input":-Infinity}', '{"input":1e999}', '{"input":null}', '{"input":[1]}',
     '{"input":9007199254740993}', '{"input":1e300}'],
)  # fmt: skip
def test_what_is_no_number_is_a_fault_of_the_input(fake: FakeSqs, body: str) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.post("/produce", body.encode())
        assert (answer.status, kind(answer)) == (400, "invalid-request")
        assert [fault["pointer"] for fault in answer.json()["errors"]] == ["#/input"]
        assert made.bodies == []

    api(fake, test)


def test_each_produce_counts_but_for_one_with_the_same_idempotency_key(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        async def id_of(**headers: str) -> str:
            answer = await made.client.post("/produce", {"input": 1}, **headers)
            return str(answer.json()["id"])

        assert await id_of() != await id_of()
        assert await id_of(Idempotency_Key="1") == await id_of(Idempotency_Key="1")

    api(fake, test)


# SQS


def test_what_sqs_refuses_is_not_accepted(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.fail(SEND, "AccessDenied")
        answer = await made.client.post("/registrations", USER)
        assert (answer.status, kind(answer)) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert "Access" not in answer.body.decode()
        assert (await made.client.post("/registrations", USER)).status == 202

    api(fake, test)


def test_a_silent_sqs_is_a_503_within_the_deadline(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.hold(SEND)
        answer = await asyncio.wait_for(made.client.post("/registrations", USER), 10)
        assert (answer.status, kind(answer)) == (503, "unavailable")
        assert "retry-after" in answer.headers
        fake.release(SEND)

    api(fake, test, send_timeout=0.2)


def test_each_request_is_answered_by_its_own_entry(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.fail(
            SEND,
            "InvalidMessageContents",
            entries=[lambda entry: '"userId":"bad"' in entry["MessageBody"]],
            sender_fault=True,
        )
        users = ["u1", "bad", *(f"u{n}" for n in range(2, 20))]
        answers = await asyncio.gather(
            *(made.client.post("/registrations", USER | {"userId": user}) for user in users)
        )
        statuses = dict(zip(users, (answer.status for answer in answers), strict=True))
        assert statuses.pop("bad") == 503
        assert set(statuses.values()) == {202}
        assert sorted(json.loads(b)["data"]["userId"] for b in made.bodies) == sorted(statuses)

    api(fake, test)


def test_above_the_bound_a_request_is_refused_at_once(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.hold(SEND)
        sends = [
            asyncio.create_task(made.client.post("/produce", {"input": n})) for n in range(4 + 5)
        ]
        gatherer = made.service.gatherers["increment"]
        await until(lambda: gatherer.counts.calls >= 4)
        answer = await asyncio.wait_for(made.client.post("/produce", {"input": 0}), 5)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        fake.release(SEND)
        assert {answer.status for answer in await asyncio.gather(*sends)} == {202}

    api(fake, test, most_waiting=5)
