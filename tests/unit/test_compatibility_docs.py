"""docs/compatibility.md: each row names a test that exists, or says that none was run."""

import ast
import re

import pytest

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
