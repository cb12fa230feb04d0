"""The list of kombu's own unit tests of its SQS transport, beside our tests that hold the same.

They look into kombu's private code, so they cannot run on this broker.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("kombu_sqs.toml")

#: Where they are in the source distribution.
DIRECTORY = Path("t", "unit", "transport", "SQS")


def promises() -> dict[str, dict[str, Any]]:
    """What kombu's tests check: for each promise the `tests`, `ours`, and `why`, as the list has
    them."""
    return tomllib.loads(LIST.read_text())


def differences(tests: Path) -> Iterator[str]:
    """How the list differs from the tests of a source distribution, one line for each name."""
    listed = {name for promise in promises().values() for name in promise["tests"]}
    found = set(_names(tests / DIRECTORY))
    yield from (f"not in {LIST.name}: {name}" for name in sorted(found - listed))
    yield from (f"in {LIST.name}, but gone: {name}" for name in sorted(listed - found))


def _names(directory: Path) -> Iterator[str]:
    for file in sorted(directory.glob("test_*.py")):
        module = file.stem.removeprefix("test_")
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                yield from (f"{module}::{node.name}::{name}" for name in _tests(node.body))
            else:
                yield from (f"{module}::{name}" for name in _tests([node]))


def _tests(nodes: list[ast.stmt]) -> Iterator[str]:
    for node in nodes:
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and node.name.startswith("test"):
            yield node.name
