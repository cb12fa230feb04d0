"""`sqs pause` and `sqs resume` with a real control database, and who shows the pause."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import Result
from pymongo.database import Database

from sqs_broker.control.pauses import Pauses
from sqs_broker.control.store import Store
from sqs_broker.options import ControlOptions, Options
from sqs_broker.rules.pause import Pause
from sqs_broker.tools.checks import Finding, Level
from sqs_broker.tools.mappings import enabled, switch
from sqs_broker.tools.pauses import check_pauses
from tests.integration.conftest import Run, transport_options
from tests.services import Queues

#: An address at which nothing answers.
NOWHERE = "mongodb://127.0.0.1:1/"

Sqs = Callable[..., Result]


@pytest.fixture
def sqs(run: Run, queues: Queues, options: dict[str, Any]) -> Sqs:
    """Runs a command of `sqs` with the control database."""
    return lambda *arguments, **changes: run(queues, *arguments, **({"control": options} | changes))


def test_a_pause_is_stored_with_its_reason_its_end_and_who_began_it(
    sqs: Sqs, queues: Queues, store: Store, database: Database[dict[str, Any]]
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    ran = sqs("pause", queues.name, "--for", "30m", "--reason", "index is\nbuilt")
    assert ran.exit_code == 0, ran.output
    (pause,) = Pauses(store).all()
    assert (pause.queue, pause.reason) == (queues.name, "index is built")
    assert pause.until is not None
    assert timedelta(minutes=29) < pause.until - before < timedelta(minutes=31)
    assert pause.by in ran.stdout
    (entry,) = database["audit"].find()
    assert (entry["action"], entry["queue"], entry["by"]) == ("pause", queues.name, pause.by)


def test_resume_ends_it_and_says_if_there_was_none(
    sqs: Sqs, queues: Queues, store: Store, database: Database[dict[str, Any]]
) -> None:
    sqs("pause", queues.name, "--reason", "deploy")
    assert "is resumed" in sqs("resume", queues.name).stdout
    assert Pauses(store).all() == []
    assert "was not paused" in sqs("resume", queues.name).stdout
    assert [entry["action"] for entry in database["audit"].find()] == ["pause", "resume"]


def test_a_second_pause_replaces_the_first(sqs: Sqs, queues: Queues, store: Store) -> None:
    sqs("pause", queues.name, "--for", "1m", "--reason", "deploy")
    sqs("pause", queues.name, "--reason", "still")
    (pause,) = Pauses(store).all()
    assert (pause.reason, pause.until) == ("still", None)


def test_queues_shows_the_pause_in_both_forms(sqs: Sqs, queues: Queues) -> None:
    sqs("pause", queues.name, "--reason", "deploy")
    assert f"{queues.name} is paused: deploy (" in sqs("queues").stdout
    row, dead = map(json.loads, sqs("queues", "--json").stdout.splitlines())
    assert row["paused"].startswith("deploy (")
    assert dead["paused"] is None


def findings(queues: Queues, control: dict[str, Any]) -> list[Finding]:
    options = Options.read(transport_options(queues) | {"control": control})
    return list(check_pauses(options))


def test_doctor_warns_of_it_until_its_end(
    sqs: Sqs, queues: Queues, options: dict[str, Any], store: Store
) -> None:
    (finding,) = findings(queues, options)
    assert finding.level is Level.OK
    sqs("pause", queues.name, "--reason", "deploy")
    (finding,) = findings(queues, options)
    assert (finding.level, finding.is_fatal) == (Level.WARNING, False)
    assert f"sqs resume {queues.name}" in str(finding.fix)
    now = datetime.now(UTC)
    Pauses(store).begin(Pause(queues.name, "deploy", "kim", now, now))
    (finding,) = findings(queues, options)
    assert finding.level is Level.OK


def test_a_pause_that_is_over_but_has_left_a_function_disabled_is_still_shown(
    sqs: Sqs, queues: Queues, options: dict[str, Any], store: Store
) -> None:
    now = datetime.now(UTC)
    Pauses(store).begin(Pause(queues.name, "deploy", "kim", now, now, ("u1",)))
    ran = sqs("queues")
    assert f"{queues.name} is paused: deploy (kim, over since" in ran.stdout
    assert "functions wait until it is resumed" in ran.stdout
    (finding,) = findings(queues, options)
    assert finding.level is Level.WARNING


def test_without_mongodb_the_pause_fails_and_the_counts_are_shown(sqs: Sqs, queues: Queues) -> None:
    away = {"database_uri": NOWHERE}
    ran = sqs("queues", control=away)
    assert ran.exit_code == 0
    assert "not known which queues are paused" in ran.stderr
    assert queues.name in ran.stdout
    assert "database_uri" in sqs("pause", queues.name, "--reason", "x", control={}).stderr


@pytest.mark.parametrize("wrong", ["30", "0m", "m", "-1m", "1w"])
def test_a_length_that_is_none_is_refused(sqs: Sqs, queues: Queues, wrong: str) -> None:
    assert sqs("pause", queues.name, "--for", wrong, "--reason", "x").exit_code == 2


def test_a_queue_that_is_not_configured_and_a_pause_without_reason_are_refused(
    sqs: Sqs, queues: Queues, store: Store
) -> None:
    assert sqs("pause", "nobody", "--reason", "x").exit_code == 2
    assert sqs("pause", queues.name).exit_code == 2
    assert Pauses(store).all() == []


def test_a_document_of_somebody_else_is_left_out(
    store: Store, options: dict[str, Any], database: Database[dict[str, Any]]
) -> None:
    database["pauses"].insert_one({"_id": "jobs", "at": "today"})
    assert Pauses(store).all() == []
    assert ControlOptions.read(options).uri is not None


class Lambda:
    """AWS Lambda with three mappings of a queue."""

    def __init__(self) -> None:
        self.states = {"u1": "Enabled", "u2": "Enabled", "u3": "Disabled"}

    def list_event_source_mappings(self, **call: Any) -> dict[str, Any]:
        assert call == {"EventSourceArn": "arn:q"}
        found = [{"UUID": uuid, "State": state} for uuid, state in self.states.items()]
        return {"EventSourceMappings": found}

    def update_event_source_mapping(self, **call: Any) -> dict[str, Any]:
        self.states[call["UUID"]] = "Enabled" if call["Enabled"] else "Disabled"
        return {"FunctionArn": f"arn:aws:lambda:x:1:function:f-{call['UUID']}"}


def test_only_the_mappings_that_were_enabled_are_switched() -> None:
    client = Lambda()
    found = list(enabled(client, "arn:q"))
    lines = list(switch(client, found, enabled=False))
    assert set(client.states.values()) == {"Disabled"}
    assert "f-u2: its mapping is disabled" in lines[1]
    list(switch(client, found, enabled=True))
    assert client.states == {"u1": "Enabled", "u2": "Enabled", "u3": "Disabled"}


def test_a_pause_that_replaces_another_knows_the_mappings_of_both(
    queues: Queues, store: Store
) -> None:
    now = datetime.now(UTC)
    pauses = Pauses(store)
    pauses.begin(Pause(queues.name, "deploy", "kim", now, mappings=("u1", "u2")))
    pauses.begin(Pause(queues.name, "deploy again", "lee", now))
    ended = pauses.end(queues.name)
    assert ended is not None
    assert (ended.reason, set(ended.mappings)) == ("deploy again", {"u1", "u2"})
