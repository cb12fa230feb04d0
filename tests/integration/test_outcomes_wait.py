"""`wait` returns as soon as the state is final, whatever MongoDB does meanwhile."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.uri_parser import parse_uri

from app.errors import Unavailable
from app.outcomes.outcome import Seen, State
from app.outcomes.reader import Outcome, Outcomes
from app.outcomes.watch import MOST_WAITERS
from app.outcomes.writer import merge
from app.settings import get_settings
from devstack import mongo, ports
from devstack.process import Process
from tests.deployments.deployment import Deployment
from tests.services import wait_until

T = TypeVar("T")

ID = "0123456789abcdef0123456789abcdef01234567"
#: Longer than any test may take.
LONG = 90.0
#: For what happens at once.
SOON = 5.0

Collected = Collection[dict[str, Any]]


@pytest.fixture
def collection(
    mongo_uri: str, mongo_client: MongoClient[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Collected:
    monkeypatch.setenv("MONGO_URI", mongo_uri)
    get_settings.cache_clear()
    return mongo_client[parse_uri(mongo_uri)["database"]]["outcomes"]


def run(uri: str, work: Callable[[Outcomes], Awaitable[T]]) -> T:
    async def body() -> T:
        outcomes = Outcomes(uri)
        try:
            return await work(outcomes)
        finally:
            await outcomes.close()

    return asyncio.run(body())


async def store(collection: Collected, id_: str, state: State) -> None:
    await asyncio.to_thread(merge, collection, [Seen(id_, state, datetime.now(UTC))])


async def timed(awaitable: Awaitable[T]) -> tuple[T, float]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    return await awaitable, loop.time() - began


async def is_held(task: "asyncio.Task[Any]", seconds: float = 1.0) -> bool:
    return not (await asyncio.wait({task}, timeout=seconds))[0]


def test_it_returns_as_soon_as_the_state_is_final(collection: Collected, mongo_uri: str) -> None:
    async def work(outcomes: Outcomes) -> None:
        await outcomes.accepted([ID])
        waiting = asyncio.ensure_future(outcomes.wait(ID, LONG))
        assert await is_held(waiting)
        await store(collection, ID, State.FAILED)
        found, seconds = await timed(waiting)
        assert found is not None
        assert found.state == "failed"
        assert seconds < SOON
        # Final already: at once.
        found, seconds = await timed(outcomes.wait(ID, LONG))
        assert (found and found.state, seconds < SOON) == ("failed", True)

    run(mongo_uri, work)


def test_no_change_is_missed_whenever_it_comes(collection: Collected, mongo_uri: str) -> None:
    async def work(outcomes: Outcomes) -> None:
        ids = [f"{n:040x}" for n in range(150)]
        await outcomes.accepted(ids)

        async def one(n: int, id_: str) -> Outcome | None:
            waiting = asyncio.ensure_future(outcomes.wait(id_, LONG))
            # At another moment of the other's start each time.
            await asyncio.sleep(n / 300)
            await store(collection, id_, State.REGISTERED)
            return await waiting

        found, seconds = await timed(asyncio.gather(*(one(n, i) for n, i in enumerate(ids))))
        assert {each and each.state for each in found} == {"registered"}
        assert seconds < LONG / 3

    run(mongo_uri, work)


def test_the_present_state_comes_at_the_end_and_for_an_unknown_id_at_once(
    collection: Collected, mongo_uri: str
) -> None:
    async def work(outcomes: Outcomes) -> None:
        await outcomes.accepted([ID])
        found, seconds = await timed(outcomes.wait(ID, 1.0))
        assert found is not None
        assert found.state == "pending"
        assert 0.9 < seconds < SOON
        unknown, seconds = await timed(outcomes.wait("f" * 40, LONG))
        assert (unknown, seconds < SOON) == (None, True)

    run(mongo_uri, work)


def test_above_the_limit_and_on_a_stop_the_present_state_comes_at_once(
    collection: Collected, mongo_uri: str
) -> None:
    async def work(outcomes: Outcomes) -> None:
        await outcomes.accepted([ID])
        waiting: list[asyncio.Future[Outcome | None]] = []
        while len(waiting) < MOST_WAITERS:
            waiting += [asyncio.ensure_future(outcomes.wait(ID, LONG)) for _ in range(50)]
            # In steps: a thousand reads at once may take longer than one may.
            await outcomes.state(ID)
        assert await is_held(waiting[-1])
        one_more, seconds = await timed(outcomes.wait(ID, LONG))
        assert (one_more and one_more.state, seconds < SOON) == ("pending", True)

        outcomes.stop_waiting()

        found, seconds = await timed(asyncio.gather(*waiting))
        assert {each and each.state for each in found} == {"pending"}
        assert seconds < SOON * 2
        _, seconds = await timed(outcomes.wait(ID, LONG))
        assert seconds < SOON

    run(mongo_uri, work)


def test_all_who_wait_share_one_change_stream_that_holds_only_ids(
    collection: Collected, mongo_uri: str
) -> None:
    async def work(outcomes: Outcomes) -> list[dict[str, Any]]:
        await outcomes.accepted([ID, "1" * 40])
        tasks = [asyncio.ensure_future(outcomes.wait(ID, LONG)) for _ in range(20)]
        tasks += [asyncio.ensure_future(outcomes.wait("1" * 40, LONG)) for _ in range(20)]
        assert await is_held(tasks[0])
        admin = collection.database.client.admin
        streams = [
            op
            for op in admin.aggregate([{"$currentOp": {"idleCursors": True}}])
            if op.get("ns") == collection.full_name and "$changeStream" in str(op.get("cursor"))
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return streams

    streams = run(mongo_uri, work)
    assert len({stream["cursor"]["cursorId"] for stream in streams}) == 1
    pipeline = streams[0]["cursor"]["originatingCommand"]["pipeline"]
    assert {"$project": {"documentKey": 1}} in pipeline


async def answer(outcomes: Outcomes) -> None:
    """Read as often as it takes: a busy machine may need more time than one read has."""
    while True:
        with suppress(Unavailable):
            await outcomes.state(ID)
            return


def test_who_gives_up_makes_room(collection: Collected, mongo_uri: str) -> None:
    async def work(outcomes: Outcomes) -> None:
        await outcomes.accepted([ID])
        gone = [asyncio.ensure_future(outcomes.wait(ID, LONG)) for _ in range(MOST_WAITERS)]
        assert await is_held(gone[-1])
        # These read after all the others have read: none of those is cancelled while it connects.
        await asyncio.gather(*(answer(outcomes) for _ in range(200)))
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        waiting = asyncio.ensure_future(outcomes.wait(ID, LONG))
        assert await is_held(waiting)
        await store(collection, ID, State.REGISTERED)
        assert (await waiting) is not None

    run(mongo_uri, work)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_who_gives_up_is_gone_at_once_whatever_it_does(
    collection: Collected, mongo_uri: str
) -> None:
    """pymongo 4.20 does not close a connection whose handshake is cancelled; that is ignored."""

    async def work(outcomes: Outcomes) -> None:
        await outcomes.accepted([ID])
        for turns in range(40):
            tasks = [asyncio.ensure_future(outcomes.wait(ID, LONG)) for _ in range(100)]
            # At another moment of their reads each time.
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            _, late = await asyncio.wait(tasks, timeout=SOON)
            assert not late

    run(mongo_uri, work)
    gc.collect()


def test_a_stop_waits_for_no_change(collection: Collected, mongo_uri: str) -> None:
    async def work(turns: int) -> float:
        outcomes = Outcomes(mongo_uri)
        await outcomes.accepted([ID])
        waiting = asyncio.ensure_future(outcomes.wait(ID, LONG))
        for _ in range(turns * 10):
            await asyncio.sleep(0)
        outcomes.stop_waiting()
        await waiting
        _, seconds = await timed(outcomes.close())
        return seconds

    assert max(asyncio.run(work(turns)) for turns in range(10)) < SOON


@contextmanager
def standalone(directory: Path) -> Iterator[str]:
    port = ports.preferred_or_any(None)
    data = directory / "data"
    data.mkdir()
    words = mongo.command(mongo.find_binary(), data, port, replica_set=None)
    with (
        Process("mongod", words, log=directory / "mongod.log", grace=20),
        MongoClient[dict[str, Any]](ports.HOST, port, serverSelectionTimeoutMS=30_000) as client,
    ):
        wait_until(lambda: client.admin.command("ping"), 30, "a mongod")
        yield f"mongodb://{ports.HOST}:{port}/alone"


def test_without_change_streams_the_outcomes_are_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        standalone(tmp_path) as uri,
        MongoClient[dict[str, Any]](uri, tz_aware=True) as client,
    ):
        monkeypatch.setenv("MONGO_URI", uri)
        get_settings.cache_clear()
        collection = client["alone"]["outcomes"]

        async def work(outcomes: Outcomes) -> None:
            merge(collection, [Seen(ID, State.PENDING, datetime.now(UTC))])
            waiting = asyncio.ensure_future(outcomes.wait(ID, LONG))
            assert await is_held(waiting)
            await store(collection, ID, State.FAILED)
            found, seconds = await timed(waiting)
            assert (found and found.state, seconds < SOON) == ("failed", True)

        run(uri, work)
    assert [r for r in caplog.records if vars(r).get("event") == "outcomes.polled"]


@pytest.mark.slow
def test_those_who_wait_are_woken_after_a_failover(
    three_nodes: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = three_nodes.uri("failover")
    monkeypatch.setenv("MONGO_URI", uri)
    get_settings.cache_clear()
    collection = three_nodes.client()["failover"]["outcomes"]
    other = "1" * 40

    async def work(outcomes: Outcomes) -> None:
        await outcomes.accepted([ID, other])
        waiting = [asyncio.ensure_future(outcomes.wait(id_, LONG)) for id_ in (ID, other)]
        assert await is_held(waiting[0])

        killed = await asyncio.to_thread(three_nodes.wait_for_primary)
        three_nodes.kill(killed)
        # Stored as soon as there is a primary, before the stream may be open again.
        await asyncio.to_thread(three_nodes.wait_for_primary)
        await store(collection, ID, State.REGISTERED)
        found, seconds = await timed(waiting[0])
        assert (found and found.state, seconds < 30) == ("registered", True)

        assert await is_held(waiting[1])
        await store(collection, other, State.FAILED)
        found, seconds = await timed(waiting[1])
        assert (found and found.state, seconds < SOON) == ("failed", True)

    run(uri, work)


@pytest.mark.slow
def test_in_an_outage_it_waits_to_the_end_and_then_says_so_unless_it_has_read_before(
    three_nodes: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = three_nodes.uri("outage")
    monkeypatch.setenv("MONGO_URI", uri)
    get_settings.cache_clear()

    async def work(outcomes: Outcomes) -> None:
        await outcomes.accepted([ID])
        before = asyncio.ensure_future(outcomes.wait(ID, 4.0))
        assert await is_held(before)
        for member in range(3):
            three_nodes.freeze(member)
        _, seconds = await timed(outcomes.accepted(["2" * 40]))
        assert seconds < 1
        with pytest.raises(Unavailable):
            await outcomes.wait(ID, 4.0)
        found = await before
        assert found is not None
        assert found.state == "pending"
        for member in range(3):
            three_nodes.thaw(member)

    run(uri, work)


@pytest.mark.slow
def test_after_an_outage_what_was_accepted_is_stored_and_those_who_wait_are_woken(
    three_nodes: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = three_nodes.uri("accepted")
    monkeypatch.setenv("MONGO_URI", uri)
    get_settings.cache_clear()
    lost = "2" * 40

    async def work(outcomes: Outcomes) -> None:
        await outcomes.accepted([ID])
        waiting = asyncio.ensure_future(outcomes.wait(ID, LONG))
        assert await is_held(waiting)
        for member in range(3):
            three_nodes.kill(member)
        with pytest.raises(Unavailable):
            await outcomes.state(ID)
        await outcomes.accepted([lost])
        with pytest.raises(Unavailable):
            await outcomes.state(lost)
        for member in range(3):
            three_nodes.start(member)
        await asyncio.to_thread(three_nodes.wait_for_primary)
        collection = three_nodes.client()["accepted"]["outcomes"]
        await asyncio.to_thread(
            wait_until, lambda: collection.find_one({"_id": lost}), 60, "the acceptance"
        )
        await store(collection, ID, State.FAILED)
        found, seconds = await timed(waiting)
        assert (found and found.state, seconds < SOON) == ("failed", True)

    run(uri, work)
