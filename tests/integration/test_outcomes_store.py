"""What is stored of a registration's outcomes, and what the API reads of it, on a real mongod."""

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from kombu.utils.imports import symbol_by_name
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.uri_parser import parse_uri

from app import models
from app.celery import app
from app.errors import Unavailable
from app.messages import Increment, Provenance, Registration, Source
from app.outcomes.flush import OutcomeFlush
from app.outcomes.observer import observer
from app.outcomes.outcome import Seen, State
from app.outcomes.reader import BETWEEN_WRITES, Outcome, Outcomes
from app.outcomes.writer import Refused, Store, Writer, merge
from app.registration import register
from app.settings import get_settings
from app.startup import prepare_database
from tests.services import wait_until

T = TypeVar("T")

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
ID = "0123456789abcdef0123456789abcdef01234567"
SECONDS = 20


@pytest.fixture
def database(
    mongo_uri: str, mongo_client: MongoClient[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database[dict[str, Any]]]:
    monkeypatch.setenv("MONGO_URI", mongo_uri)
    get_settings.cache_clear()
    prepare_database(get_settings())
    yield mongo_client[parse_uri(mongo_uri)["database"]]
    models.disconnect()


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def reading(uri: str, work: Callable[[Outcomes], Awaitable[T]]) -> T:
    """What `work` returns, with outcomes that are closed after it."""

    async def run() -> T:
        outcomes = Outcomes(uri)
        try:
            return await work(outcomes)
        finally:
            await outcomes.close()

    return asyncio.run(run())


def state(uri: str, id_: str = ID) -> Outcome | None:
    return reading(uri, lambda outcomes: outcomes.state(id_))


def store(database: Database[dict[str, Any]], *seen: Seen) -> None:
    for each in seen:
        merge(database["outcomes"], [each])


def registration(user_id: str = "u1", nickname: str = "Ann") -> Registration:
    return Registration(stock_id="s1", user_id=user_id, user_info={"nickname": nickname})


def provenance(id_: str = ID) -> Provenance:
    return Provenance(id_, True, Source.JSON, 1, NOW)


PENDING = Seen(ID, State.PENDING, NOW)
REGISTERED = Seen(ID, State.REGISTERED, after(1), user=("s1", "u1"), message="m1")
CONFLICT = Seen(ID, State.CONFLICT, after(1), "another payload", message="m1")
FAILED = Seen(ID, State.FAILED, after(1), "$reason", message="m1")
EXPIRED = Seen(ID, State.EXPIRED, after(1), "too late", message="m1")


# What is stored


@pytest.mark.parametrize("last", [REGISTERED, CONFLICT, FAILED, EXPIRED])
def test_each_outcome_has_its_time_and_reason(
    database: Database[dict[str, Any]], mongo_uri: str, last: Seen
) -> None:
    store(database, PENDING, last)
    found = state(mongo_uri)
    assert found is not None
    assert (found.state, found.at, found.reason) == (last.state, last.at, last.reason)


@pytest.mark.parametrize(
    "later",
    [
        Seen(ID, State.PENDING, after(9)),
        Seen(ID, State.FAILED, after(9), "later"),
        Seen(ID, State.CONFLICT, after(9), "later", message="m2"),
        Seen(ID, State.EXPIRED, after(9), "later"),
        Seen(ID, State.REGISTERED, after(9), user=("s1", "u1")),
    ],
    ids=lambda seen: str(seen.state),
)
def test_registered_stays_whatever_comes_after_or_before_it(
    database: Database[dict[str, Any]], mongo_uri: str, later: Seen
) -> None:
    for order in ((REGISTERED, later), (later, REGISTERED)):
        database["outcomes"].delete_many({})
        store(database, *order)
        found = state(mongo_uri)
        assert found is not None
        assert (found.state, found.reason) == ("registered", None)


def test_a_second_payload_is_listed_once_for_each_message(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    second = Seen(ID, State.CONFLICT, after(5), "$other payload", message="m2")
    third = Seen(ID, State.CONFLICT, after(6), "other payload", message="m3")
    store(database, REGISTERED, second, second, third)
    found = state(mongo_uri)
    assert found is not None
    assert (found.state, found.at) == ("registered", REGISTERED.at)
    assert [(each["at"], each["reason"]) for each in found.conflicts] == [
        (second.at, second.reason),
        (third.at, third.reason),
    ]


def test_the_list_of_conflicts_is_bounded(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    many = [Seen(ID, State.CONFLICT, after(n), "r", message=f"m{n}") for n in range(2, 40)]
    store(database, REGISTERED, *many)
    found = state(mongo_uri)
    assert found is not None
    assert len(found.conflicts) == 10


@pytest.mark.parametrize("first", [CONFLICT, FAILED, EXPIRED], ids=lambda seen: str(seen.state))
def test_a_message_that_is_received_again_is_pending_and_then_has_its_new_outcome(
    database: Database[dict[str, Any]], mongo_uri: str, first: Seen
) -> None:
    store(database, PENDING, first, Seen(ID, State.PENDING, after(9)))
    found = state(mongo_uri)
    assert found is not None
    assert (found.state, found.at, found.reason) == ("pending", after(9), None)

    store(database, Seen(ID, State.REGISTERED, after(10), user=("s1", "u1")))
    found = state(mongo_uri)
    assert found is not None
    assert found.state == "registered"


def test_an_acceptance_that_is_stored_late_does_not_hide_the_outcome(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    # The clock of the API is ahead of the worker's.
    late = Seen(ID, State.PENDING, after(3), margin=timedelta(seconds=5))
    store(database, FAILED, late)
    found = state(mongo_uri)
    assert found is not None
    assert found.state == "failed"


def test_the_order_in_which_workers_write_does_not_matter(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    seen = [
        PENDING,
        FAILED,
        Seen(ID, State.PENDING, after(5)),
        Seen(ID, State.CONFLICT, after(6), "the last", message="m9"),
    ]
    for order in itertools.permutations(seen):
        database["outcomes"].delete_many({})
        store(database, *order)
        found = state(mongo_uri)
        assert found is not None
        assert (found.state, found.reason, found.at) == ("conflict", "the last", after(6))


def test_to_write_the_same_again_changes_nothing(database: Database[dict[str, Any]]) -> None:
    seen = [PENDING, REGISTERED, Seen(ID, State.CONFLICT, after(5), "r", message="m2")]
    store(database, *seen)
    before = {**database["outcomes"].find_one({"_id": ID})} | {"forget_at": None}  # type: ignore[dict-item]  # it is there
    for _ in range(5):
        store(database, *random.sample(seen, 3))
    assert {**database["outcomes"].find_one({"_id": ID})} | {"forget_at": None} == before  # type: ignore[dict-item]  # it is there


def test_a_key_like_an_expression_is_stored_as_it_is(
    database: Database[dict[str, Any]],
) -> None:
    store(database, Seen(ID, State.REGISTERED, NOW, user=("$$ROOT", "$state")))
    found = database["outcomes"].find_one({"_id": ID})
    assert found is not None
    assert found["user"] == {"stock_id": "$$ROOT", "user_id": "$state"}


def test_outcomes_are_forgotten_after_the_retention_of_ids(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    with closing(Store()) as own:
        own.write([FAILED])
    index = database["outcomes"].index_information()["forget_at"]
    assert index["expireAfterSeconds"] == 0
    found = database["outcomes"].find_one({"_id": ID})
    assert found is not None
    days = (found["forget_at"] - datetime.now(UTC)) / timedelta(days=1)
    assert days == pytest.approx(get_settings().once_retention_days, abs=0.1)


# The writer


def test_many_outcomes_are_one_write_and_a_refused_one_stops_no_other(
    database: Database[dict[str, Any]],
) -> None:
    database.create_collection("outcomes", validator={"reason": {"$ne": "bad"}})
    seen = [Seen(uuid.uuid4().hex, State.FAILED, NOW, "bad" if n == 3 else "r") for n in range(9)]
    with pytest.raises(Refused) as raised:
        merge(database["outcomes"], seen)
    assert (raised.value.count, raised.value.code, raised.value.is_final) == (1, 121, True)
    assert database["outcomes"].count_documents({}) == 8


def test_a_writer_writes_soon_and_a_flush_at_once(database: Database[dict[str, Any]]) -> None:
    with closing(Store()) as own:
        writer = Writer(own.write)
        writer.put(REGISTERED)
        wait_until(lambda: database["outcomes"].find_one({"_id": ID}), SECONDS, "the outcome")
        other = Seen("1" * 40, State.PENDING, NOW)
        writer.put_pending(other)
        assert writer.flush(SECONDS)
    assert database["outcomes"].find_one({"_id": other.id})


def test_a_worker_that_stops_writes_the_last_outcomes(database: Database[dict[str, Any]]) -> None:
    assert OutcomeFlush in map(symbol_by_name, app.steps["worker"])
    seen = [Seen(f"{n:040x}", State.FAILED, NOW) for n in range(20)]
    for each in seen:
        observer.writer.put(each)

    OutcomeFlush(None).stop(None)

    assert database["outcomes"].count_documents({}) == len(seen)


# The reader


def test_an_id_that_nobody_sent_is_unknown_and_one_that_was_accepted_is_pending(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    async def work(outcomes: Outcomes) -> tuple[Outcome | None, Outcome | None]:
        await outcomes.accepted([ID])
        return await outcomes.state(ID), await outcomes.state("f" * 40)

    known, unknown = reading(mongo_uri, work)
    assert known is not None
    assert (known.state, unknown) == ("pending", None)
    # For every process, not only the one that accepted it.
    assert state(mongo_uri) == known


@pytest.mark.parametrize(
    "seen", [PENDING, replace(PENDING, user=("$s", "u")), REGISTERED, CONFLICT, FAILED, EXPIRED]
)
def test_a_new_id_is_stored_alike_by_an_insert_and_by_an_update(
    database: Database[dict[str, Any]], seen: Seen
) -> None:
    forget_at = after(60)
    database["outcomes"].update_one({"_id": ID}, seen.update(forget_at), upsert=True)
    by_update = database["outcomes"].find_one_and_delete({"_id": ID})
    database["outcomes"].insert_one(seen.document(forget_at))
    assert database["outcomes"].find_one({"_id": ID}) == by_update


def test_among_new_ids_a_known_one_is_pending_again_unless_it_is_registered(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    ids = [digit * 40 for digit in "0123456789"]
    before = datetime.now(UTC) - timedelta(minutes=1)
    store(database, replace(REGISTERED, id=ids[3]), replace(FAILED, id=ids[5], at=before))
    reading(mongo_uri, lambda outcomes: outcomes.accepted(ids))
    found = {each["_id"]: each["state"] for each in database["outcomes"].find()}
    assert found == dict.fromkeys(ids, "pending") | {ids[3]: "registered"}


def test_an_acceptance_that_a_validator_refuses_stops_no_other(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    database.create_collection("outcomes", validator={"_id": {"$ne": "3" * 40}})
    ids = [digit * 40 for digit in "0123456789"]
    reading(mongo_uri, lambda outcomes: outcomes.accepted(ids))
    assert set(database["outcomes"].distinct("_id")) == set(ids) - {"3" * 40}


def test_acceptances_of_many_calls_are_few_writes(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    database.command("profile", 2)

    async def work(outcomes: Outcomes) -> float:
        await outcomes.accepted(["f" * 40])
        began, calls = time.monotonic(), []
        for call in range(50):
            ids = [f"{call:020x}{n:020x}" for n in range(10)]
            calls.append(asyncio.create_task(outcomes.accepted(ids)))
            await asyncio.sleep(0.002)
        await asyncio.gather(*calls)
        return time.monotonic() - began

    seconds = reading(mongo_uri, work)
    assert database["outcomes"].count_documents({}) == 501
    writes = {"op": "insert", "ns": f"{database.name}.outcomes"}
    assert database["system.profile"].count_documents(writes) <= seconds / BETWEEN_WRITES + 3


def test_a_registration_is_registered_although_its_worker_could_not_write_that(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    register(registration(), provenance())

    async def work(outcomes: Outcomes) -> Outcome | None:
        await outcomes.accepted([ID, "2" * 40], [("s1", "u1")] * 2)
        assert (other := await outcomes.state("2" * 40)) is not None
        assert other.state == "pending"
        return await outcomes.state(ID)

    found = reading(mongo_uri, work)
    assert found is not None
    assert (found.state, found.user and found.user["stockId"]) == ("registered", "s1")


def test_a_registered_id_comes_with_its_user_and_without_hashes(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    register(registration(), provenance())
    store(database, REGISTERED)
    found = state(mongo_uri)
    assert found is not None
    assert found.user is not None
    assert set(found.user) == {
        "stockId",
        "userId",
        "userInfo",
        "index",
        "money",
        "loanCount",
        "lastActivityTime",
        "registeredAt",
    }
    assert reading(mongo_uri, lambda outcomes: outcomes.user("s1", "u1")) == found.user
    assert reading(mongo_uri, lambda outcomes: outcomes.user("s1", "u2")) is None


def test_pages_of_users_have_each_user_once_in_a_stable_order(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    names = [f"u{n}" for n in range(25)] + ["ü", "U1", "$x"]
    for name in random.sample(names, len(names)):
        register(registration(name), provenance(name))
    register(
        Registration(stock_id="s2", user_id="u1", user_info={"nickname": "x"}), provenance("x")
    )

    async def work(outcomes: Outcomes) -> list[str]:
        listed: list[str] = []
        cursor = None
        while True:
            page = await outcomes.users("s1", cursor, 10)
            assert len(page.users) <= 10
            listed += [user["userId"] for user in page.users]
            if (cursor := page.next) is None:
                return listed

    assert reading(mongo_uri, work) == sorted(names, key=str.encode)


def test_the_count_is_that_of_increments(
    database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    from app import counter

    for n in range(7):
        counter.increment(Increment(input=n), provenance(f"i{n}"))
    assert reading(mongo_uri, lambda outcomes: outcomes.count()) == 7


@pytest.mark.slow
def test_an_outage_is_said_within_seconds_and_nothing_is_raised_at_acceptance() -> None:
    uri = "mongodb://127.0.0.1:1/away?replicaSet=rs0"

    async def work(outcomes: Outcomes) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await outcomes.accepted([ID])
        assert loop.time() - began < 2
        for ask in (
            outcomes.state(ID),
            outcomes.user("s", "u"),
            outcomes.users("s", None, 1),
            outcomes.count(),
        ):
            began = loop.time()
            with pytest.raises(Unavailable):
                await ask
            assert loop.time() - began < 6

    reading(uri, work)
