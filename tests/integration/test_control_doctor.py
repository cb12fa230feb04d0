"""`sqs doctor` on rights and on the control plane: each fault is found with its fix."""

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from app.commands.database import NEEDED as NEEDED_BY_TASKS
from app.commands.database import check_database
from app.schema import find_faults, make_indexes
from sqs_broker.control.faults import Refused
from sqs_broker.control.store import Store
from sqs_broker.options import ControlOptions
from sqs_broker.tools.checks import Finding, Level
from sqs_broker.tools.control import NEEDED, check_control
from tests.deployments.deployment import APPLICATION, Deployment

MIB = 1024 * 1024

Control = Database[dict[str, Any]]


def faults(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in findings if finding.level is Level.FAULT]


class Account:
    """The application's user, with rights as a test gives them."""

    def __init__(self, deployment: Deployment) -> None:
        self.name = f"test_{uuid.uuid4().hex}"
        self._deployment = deployment
        self._admin = deployment.client().admin

    @property
    def uri(self) -> str:
        return self._deployment.uri(self.name)

    def may(self, rights: Mapping[str, tuple[str, ...]], *, without: tuple[str, str]) -> None:
        privileges = [
            {
                "resource": {"db": self.name, "collection": collection},
                "actions": left,
            }
            for collection, actions in rights.items()
            if (left := [action for action in actions if (collection, action) != without])
        ]
        self._admin.command("createRole", self.name, privileges=privileges, roles=[])
        self._admin.command("grantRolesToUser", APPLICATION.name, roles=[self.name])

    def close(self) -> None:
        self._admin.command("updateUser", APPLICATION.name, roles=[])
        self._deployment.client().drop_database(self.name)


@pytest.fixture
def account(secured: Deployment) -> Iterator[Account]:
    made = Account(secured)
    yield made
    made.close()


def pairs(rights: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(collection, action) for collection, actions in rights.items() for action in actions]


@pytest.mark.parametrize("right", pairs(NEEDED), ids=lambda right: " ".join(right))
def test_each_right_that_the_control_plane_lacks_is_a_fault(
    account: Account, right: tuple[str, str]
) -> None:
    account.may(NEEDED, without=right)
    findings = list(check_control(ControlOptions(uri=account.uri, database=account.name)))
    assert faults(findings)[0] == f"{right[1]} on {right[0] or 'database'}"
    assert all(finding.level is not Level.OK or finding.check != "rights" for finding in findings)
    (named,) = [f for f in findings if f.check == faults(findings)[0]]
    assert f"`{right[1]}`" in named.text
    assert "readWrite" in (named.fix or "")


@pytest.mark.parametrize("right", pairs(NEEDED_BY_TASKS), ids=lambda right: " ".join(right))
def test_each_right_that_the_tasks_lack_is_a_fault(
    account: Account, right: tuple[str, str]
) -> None:
    account.may(NEEDED_BY_TASKS, without=right)
    findings = list(check_database(account.uri))
    assert f"{right[1]} on {right[0] or 'database'}" in faults(findings)


def test_these_rights_are_enough(account: Account, secured: Deployment) -> None:
    account.may(NEEDED_BY_TASKS | NEEDED, without=("", ""))
    options = ControlOptions(uri=account.uri, database=account.name)
    with closing(Store(options)) as store:
        store.prepare()
        database = store.client[account.name]
        assert make_indexes(database, find_faults(database)) == []

    findings = [*check_database(account.uri), *check_control(options)]

    assert [finding for finding in findings if finding.level is not Level.OK] == []
    stored = secured.client()[account.name]
    assert [stored[name].count_documents({}) for name in ("replies", "revokes")] == [0, 0]


def test_an_empty_control_database_is_no_fault(
    options: dict[str, Any], database: Control, mongo_client: MongoClient
) -> None:
    findings = list(check_control(ControlOptions.read(options)))
    assert faults(findings) == []
    assert database.name not in mongo_client.list_database_names()


def test_a_process_without_a_control_plane_is_not_checked() -> None:
    assert list(check_control(ControlOptions())) == []


def test_a_size_and_a_time_that_the_user_may_not_change_are_faults(secured: Deployment) -> None:
    name = f"test_{uuid.uuid4().hex}"
    secured.grant(name, "readWrite")
    options = ControlOptions(uri=secured.uri(name), database=name)
    with closing(Store(options)) as store:
        store.prepare()
    changed = ControlOptions(options.uri, name, size_bytes=MIB, revokes_seconds=3_600)

    assert faults(list(check_control(options))) == []
    findings = list(check_control(changed))
    assert faults(findings) == [
        "collection broadcasts",
        "collection events",
        "collection revokes",
    ]
    assert all("collMod" in f.text and "dbAdmin" in f.fix for f in findings if f.fix)
    assert findings[-1].check == "works"
    assert findings[-1].level is Level.OK


def test_a_size_that_the_user_may_change_is_no_fault_and_stays(
    options: dict[str, Any], store: Store, database: Control
) -> None:
    store.prepare()
    before = database.command("collStats", "events")["maxSize"]
    findings = list(check_control(ControlOptions.read(options | {"size_bytes": MIB})))
    assert faults(findings) == []
    streams = ["collection broadcasts", "collection events"]
    assert [f.check for f in findings] == ["rights", *streams, "works"]
    assert database.command("collStats", "events")["maxSize"] == before


def view(database: Control, name: str) -> None:
    database.drop_collection(name)
    database.create_collection(name, viewOn="other", pipeline=[])


@pytest.mark.parametrize("name", ["broadcasts", "events", "replies", "revokes"])
def test_a_view_is_a_fault(
    options: dict[str, Any], store: Store, database: Control, name: str
) -> None:
    store.prepare()
    view(database, name)
    assert faults(list(check_control(ControlOptions.read(options)))) == [f"collection {name}"]


#: What somebody may have made of a collection, and how it is called.
MADE_OTHERWISE: dict[str, tuple[Callable[[Control, str], Any], str]] = {
    "capped": (lambda db, name: db.create_collection(name, capped=True, size=MIB), "is capped"),
    "collation": (
        lambda db, name: db.create_collection(name, collation={"locale": "en", "strength": 1}),
        "has a collation",
    ),
    "unique index": (
        lambda db, name: db[name].create_index("exchange", name="mine", unique=True),
        "its index 'mine' is unique",
    ),
}


@pytest.mark.parametrize("name", ["replies", "revokes", "attempts"])
@pytest.mark.parametrize(("make", "said"), MADE_OTHERWISE.values(), ids=MADE_OTHERWISE)
def test_a_collection_that_was_made_otherwise_is_a_fault(
    options: dict[str, Any],
    store: Store,
    database: Control,
    name: str,
    make: Callable[[Control, str], Any],
    said: str,
) -> None:
    store.prepare()
    database.drop_collection(name)
    make(database, name)
    with suppress(Refused):
        store.prepare(again=True)
    findings = list(check_control(ControlOptions.read(options)))
    assert faults(findings) == [f"collection {name}"]
    (fault,) = [finding for finding in findings if finding.level is Level.FAULT]
    assert said in fault.text
    assert (fault.fix or "").startswith("Drop")


@pytest.mark.parametrize("name", ["broadcasts", "events"])
@pytest.mark.parametrize("what", ["collation", "unique index"])
def test_a_stream_that_was_made_otherwise_is_a_fault(
    options: dict[str, Any], store: Store, database: Control, what: str, name: str
) -> None:
    if what == "collation":
        collation = {"locale": "en", "strength": 1}
        database.create_collection(name, capped=True, size=MIB, collation=collation)
    store.prepare()
    if what == "unique index":
        database[name].create_index("exchange", unique=True)
    assert faults(list(check_control(ControlOptions.read(options)))) == [f"collection {name}"]


def test_an_index_that_deletes_only_some_documents_is_not_the_one_that_deletes_all(
    options: dict[str, Any], store: Store, database: Control
) -> None:
    database.replies.create_index(
        "at", name="mine", expireAfterSeconds=60, partialFilterExpression={"exchange": "x"}
    )
    (found,) = [f for f in check_control(ControlOptions.read(options)) if "replies" in f.check]
    assert "its index for deletion does not exist yet" in found.text
    store.prepare()
    assert faults(list(check_control(ControlOptions.read(options)))) == []
    assert len(database.replies.index_information()) == 4


@pytest.mark.parametrize("name", ["broadcasts", "events", "replies", "revokes"])
def test_a_validator_that_refuses_the_documents_is_a_fault(
    options: dict[str, Any], store: Store, database: Control, name: str
) -> None:
    store.prepare()
    database.command("collMod", name, validator={"$jsonSchema": {"required": ["email"]}})
    findings = list(check_control(ControlOptions.read(options)))
    assert faults(findings) == ["works"]
    assert f"a validator of {database.name}.{name}" in findings[-1].text


def test_the_rights_on_the_page_are_those_that_are_checked() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mongodb.md").read_text()
    rows = re.findall(r"^\| `(\w+)`(?: \(control plane\))? \| (`\w+`(?:, `\w+`)+)", page, re.M)
    told = {name: tuple(re.findall(r"\w+", rights)) for name, rights in rows}
    assert told == {k: v for k, v in (NEEDED_BY_TASKS | NEEDED).items() if k}
