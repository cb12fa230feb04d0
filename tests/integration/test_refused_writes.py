"""MongoDB answers and takes no writes: each way is a hint for tasks, and a fact for the probe."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.uri_parser import parse_uri

from app import counter, models, registration
from app.messages import Increment, Provenance, Registration, Source
from app.outage import SUSPECT_ON, is_unreachable, probe
from app.probe import Probe
from app.settings import get_settings
from app.startup import prepare_database
from app.typed_task import TypedTask

Fail = Callable[..., AbstractContextManager[None]]

WRITES = ["insert", "update", "findAndModify"]

#: Codes by which MongoDB and what speaks its protocol refuse a write; the last one means nothing.
REFUSALS = (
    13, 18, 20, 24, 50, 64, 112, 133, 146, 202, 301, 371, 462, 11601, 13388, 14031, 16500, 31337,
)  # fmt: skip

#: The same, of those for which pymongo itself tries again until its timeout.
TRIED_AGAIN = (6, 89, 91, 189, 262, 11600, 11602, 13435)


@pytest.fixture(autouse=True)
def _prepared(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MONGO_URI", f"{mongo_uri}&timeoutMS=1000")
    get_settings.cache_clear()
    prepare_database(get_settings())
    yield
    models.disconnect()


@pytest.fixture
def fail(mongo_client: MongoClient[dict[str, Any]], mongo_uri: str) -> Fail:
    """Lets commands on this test's own collections fail until the end of the block."""
    name = parse_uri(mongo_uri)["database"]

    @contextmanager
    def failing(*commands: str, collection: str | None = "users", **how: Any) -> Iterator[None]:
        data = {"failCommands": commands} | how
        if collection:
            data["namespace"] = f"{name}.{collection}"
        admin = mongo_client.admin
        admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
        try:
            yield
        finally:
            admin.command("configureFailPoint", "failCommand", mode="off")
            # A transaction that was cut off would keep its locks for a minute.
            admin.command("killAllSessions", [])

    return failing


def register(*users: str) -> list[Any]:
    return registration.register_many([(pair_of(user)) for user in users])


def pair_of(user: str) -> tuple[Registration, Provenance]:
    given = {"stock_id": "s", "user_id": user, "user_info": {"nickname": "n"}}
    told = Provenance(f"m-{user}", True, Source.JSON, 1, datetime.now(UTC))
    return Registration.model_validate(given), told


def failure_of(run: Callable[[], Any]) -> BaseException:
    """What the run of a task ends with, of all or of each of its messages."""
    try:
        outcomes = run()
    except Exception as exc:
        return exc
    assert all(isinstance(outcome, Exception) for outcome in outcomes), outcomes
    return outcomes[0]  # type: ignore[no-any-return]  # asserted above


def is_hint(exc: BaseException | None) -> bool:
    """Whether the task holds its message until the probe has looked."""
    while exc is not None and not isinstance(exc, SUSPECT_ON):
        exc = exc.__cause__
    return exc is not None


@pytest.mark.parametrize(
    "code", [*REFUSALS, *(pytest.param(code, marks=pytest.mark.slow) for code in TRIED_AGAIN)]
)
def test_a_write_that_is_refused_by_any_code_is_a_hint_and_the_probe_finds_it(
    fail: Fail, mongo_uri: str, code: int
) -> None:
    with fail(*WRITES, errorCode=code):
        assert is_hint(failure_of(lambda: register("a", "b")))
        assert is_hint(failure_of(lambda: [registration.register(*pair_of("c"))]))
        assert probe(mongo_uri) is not None
    assert probe(mongo_uri) is None
    assert [registered.result.value for registered in register("a", "b", "c")] == ["registered"] * 3


@pytest.mark.parametrize("code", [64, 79, 91, 100, 11602])
def test_a_write_that_no_majority_acknowledges_is_done_for_nobody(
    fail: Fail, mongo_uri: str, code: int
) -> None:
    refusal = {"code": code, "errmsg": "waiting for replication timed out"}
    with fail(*WRITES, writeConcernError=refusal):
        assert is_hint(failure_of(lambda: register("a", "b")))
        assert is_hint(failure_of(lambda: [registration.register(*pair_of("c"))]))
        assert probe(mongo_uri) is not None
    models.disconnect()  # Two of the codes say that the server shuts down.
    assert {registered.result.value for registered in register("a", "b", "c")} <= {
        "registered",
        "already registered",
    }


@pytest.mark.parametrize(
    "how",
    [
        {"commands": ["find"], "errorCode": 20},
        {"commands": ["find"], "errorCode": 263},
        {"commands": ["insert"], "errorCode": 13},
        pytest.param(
            {"commands": ["commitTransaction"], "collection": None, "errorCode": 303},
            marks=pytest.mark.slow,
        ),
        pytest.param({"commands": ["insert"], "closeConnection": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_transaction_that_is_refused_is_a_hint_and_the_probe_finds_it(
    fail: Fail, mongo_uri: str, how: dict[str, Any]
) -> None:
    fault = {"collection": "once"} | {k: v for k, v in how.items() if k != "commands"}
    with fail(*how["commands"], **fault):
        told = pair_of("i")[1]
        assert is_hint(failure_of(lambda: [counter.increment(Increment(input=1), told)]))
        assert probe(mongo_uri) is not None
    assert probe(mongo_uri) is None


@pytest.mark.slow
def test_a_write_that_hangs_is_a_hint_and_the_probe_gives_up_on_it(
    fail: Fail, mongo_uri: str
) -> None:
    with fail(*WRITES, blockConnection=True, blockTimeMS=4_000):
        failed = failure_of(lambda: register("a", "b"))
        assert is_hint(failed)
        assert not is_unreachable(failed)
        assert probe(mongo_uri) is not None


def test_the_probe_keeps_its_connection_and_so_needs_no_second_one(
    mongo_uri: str, mongo_client: MongoClient[dict[str, Any]]
) -> None:
    kept = Probe(mongo_uri)
    assert kept.find_error() is None
    before = mongo_client.admin.command("serverStatus")["connections"]["totalCreated"]

    for _ in range(5):
        assert kept.find_error() is None
        assert kept.find_fault() is None

    assert mongo_client.admin.command("serverStatus")["connections"]["totalCreated"] - before <= 2
    kept.close()


def test_no_failure_of_a_connection_is_the_messages_fault_and_a_long_call_may_be() -> None:
    from pymongo import errors

    blameless = TypedTask().is_blameless
    for exc in (
        errors.AutoReconnect(),
        errors.NotPrimaryError(),
        errors.ServerSelectionTimeoutError(),
        errors.WaitQueueTimeoutError(),
        errors.ConfigurationError(),
    ):
        assert blameless(exc)
    for exc in (errors.NetworkTimeout(), errors.WriteError("x", 121), KeyError("x")):
        assert not blameless(exc)
