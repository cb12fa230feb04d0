"""docs/design.md names the parts that there are, and a newcomer need not learn more of them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "design.md").read_text()

#: Folders and files that a newcomer sees at the top of the broker's package.
MOST_PARTS = 12

#: Files that a message passes through from its receive until it is settled.
MOST_FILES = 10


def parts_of(package: str) -> set[str]:
    """The folders and files at the top of a package that can be imported."""
    return {
        path.stem
        for path in (ROOT / package).iterdir()
        if (path.is_dir() and (path / "__init__.py").exists())
        or (path.suffix == ".py" and path.name != "__init__.py")
    }


def block_of(package: str) -> list[str]:
    """The lines of the page that list the parts of a package."""
    (block,) = re.findall(rf"^```\n{package}/\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [line for line in str(block).splitlines() if re.match(r"  \w", line)]


def names_in(line: str) -> list[str]:
    """The names at the start of a line; what follows the last gap says what they are."""
    *names, _ = re.split(r" {2,}", line.strip())
    return [name.rstrip("/").removesuffix(".py") for name in names]


def test_the_broker_has_few_parts_and_the_page_lists_them() -> None:
    listed = [name for line in block_of("sqs_broker") for name in names_in(line)]
    assert set(listed) - {"__init__"} == parts_of("sqs_broker")
    assert len(parts_of("sqs_broker")) <= MOST_PARTS


def test_the_page_lists_each_part_of_the_application_once() -> None:
    listed = [name for line in block_of("app") for name in names_in(line)]
    assert sorted(listed) == sorted(parts_of("app"))


def test_a_message_that_succeeds_passes_through_few_files_and_each_is_there() -> None:
    files = re.findall(r"^\| \d+ \| `([\w/.]+)` \|", PAGE, re.MULTILINE)
    assert 0 < len(files) <= MOST_FILES
    assert [file for file in files if not (ROOT / "sqs_broker" / file).exists()] == []


def test_each_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`((?:[\w]+/)+[\w]+\.py)`", PAGE))
    assert len(named) > 20
    roots = (ROOT, ROOT / "sqs_broker")
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []
