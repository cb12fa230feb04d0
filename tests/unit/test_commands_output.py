"""What commands print can be read by people and programs, whatever a message holds."""

import json

import pytest

from sqs_broker.tools.commands.output import print_json, print_table, printable


def test_nothing_that_a_terminal_obeys_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x9b31m\r\u202eé"
    print_table(["ID"], [[evil]])
    print_json({"id": evil})
    table, line = capsys.readouterr().out.splitlines()[1:]
    assert table.isprintable()
    assert "é" in table
    assert line.isprintable()
    assert json.loads(line) == {"id": evil}


def test_a_character_beyond_the_basic_plane_stays_json() -> None:
    assert json.loads(f'"{printable(chr(0xE0001))}"') == chr(0xE0001)


def test_columns_stand_under_their_heads(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["QUEUE", "VISIBLE"], [["a-long-name", 5], ["b", None]])
    assert capsys.readouterr().out == (
        "QUEUE        VISIBLE\na-long-name        5\nb                  -\n"
    )


def test_a_table_without_rows_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["QUEUE"], [])
    assert capsys.readouterr().out == "QUEUE\n"
