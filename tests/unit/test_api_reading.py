"""What the API says about registrations, users, queues and itself."""

import asyncio
from typing import Any

import pytest

from sqs_broker.testing import FakeSqs
from tests.unit.api_service import API_KEYS, QUEUE, Running, known, until
from tests.unit.test_api_sending import SEND, USER, api, kind

STORED = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": "kim"}}
AT = "2026-01-02T03:04:05Z"


async def registered(made: Running, name: str = "register") -> str:
    """The id of a registration that was accepted for a key."""
    answer = await made.with_key(name).post("/registrations", USER)
    return str(answer.json()["id"])


@pytest.mark.parametrize(
    ("state", "more"),
    [
        ("pending", {}),
        ("registered", {"user": STORED}),
        ("conflict", {"reason": "another payload came first"}),
        ("failed", {"reason": "userInfo.nickname: Field required"}),
        ("expired", {}),
        ("registered", {"conflicts": [{"at": AT}]}),
    ],
)
def test_each_state_is_told_with_its_time(fake: FakeSqs, state: str, more: dict[str, Any]) -> None:
    async def test(made: Running) -> None:
        id_ = await registered(made)
        made.outcomes.set(known(id_, state, **more))
        answer = await made.with_key("read").get(f"/registrations/{id_}")
        assert answer.status == 200
        assert answer.json() == {
            "id": id_,
            "state": state,
            "at": AT,
            **more,
            "links": {"self": f"/registrations/{id_}"},
        }

    api(fake, test, keys=API_KEYS)


def test_the_user_is_shown_only_to_a_key_that_may_read(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        id_ = await registered(made)
        made.outcomes.set(known(id_, "registered", user=STORED))
        seen = (await made.with_key("register").get(f"/registrations/{id_}")).json()
        assert seen["state"] == "registered"
        assert "user" not in seen
        assert (await made.with_key("all").get(f"/registrations/{id_}")).json()["user"] == STORED

    api(fake, test, keys=API_KEYS)


def test_a_key_that_may_only_register_sees_its_own_ids_alone(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        id_ = await registered(made)
        made.outcomes.set(known("7f0c", "registered"))
        assert (await made.with_key("other").get(f"/registrations/{id_}")).status == 404
        assert (await made.with_key("register").get("/registrations/7f0c")).status == 404
        # Of a message that no API sent.
        assert (await made.with_key("read").get("/registrations/7f0c")).status == 200

    api(fake, test, keys=API_KEYS)


def test_an_id_that_nobody_sent_is_unknown(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        for id_ in ("0" * 40, "x", "x" * 300, "%00", "%F0%9F%98%80"):
            answer = await made.client.get(f"/registrations/{id_}")
            assert (answer.status, kind(answer)) == (404, "not-found")

    api(fake, test)


def test_a_registration_is_pending_at_once_also_before_its_acceptance_is_stored(
    fake: FakeSqs,
) -> None:
    async def test(made: Running) -> None:
        made.outcomes.holds_accepted.clear()
        id_ = (await made.client.post("/registrations", USER)).json()["id"]
        answer = await made.client.get(f"/registrations/{id_}")
        assert (answer.status, answer.json()["state"]) == (200, "pending")
        made.outcomes.holds_accepted.set()
        answer = await made.client.get(f"/registrations/{id_}")
        assert answer.json()["state"] == "pending"

    api(fake, test)


def test_an_acceptance_is_stored_with_its_user_and_an_increment_is_no_registration(
    fake: FakeSqs,
) -> None:
    async def test(made: Running) -> None:
        id_ = (await made.client.post("/registrations", USER)).json()["id"]
        await made.client.post("/produce", {"input": 1})
        await until(lambda: made.outcomes.states)
        assert set(made.outcomes.states) == {id_}
        assert made.outcomes.accepted_users == [("s1", "u1")]

    api(fake, test)


def test_what_sqs_did_not_take_is_no_registration(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.fail(SEND, "AccessDenied")
        assert (await made.client.post("/registrations", USER)).status == 503
        assert made.outcomes.states == {}

    api(fake, test)


def test_the_answer_waits_for_the_final_state(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        id_ = (await made.client.post("/registrations", USER)).json()["id"]
        waiting = asyncio.create_task(made.client.get(f"/registrations/{id_}?wait=20"))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        made.outcomes.set(known(id_, "registered"))
        assert (await asyncio.wait_for(waiting, 5)).json()["state"] == "registered"

    api(fake, test)


def test_nobody_waits_in_a_process_that_stops(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        id_ = (await made.client.post("/registrations", USER)).json()["id"]
        target = f"/registrations/{id_}?wait=60"
        waiting = asyncio.create_task(made.client.get(target))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        made.service.begin_stop()
        answer = await asyncio.wait_for(waiting, 5)
        assert (answer.status, answer.json()["state"]) == (200, "pending")
        later = await asyncio.wait_for(made.client.get(target), 5)
        assert later.json()["state"] == "pending"
        assert later.headers["connection"] == "close"

    api(fake, test)


@pytest.mark.parametrize(
    "target",
    ["/registrations/x?wait=61", "/registrations/x?wait=-1", "/registrations/x?wait=1.5",
     "/registrations/x?wait=", "/registrations/x?wait=%D9%A1", "/users?stockId=s&limit=0",
     "/users?stockId=s&limit=1001", "/users", "/users?stockId="],
)  # fmt: skip
def test_a_parameter_that_is_none(fake: FakeSqs, target: str) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.get(target)
        assert (answer.status, kind(answer)) == (400, "invalid-request")
        (fault,) = answer.json()["errors"]
        assert fault["parameter"] in ("wait", "limit", "stockId")

    api(fake, test)


# Users


@pytest.mark.parametrize(
    ("stock", "user", "target"),
    [("s1", "u1", "/users/s1/u1"), ("a/b", "c/d", "/users/a%2Fb/c%2Fd"),
     ("s 1", "ü", "/users/s%201/%C3%BC"), ("%", "?", "/users/%25/%3F")],
)  # fmt: skip
def test_a_user_is_found_by_any_ids(fake: FakeSqs, stock: str, user: str, target: str) -> None:
    async def test(made: Running) -> None:
        made.outcomes.by_key[stock, user] = {"stockId": stock, "userId": user}
        answer = await made.client.get(target)
        assert answer.json() == {"stockId": stock, "userId": user}
        assert (await made.client.get(target + "x")).status == 404
        assert (await made.client.get(target + "/x")).status == 404

    api(fake, test)


def test_users_come_in_pages(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        for n in range(5):
            made.outcomes.by_key["s1", f"u{n}"] = {"userId": f"u{n}"}
        made.outcomes.by_key["s2", "x"] = {"userId": "x"}
        found, target = [], "/users?stockId=s1&limit=2"
        content = (await made.client.get(target)).json()
        found += content["users"]
        while content["next"]:
            content = (await made.client.get(f"{target}&after={content['next']}")).json()
            found += content["users"]
        assert [user["userId"] for user in found] == [f"u{n}" for n in range(5)]

    api(fake, test)


# The rest


def test_the_queues_and_the_count(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.get("/queues")
        assert answer.json() == {"queues": [QUEUE]}
        assert (await made.client.get("/count")).json() == {"count": 7}
        made.service.count_queues = lambda: [QUEUE | {"isKnown": False}]
        answer = await made.client.get("/queues")
        assert (answer.status, kind(answer)) == (503, "unavailable")

    api(fake, test)


@pytest.mark.parametrize(
    "target", [f"/registrations/{'0' * 40}", f"/registrations/{'0' * 40}?wait=5", "/users/s1/u1",
               "/users?stockId=s1", "/count"],
)  # fmt: skip
def test_without_mongodb_reading_is_a_503_and_sending_goes_on(fake: FakeSqs, target: str) -> None:
    async def test(made: Running) -> None:
        made.outcomes.is_away = True
        answer = await made.client.get(target)
        assert (answer.status, kind(answer)) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert (await made.client.post("/registrations", USER)).status == 202

    api(fake, test)


def test_ready_says_what_is_degraded_and_fails_only_while_the_process_starts_or_stops(
    fake: FakeSqs,
) -> None:
    async def test(made: Running) -> None:
        async def ready() -> tuple[int, str, dict[str, str]]:
            answer = await made.client.get("/readyz")
            return answer.status, answer.json()["status"], answer.json()["dependencies"]

        assert await ready() == (200, "ready", {"sqs": "ok", "mongodb": "ok"})
        made.outcomes.is_away = True
        fake.fail(SEND, "AccessDenied")
        await made.client.post("/registrations", USER)
        assert await ready() == (200, "ready", {"sqs": "degraded", "mongodb": "degraded"})
        await made.client.post("/registrations", USER)
        made.outcomes.is_away = False
        assert await ready() == (200, "ready", {"sqs": "ok", "mongodb": "ok"})
        made.service.begin_stop()
        assert (await ready())[:2] == (503, "draining")
        assert (await made.client.get("/healthz")).status == 200

    api(fake, test)


def test_the_end_sends_what_was_gathered_and_stores_what_was_accepted(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        fake.hold(SEND)
        sends = [
            asyncio.create_task(made.client.post("/registrations", USER | {"userId": f"u{n}"}))
            for n in range(30)
        ]
        await until(lambda: made.service.gatherers["registerUser"].counts.calls >= 4)
        made.outcomes.holds_accepted.clear()
        made.service.begin_stop()
        closing = asyncio.create_task(made.service.close())
        fake.release(SEND)
        ids = {(await send).json()["id"] for send in sends}
        made.outcomes.holds_accepted.set()
        await closing
        assert set(made.outcomes.states) == ids
        assert made.outcomes.is_closed

    api(fake, test)
