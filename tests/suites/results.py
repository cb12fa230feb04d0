"""How the tests of a run ended, beside what is expected of them."""

import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

EXPECTED = Path(__file__).with_name("expected.toml")


@dataclass(frozen=True)
class Expected:
    """The names of the tests that fail on this broker."""

    failures: frozenset[str]
    may_pass: frozenset[str] = frozenset()
    """Those of them that pass in some runs."""

    @classmethod
    def listed(cls, path: Path = EXPECTED) -> Self:
        """Those of the list."""
        tables: list[dict[str, Any]] = list(tomllib.loads(path.read_text()).values())
        return cls(
            frozenset(name for table in tables for name in table["tests"]),
            frozenset(n for table in tables if table.get("may_pass") for n in table["tests"]),
        )


@dataclass
class Results:
    """The names of tests, by how they ended."""

    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    passed_again: set[str] = field(default_factory=set)
    """Those of `failed` that passed when they were run again, each by itself."""
    not_as_listed: list[str] = field(default_factory=list)
    """How kombu's own unit tests differ from the list of them."""

    def read(self, report: Path) -> None:
        """Add the results that pytest has written."""
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            module = case.get("classname", "").removeprefix("t.integration.test_")
            name = f"{module.replace('.', '::')}::{case.get('name')}"
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                self.failed.add(name)
            elif "skipped" in kinds:
                self.skipped.add(name)
            else:
                self.passed.add(name)
        # A test may have passed, and its teardown failed.
        self.passed -= self.failed

    def unexpected(self, expected: Expected) -> list[str]:
        """The tests that failed and should not have, whether or not they passed again."""
        return sorted(self.failed - expected.failures)

    def is_as_expected(self, expected: Expected, *, is_whole: bool) -> bool:
        """Whether the tests that fail are those expected. `is_whole`: all tests have run."""
        return not any(self._differences(expected, is_whole=is_whole))

    def lines(self, expected: Expected, *, is_whole: bool) -> Iterator[str]:
        """What a person should know of them."""
        yield (
            f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped; "
            f"{len(self.failed & expected.failures)} of the {len(expected.failures)} failures that "
            f"are expected."
        )
        for name in sorted(self.passed_again):
            yield f"passed when run again by itself: {name}"
        yield from self._differences(expected, is_whole=is_whole)

    def _differences(self, expected: Expected, *, is_whole: bool) -> Iterator[str]:
        for name in self.unexpected(expected):
            if name not in self.passed_again:
                yield f"not expected: {name}"
        if is_whole:
            must_fail = expected.failures - expected.may_pass
            for name in sorted(must_fail & self.passed):
                yield f"expected to fail, but passed: {name}"
            for name in sorted(expected.failures - self.passed - self.failed):
                yield f"expected to fail, but not run: {name}"
        yield from self.not_as_listed
