"""docs/compatibility.md: each row names a test that exists, or says that none was run. So does the
list of kombu's own tests."""

import ast
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.suites import kombu_list
from tests.wheels import ROOT

PAGE = (ROOT / "docs" / "compatibility.md").read_text()

ROWS = re.findall(r"^\| (.+?) \| (.+?) \| (`tests/\S+?`|not run|[^|]*) \|$", PAGE, re.MULTILINE)


def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", [row for row in ROWS if row[2] not in ("test", "---")], ids=str)
def test_each_row_names_a_test_or_says_that_none_was_run(row: tuple[str, str, str]) -> None:
    assert row[2] == "not run" or row[2].startswith("`tests/")


@pytest.mark.parametrize(("file", "name"), sorted(set(re.findall(r"`(tests/\S+?)::(\w+)`", PAGE))))
def test_each_test_that_is_named_exists(file: str, name: str) -> None:
    assert name in names_in(file)


def test_the_page_has_rows_of_both_kinds() -> None:
    assert {"not run"} < {row[2] for row in ROWS}


# kombu's own unit tests of its SQS transport


@pytest.mark.parametrize("promise", kombu_list.promises().values(), ids=kombu_list.promises())
def test_each_promise_of_kombus_tests_has_a_test_of_ours_or_a_reason(
    promise: dict[str, Any],
) -> None:
    assert promise.keys() <= {"tests", "ours", "why"}
    assert promise.get("ours") or promise.get("why")
    for test in promise.get("ours", ()):
        file, _, name = test.partition("::")
        assert name in names_in(file)


def test_each_of_kombus_tests_is_listed_once() -> None:
    listed = list(chain.from_iterable(each["tests"] for each in kombu_list.promises().values()))
    assert len(set(listed)) == len(listed)
    assert f"the {len(listed)} unit tests" in PAGE


def test_a_test_that_kombu_has_and_the_list_has_not_is_named_and_the_other_way_round(
    tmp_path: Path,
) -> None:
    directory = tmp_path / kombu_list.DIRECTORY
    directory.mkdir(parents=True)
    (directory / "test_SQS.py").write_text(
        "def test_new(): ...\nclass test_Channel:\n    def test_init(self): ...\n"
    )
    lines = list(kombu_list.differences(tmp_path))
    assert "not in kombu_sqs.toml: SQS::test_new" in lines
    assert "in kombu_sqs.toml, but gone: SQS::test_Channel::test_region" in lines
    assert not any(line.endswith("::test_init") for line in lines)
