"""What redrive, purge and import record in a real MongoDB, and how a message that always fails
ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from pymongo.database import Database

from tests.integration.conftest import Run
from tests.integration.test_dlq_commands import body, bury, next_second
from tests.services import Queues

#: An address at which nothing answers.
NOWHERE = {"database_uri": "mongodb://127.0.0.1:1/"}

Dlq = Callable[..., Result]


@pytest.fixture
def dlq(run: Run, queues: Queues, options: dict[str, Any]) -> Dlq:
    """Runs a command of `sqs dlq` with the control database, in a later second."""

    def run_it(*arguments: str, **changes: Any) -> Result:
        next_second(queues)
        return run(queues, "dlq", *arguments, **({"control": options} | changes))

    return run_it


def test_a_message_is_not_redriven_more_often_than_the_cap(
    dlq: Dlq, queues: Queues, database: Database[dict[str, Any]]
) -> None:
    for _ in range(2):
        bury(queues, body("m-1"))
        assert dlq("redrive", "--yes", "--max-redrives", "2").exit_code == 0
    bury(queues, body("m-1"))
    bury(queues, body("m-2"))
    dry = dlq("redrive", "--dry-run", "--max-redrives", "2")
    assert "1 would be not sent (redriven 2 times before" in dry.stderr
    ran = dlq("redrive", "--yes", "--max-redrives", "2")
    assert ran.exit_code == 1
    assert [json.loads(letter["Body"])["id"] for letter in queues.dead_letters()] == ["m-1"]
    counts = {each["_id"]: len(each["letters"]) for each in database["redrives"].find()}
    assert counts == {"m-1": 2, "m-2": 1}


def test_the_audit_says_who_did_what_to_which_message_and_nothing_of_its_content(
    dlq: Dlq, queues: Queues, database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "letters.jsonl"
    bury(queues, body("m-1", nickname="marker"))
    dlq("export", "--file", str(file))
    dlq("purge", "--id", "m-1", "--yes")
    dlq("import", str(file))
    dlq("redrive", "--yes")
    entries = list(database["audit"].find().sort("at", 1))
    assert [(entry["action"], entry["ids"]) for entry in entries] == [
        ("purge", ["m-1"]),
        ("import", ["m-1"]),
        ("redrive", ["m-1"]),
    ]
    assert all(entry["by"] for entry in entries)
    assert "marker" not in str(entries)


def test_without_mongodb_nothing_is_done_unless_it_is_asked_for(dlq: Dlq, queues: Queues) -> None:
    bury(queues, body("m-1"))
    ran = dlq("redrive", "--yes", control=NOWHERE)
    assert ran.exit_code == 1
    assert "MongoDB does not answer" in ran.stderr
    assert len(queues.dead_letters()) == 1
    assert dlq("redrive", "--yes", "--unrecorded", control=NOWHERE).exit_code == 0
    assert queues.dead_letters() == []


def test_export_purge_and_import_give_the_same_back_on_both_servers(
    run: Run, either: Queues, tmp_path: Path
) -> None:
    file = tmp_path / "letters.jsonl"
    attributes = {f"a{n}": {"DataType": "String", "StringValue": str(n)} for n in range(9)}
    attributes["z"] = {"DataType": "Binary", "BinaryValue": bytes(range(256))}
    for number in range(12):
        bury(either, body(f"m-{number}", nickname="k\u00efm \U0001f600"), attributes=attributes)
    before = taken(either)
    next_second(either)
    assert run(either, "dlq", "export", "--file", str(file)).exit_code == 0
    assert "12 deleted." in run(either, "dlq", "purge", "--yes").stderr
    assert taken(either) == []
    assert run(either, "dlq", "import", str(file)).exit_code == 0
    assert taken(either) == before


def taken(queues: Queues) -> list[Any]:
    """The dead letters: bodies and attributes, in an order of their own."""
    wanted = ("DataType", "StringValue", "BinaryValue")
    return sorted(
        (
            message["Body"],
            [
                (name, [(key, value[key]) for key in wanted if key in value])
                for name, value in sorted(message["MessageAttributes"].items())
            ],
        )
        for message in queues.dead_letters()
    )
