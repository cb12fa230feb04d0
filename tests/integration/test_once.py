"""Exactly-once effects against a real replica set."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier, Event
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.errors import ConfigurationError

from app import counter, models
from app.counter import Increments
from app.errors import Conflict, PermanentError, TransientError
from app.messages import Increment, Provenance, Source
from app.once import OnceRecord, once
from app.settings import get_settings
from app.startup import prepare_database


@pytest.fixture(autouse=True)
def _connected(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MONGO_URI", mongo_uri)
    get_settings.cache_clear()
    prepare_database(get_settings())
    yield
    models.disconnect()


def provenance(id_: str = "m1", has_producer_id: bool = True) -> Provenance:
    return Provenance(id_, has_producer_id, Source.JSON, 1, datetime.now(UTC))


def test_an_increment_stores_input_and_output_and_counts_one() -> None:
    result = counter.increment(Increment(input=4), provenance())

    assert result == {"message_id": "m1", "input": 4, "output": 5}
    row = Increments.objects.get()
    assert (row.message_id, row.input, row.output) == ("m1", 4, 5)
    assert counter.count() == 1


def test_a_duplicate_gets_the_stored_result_and_counts_nothing() -> None:
    first = counter.increment(Increment(input=1.5), provenance())

    assert counter.increment(Increment(input=1.5), provenance()) == first
    assert counter.count() == 1


def test_the_same_id_with_another_payload_is_a_conflict() -> None:
    counter.increment(Increment(input=1), provenance())

    with pytest.raises(Conflict):
        counter.increment(Increment(input=2), provenance())
    assert counter.count() == 1


def test_a_message_without_an_id_of_its_producer_is_refused() -> None:
    with pytest.raises(PermanentError, match="no id"):
        counter.increment(Increment(input=1), provenance(has_producer_id=False))
    assert counter.count() == 0


def test_deliveries_at_the_same_instant_count_one() -> None:
    threads, rounds = 6, 10
    barrier = Barrier(threads)

    def run(_: int) -> list[Any]:
        results = []
        for number in range(rounds):
            barrier.wait()
            results.append(counter.increment(Increment(input=number), provenance(f"m{number}")))
        return results

    with ThreadPoolExecutor(threads) as pool:
        per_thread = list(pool.map(run, range(threads)))

    assert counter.count() == rounds
    assert all(results == per_thread[0] for results in per_thread)


def test_an_effect_that_fails_leaves_nothing_and_can_run_again() -> None:
    fail = True

    @once
    def effect(message: Increment, provenance: Provenance, session: ClientSession) -> Any:
        Increments._get_collection().insert_one({"message_id": "x"}, session=session)
        if fail:
            raise ValueError("not now")
        return {"done": True}

    with pytest.raises(ValueError, match="not now"):
        effect(Increment(input=1), provenance())
    assert (Increments.objects.count(), OnceRecord.objects.count()) == (0, 0)

    fail = False
    assert effect(Increment(input=1), provenance()) == {"done": True}
    assert Increments.objects.count() == 1


def test_a_transient_error_of_the_commit_is_retried(mongo_client: MongoClient[Any]) -> None:
    mongo_client.admin.command(
        "configureFailPoint",
        "failCommand",
        mode={"times": 2},
        data={
            "failCommands": ["commitTransaction"],
            "errorCode": 112,
            "errorLabels": ["TransientTransactionError"],
        },
    )

    counter.increment(Increment(input=1), provenance())

    assert counter.count() == 1


def test_a_commit_whose_answer_was_lost_counts_one(mongo_client: MongoClient[Any]) -> None:
    mongo_client.admin.command(
        "configureFailPoint",
        "failCommand",
        mode={"times": 1},
        data={"failCommands": ["commitTransaction"], "closeConnection": True},
    )

    counter.increment(Increment(input=1), provenance())

    assert counter.count() == 1


def test_a_transaction_left_open_by_a_killed_process_is_waited_out() -> None:
    written, end = Event(), Event()

    @once
    def hangs(message: Increment, provenance: Provenance, session: ClientSession) -> Any:
        Increments._get_collection().insert_one({"message_id": "m1"}, session=session)
        written.set()
        end.wait(30)
        raise ValueError("killed")

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(hangs, Increment(input=1), provenance("other"))
        assert written.wait(10)
        with pytest.raises(TransientError) as caught:
            counter.increment(Increment(input=1), provenance("m1"))
        end.set()
        with pytest.raises(ValueError, match="killed"):
            killed.result(10)

    assert caught.value.retry_after == get_settings().mongo_transaction_lifetime
    assert counter.count() == 0


def test_a_record_outlives_queue_dead_letter_queue_and_redrive() -> None:
    counter.increment(Increment(input=1), provenance())

    record = OnceRecord.objects.get()
    assert record.forget_at - record.applied_at >= timedelta(days=3 * 14 + 1)
    index = OnceRecord._get_collection().index_information()["forget_at"]
    assert index["expireAfterSeconds"] == 0


# Releases that know other fields


class Newer(Increment):
    """What the next release knows: an optional field more. Its messages have the same name."""

    note: str = ""


Newer.__name__ = Increment.__name__

BODY = {"input": 4, "note": "hi"}


@pytest.mark.parametrize("writer", [Increment, Newer])
@pytest.mark.parametrize("reader", [Increment, Newer])
def test_a_message_comes_again_in_another_release(
    writer: type[Increment], reader: type[Increment]
) -> None:
    first = counter.increment(writer.model_validate(BODY), provenance())

    assert counter.increment(reader.model_validate(BODY), provenance()) == first
    with pytest.raises(Conflict):
        counter.increment(reader.model_validate(BODY | {"input": 5}), provenance())
    assert counter.count() == 1


def test_a_field_of_a_newer_release_is_compared_after_the_way_back() -> None:
    counter.increment(Newer.model_validate(BODY), provenance())

    with pytest.raises(Conflict):
        counter.increment(Increment.model_validate(BODY | {"note": "bye"}), provenance())


@pytest.mark.parametrize("reader", [Increment, Newer])
def test_a_record_of_the_release_before_is_compared_by_what_that_knew(
    reader: type[Increment],
) -> None:
    counter.increment(Increment(input=4), provenance())
    OnceRecord._get_collection().update_one({}, {"$unset": {"payload": 1}})

    counter.increment(reader.model_validate(BODY), provenance())
    with pytest.raises(Conflict):
        counter.increment(reader.model_validate(BODY | {"input": 5}), provenance())
    assert counter.count() == 1


def test_the_release_before_reads_what_this_one_stores() -> None:
    counter.increment(Newer.model_validate(BODY), provenance())

    row = OnceRecord._get_collection().find_one({"_id": "Increment:m1"})
    assert row["payload_hash"] == hashlib.sha256(b'{"input":4}').hexdigest()
    assert row["stored"]["output"] == 5


@pytest.mark.parametrize("name", ["payload_hash", "payload.hash"])
def test_a_record_that_somebody_edited_is_no_conflict_but_says_so(name: str) -> None:
    counter.increment(Increment(input=4), provenance())
    OnceRecord._get_collection().update_one({}, {"$unset": {name: 1}})

    with pytest.raises(PermanentError, match="cannot be compared") as caught:
        counter.increment(Increment(input=4), provenance())

    assert not isinstance(caught.value, Conflict)


def test_a_client_whose_connection_refuses_sessions_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        # As pymongo says it of a connection that was opened while a member was starting.
        raise ConfigurationError("Sessions are not supported by this MongoDB deployment")

    lost = models.connect()
    with monkeypatch.context() as patch:
        patch.setattr(MongoClient, "start_session", refuse)
        with pytest.raises(ConfigurationError):
            counter.increment(Increment(input=1), provenance())

    assert models.connect() is not lost
    assert counter.increment(Increment(input=1), provenance())["output"] == 2
