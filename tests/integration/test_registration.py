"""A registration against a real MongoDB: one user, whatever runs at the same instant."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import Any, ClassVar

import mongoengine as me
import pytest
from bson import ObjectId
from pymongo import monitoring
from pymongo.errors import WriteError

from app import models
from app.errors import Conflict, PermanentError
from app.messages import Provenance, Registration, Source
from app.models import User
from app.registration import Registered, Result, register, register_many
from app.settings import get_settings
from app.startup import prepare_database

#: MongoDB's code of a document that a validator refuses.
DOCUMENT_REFUSED = 121

ENQUEUED = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _connected(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MONGO_URI", mongo_uri)
    monkeypatch.setenv("STARTING_MONEY", "700")
    get_settings.cache_clear()
    prepare_database(get_settings())
    yield
    models.disconnect()


def registration(**fields: Any) -> Registration:
    given = {"stock_id": "s1", "user_id": "u1", "user_info": {"nickname": "kim"}}
    return Registration.model_validate(given | fields)


def provenance(id_: str = "m1", deliveries: int = 1) -> Provenance:
    return Provenance(id_, True, Source.JSON, deliveries, ENQUEUED)


def test_a_registration_makes_a_user_with_all_that_is_known_of_it() -> None:
    registered = register(registration(index=4, loan_count=1), provenance(deliveries=2))

    user = User.objects.get()
    assert registered.result is Result.REGISTERED
    assert (user.stock_id, user.user_id, user.index, user.loan_count) == ("s1", "u1", 4, 1)
    assert user.user_info.nickname == "kim"
    assert user.money == 700
    record = user.registration
    assert (record.message_id, record.source, record.deliveries) == ("m1", Source.JSON, 2)
    assert record.enqueued_at == ENQUEUED
    assert record.registered_at.tzinfo is not None
    assert user.last_activity_time == record.registered_at
    assert record.payload_hash == registration(index=4, loan_count=1).payload_hash()


def test_a_sum_that_is_given_is_kept_even_if_it_is_nothing() -> None:
    register(registration(money=0), provenance())

    assert User.objects.get().money == 0


def test_the_same_registration_again_changes_nothing() -> None:
    register(registration(), provenance("m1"))
    before = User.objects.get().to_mongo()

    again = register(registration(), provenance("m2"))

    assert again.result is Result.ALREADY_REGISTERED
    assert User.objects.get().to_mongo() == before


def test_another_payload_for_the_same_user_is_a_conflict_and_the_first_stays() -> None:
    register(registration(), provenance())

    with pytest.raises(Conflict) as caught:
        register(registration(user_info={"nickname": "lee"}), provenance("m2"))

    assert User.objects.get().user_info.nickname == "kim"
    assert not {"kim", "lee"} & set(str(caught.value).split())


def test_one_user_in_two_sessions_is_two_users() -> None:
    register(registration(stock_id="s1"), provenance("m1"))
    register(registration(stock_id="s2"), provenance("m2"))

    assert User.objects.count() == 2


def test_registrations_at_the_same_instant_make_one_user_and_no_error() -> None:
    threads, rounds = 8, 20
    barrier = Barrier(threads)

    def run(worker: int) -> list[Result]:
        results = []
        for number in range(rounds):
            barrier.wait()
            registered = register(registration(user_id=f"u{number}"), provenance(f"{worker}"))
            results.append(registered.result)
        return results

    with ThreadPoolExecutor(threads) as pool:
        per_thread = list(pool.map(run, range(threads)))

    assert User.objects.count() == rounds
    for results in zip(*per_thread, strict=True):
        assert sorted(results) == [Result.ALREADY_REGISTERED] * (threads - 1) + [Result.REGISTERED]


def commands_of(work: Callable[[], Any]) -> list[str]:
    """The commands that MongoDB is sent for it, without those of a new connection."""
    sent: list[str] = []

    class Count(monitoring.CommandListener):
        def started(self, event: monitoring.CommandStartedEvent) -> None:
            sent.append(event.command_name)

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...
        def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    models.disconnect()
    listeners = monitoring._LISTENERS.command_listeners
    monitoring.register(count := Count())
    try:
        models.connect().admin.command("ping")
        sent.clear()
        work()
    finally:
        listeners.remove(count)
    return sent


def test_a_registration_is_one_round_trip() -> None:
    register(registration(), provenance())

    sent = commands_of(lambda: register(registration(user_id="u2"), provenance()))

    assert sent == ["findAndModify"]


def pairs(*users: str, **fields: Any) -> list[tuple[Registration, Provenance]]:
    return [(registration(user_id=user, **fields), provenance(f"m-{user}")) for user in users]


def results(outcomes: list[Any]) -> list[Any]:
    return [getattr(outcome, "result", type(outcome)) for outcome in outcomes]


def test_many_registrations_are_one_round_trip() -> None:
    register(registration(), provenance())

    def twice() -> None:
        register_many(pairs(*"abcdefghij"))
        register_many(pairs(*"klmnopqrst"))

    # A new client looks whether the index is there, then not again for some time.
    assert commands_of(twice) == ["listIndexes", "insert", "insert"]
    assert User.objects.count() == 21


def test_many_registrations_that_came_before_are_two_round_trips() -> None:
    register_many(pairs(*"abcdefghij"))

    sent = commands_of(lambda: register_many(pairs(*"abcdefghij")))

    assert sent == ["listIndexes", "insert", "find"]
    assert User.objects.count() == 10


def test_a_client_that_has_not_seen_the_index_inserts_nothing() -> None:
    register_many(pairs("u1", "u2"))
    User._get_collection().drop_index("stock_id_user_id")

    models.disconnect()
    outcomes = register_many(pairs("u3", "u4"))

    assert results(outcomes) == [WriteError] * 2
    assert User.objects.count() == 2


def test_a_user_of_a_release_with_other_ids_is_found_among_many() -> None:
    register(registration(user_id="old"), provenance())
    users = User._get_collection()
    before = users.find_one_and_delete({})
    assert before is not None
    users.insert_one({**before, "_id": ObjectId()})

    assert results(register_many(pairs("old", "new"))) == [
        Result.ALREADY_REGISTERED,
        Result.REGISTERED,
    ]
    assert User.objects.count() == 2


def test_many_make_the_same_users_as_one_by_one() -> None:
    register(registration(user_id="a", index=4), provenance("m-a", deliveries=2))
    register_many([(registration(user_id="b", index=4), provenance("m-b", deliveries=2))])

    one, many = (User.objects.get(user_id=user).to_mongo().to_dict() for user in "ab")
    for user in (one, many):
        record = user["registration"]
        assert record.pop("message_id") == f"m-{user.pop('user_id')}"
        assert all(user.pop(name) for name in ("_id", "last_activity_time"))
        assert all(record.pop(name) for name in ("registered_at", "payload_hash"))
        assert user.pop("payload").keys() == {"version", "hash", "known", "given"}
    assert one == many


def test_of_many_each_has_its_own_result() -> None:
    register(registration(user_id="old"), provenance())
    register(registration(user_id="taken", index=9), provenance())

    outcomes = register_many(pairs("new", "old", "taken", "other"))

    assert results(outcomes) == [
        Result.REGISTERED,
        Result.ALREADY_REGISTERED,
        Conflict,
        Result.REGISTERED,
    ]
    assert User.objects.get(user_id="taken").index == 9


def test_the_same_user_twice_among_many_is_one_user() -> None:
    other = (registration(user_id="u", index=1), provenance("m2"))

    outcomes = register_many([*pairs("u", "u"), other])

    assert results(outcomes) == [Result.REGISTERED, Result.ALREADY_REGISTERED, Conflict]
    assert User.objects.count() == 1


def test_many_at_the_same_instant_make_each_user_once() -> None:
    threads, rounds = 6, 20
    barrier = Barrier(threads)

    def run(_: int) -> list[Any]:
        found: list[Any] = []
        for number in range(rounds):
            barrier.wait()
            found += results(register_many(pairs(*(f"u{number}-{n}" for n in range(5)))))
        return found

    with ThreadPoolExecutor(threads) as pool:
        per_thread = list(pool.map(run, range(threads)))

    assert User.objects.count() == rounds * 5
    for outcomes in zip(*per_thread, strict=True):
        assert sorted(outcomes) == [Result.ALREADY_REGISTERED] * (threads - 1) + [Result.REGISTERED]


def test_a_write_that_mongodb_refuses_is_tried_again_and_the_others_are_done() -> None:
    models.connect()
    database = User._get_db()
    database.command(
        "collMod", "users", validator={"user_id": {"$ne": "refused"}}, validationLevel="strict"
    )

    first, refused, last = register_many(pairs("a", "refused", "b"))

    assert results([first, last]) == [Result.REGISTERED] * 2
    assert isinstance(refused, WriteError)
    assert refused.code == DOCUMENT_REFUSED
    assert sorted(user.user_id for user in User.objects) == ["a", "b"]


def test_the_index_that_is_the_idempotency_key_is_unique() -> None:
    models.connect()
    index = User._get_collection().index_information()["stock_id_user_id"]

    assert index["unique"] is True
    assert [name for name, _ in index["key"]] == ["stock_id", "user_id"]


def test_without_the_index_nothing_is_written_and_with_it_there_is_no_second_document() -> None:
    register(registration(), provenance())
    users = User._get_collection()
    users.drop_index("stock_id_user_id")

    with pytest.raises(WriteError):
        register(registration(user_id="u2"), provenance("m2"))

    assert User.objects.count() == 1


@pytest.mark.parametrize("alone", [True, False])
def test_before_the_first_user_of_all_the_index_is_made(alone: bool) -> None:
    models.connect()
    User._get_collection().drop()
    users = ["u1"] if alone else ["u1", "u2"]

    outcomes = register_many(pairs(*users))

    assert results(outcomes) == [Result.REGISTERED] * len(users)
    assert User._get_collection().index_information()["stock_id_user_id"]["unique"] is True


def test_even_an_index_that_is_not_unique_leaves_one_document_for_each_user() -> None:
    models.connect()
    users = User._get_collection()
    users.drop_index("stock_id_user_id")
    users.create_index([("stock_id", 1), ("user_id", 1)])
    threads, rounds = 6, 30
    barrier = Barrier(threads)

    def run(_: int) -> list[Any]:
        found: list[Any] = []
        for number in range(rounds):
            barrier.wait()
            found += results(register_many(pairs(f"u{number}")))
        return found

    with ThreadPoolExecutor(threads) as pool:
        per_thread = list(pool.map(run, range(threads)))

    assert User.objects.count() == rounds
    for outcomes in zip(*per_thread, strict=True):
        assert sorted(outcomes) == [Result.ALREADY_REGISTERED] * (threads - 1) + [Result.REGISTERED]


@pytest.mark.parametrize(
    "change",
    [
        {"$unset": {"registration": 1}},
        {"$set": {"registration": "by hand"}},
        {"$set": {"registration": None}},
        {"$unset": {"registration.payload_hash": 1}},
        {"$set": {"registration.payload_hash": 7}},
    ],
    ids=str,
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_user_that_was_changed_by_hand_gives_a_clear_reason(
    change: dict[str, Any], alone: bool
) -> None:
    register(registration(), provenance())
    User._get_collection().update_one({"user_id": "u1"}, change)

    (outcome, *others) = register_many(pairs("u1") if alone else pairs("u1", "new"))

    assert isinstance(outcome, PermanentError)
    assert "payload_hash" in str(outcome)
    assert "by hand" in str(outcome)
    assert results(others) == ([] if alone else [Result.REGISTERED])


def test_a_change_by_hand_beside_the_hash_does_not_matter() -> None:
    register(registration(), provenance())
    change = {"registration.source": "bogus", "money": "abc", "extra": 1, "user_info": "x"}
    User._get_collection().update_one({"user_id": "u1"}, {"$set": change})

    assert register(registration(), provenance()).result is Result.ALREADY_REGISTERED


def test_a_user_whose_key_was_changed_by_hand_gives_a_clear_reason() -> None:
    register(registration(), provenance())
    User._get_collection().update_one({"user_id": "u1"}, {"$set": {"user_id": "renamed"}})

    with pytest.raises(PermanentError, match="under another key"):
        register(registration(), provenance())


# Releases that know other fields


class Newer(Registration):
    """What the next release knows: an optional field more."""

    referred_by: str = ""


BODY = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": "kim"}, "referredBy": "ann"}

#: One way to register: alone, or in a batch.
Way = Callable[[Registration], Result]


def alone(message: Registration) -> Result:
    return register(message, provenance()).result


def in_a_batch(message: Registration) -> Result:
    other = registration(user_id="other")
    outcome, _ = register_many([(message, provenance()), (other, provenance("m2"))])
    if isinstance(outcome, Registered):
        return outcome.result
    raise outcome


ways = pytest.mark.parametrize("way", [alone, in_a_batch])


@ways
@pytest.mark.parametrize("writer", [Registration, Newer])
@pytest.mark.parametrize("reader", [Registration, Newer])
def test_a_registration_comes_again_in_another_release(
    writer: type[Registration], reader: type[Registration], way: Way
) -> None:
    register(writer.model_validate(BODY), provenance())

    assert way(reader.model_validate(BODY)) is Result.ALREADY_REGISTERED
    with pytest.raises(Conflict):
        way(reader.model_validate(BODY | {"index": 1}))


@ways
def test_a_field_of_a_newer_release_is_compared_after_the_way_back(way: Way) -> None:
    register(Newer.model_validate(BODY), provenance())

    with pytest.raises(Conflict):
        way(Registration.model_validate(BODY | {"referredBy": "bob"}))


@ways
@pytest.mark.parametrize("reader", [Registration, Newer])
def test_a_user_of_the_release_before_is_compared_by_what_that_knew(
    reader: type[Registration], way: Way
) -> None:
    register(registration(), provenance())
    User._get_collection().update_one({}, {"$unset": {"payload": 1}})

    assert way(reader.model_validate(BODY)) is Result.ALREADY_REGISTERED
    with pytest.raises(Conflict):
        way(reader.model_validate(BODY | {"index": 1}))


class RecordOfBefore(me.EmbeddedDocument):
    """As the release before reads it: strictly."""

    message_id = me.StringField(required=True)
    source = me.StringField(required=True)
    deliveries = me.IntField(required=True)
    enqueued_at = me.DateTimeField(required=True)
    registered_at = me.DateTimeField(required=True)
    payload_hash = me.StringField(required=True)


class UserOfBefore(me.Document):
    """The same."""

    registration = me.EmbeddedDocumentField(RecordOfBefore, required=True)

    meta: ClassVar[dict[str, Any]] = {"collection": "users", "strict": False}


def test_the_release_before_reads_what_this_one_stores() -> None:
    register(Newer.model_validate(BODY), provenance())

    content = {
        "stock_id": "s1", "user_id": "u1", "index": 0, "money": None, "loan_count": 0,
        "user_info": {"nickname": "kim", "gender": "", "introduction": ""},
    }  # fmt: skip
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    hash_ = hashlib.sha256(canonical.encode("ascii")).hexdigest()
    assert UserOfBefore.objects.get().registration.payload_hash == hash_


@ways
@pytest.mark.parametrize(
    "edit",
    [
        {"$unset": {"registration.payload_hash": 1}},
        {"$unset": {"registration.payload_hash": 1, "payload": 1}},
        {"$set": {"payload.known": None}},
    ],
    ids=str,
)
def test_a_user_that_somebody_edited_is_no_conflict_but_says_so(
    edit: dict[str, Any], way: Way
) -> None:
    register(registration(), provenance())
    User._get_collection().update_one({}, edit)

    with pytest.raises(PermanentError, match="cannot be compared") as caught:
        way(registration())

    assert not isinstance(caught.value, Conflict)
