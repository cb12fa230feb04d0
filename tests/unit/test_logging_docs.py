"""docs/logging.md lists each log line that the code writes: its event, its level, its fields."""

import ast
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import monotonic
from typing import get_args

import pytest

from app.logs import FIELDS
from sqs_broker.observers.log import MessageLog
from sqs_broker.rules.facts import facts_of
from sqs_broker.rules.outcomes import (
    DeadLetter,
    Done,
    Outcome,
    Postponed,
    Released,
    Retry,
    Succeeded,
)
from tests.unit.conftest import HEADERS, MakeDelivery

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/logging.md").read_text()

#: What the formatter makes of an exception.
OF_AN_EXCEPTION = {"error", "stack"}

#: One of each outcome. None of them may be missing.
OUTCOMES: list[Outcome] = [
    Done(),
    Retry(7, "KeyError"),
    DeadLetter("no such task", "KeyError"),
    Postponed(900),
    Released(),
]


@dataclass
class Line:
    """What is known of the lines of one event."""

    levels: set[str] = field(default_factory=set)
    """One of them; empty if the code does not say it where it writes the line."""
    fields: set[str] = field(default_factory=set)
    is_whole: bool = True
    """Whether all fields are known."""


# The page


@cache
def rows() -> dict[str, Line]:
    """Each row of the tables of events."""
    found: dict[str, Line] = {}
    for name, level, fields, *texts in re.findall(
        r"^\| `([^`]+)` \| ([\w, ]+) \| (.*?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE
    ):
        assert name not in found, f"{name} has two rows"
        assert all(texts)
        found[name] = Line(set(level.split(", ")), set(re.findall(r"`([^`]+)`", fields)))
    return found


# The code


@cache
def trees() -> dict[Path, ast.Module]:
    files = [file for package in ("app", "sqs_broker") for file in (ROOT / package).rglob("*.py")]
    return {file: ast.parse(file.read_text()) for file in files}


def is_log_call(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("logger", "logging")
        and node.func.attr in LEVELS
    )


LEVELS = {
    "debug": {"debug"},
    "info": {"info"},
    "warning": {"warning"},
    "error": {"error"},
    "exception": {"error"},
    "critical": {"critical"},
    # Its level is an expression, which may be any.
    "log": set(),
}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@cache
def code() -> dict[str, Line]:
    """Each event that the code names."""
    found: dict[str, Line] = {}
    for file, tree in trees().items():
        for function in functions(tree):
            for node in ast.walk(function):
                for name, line in lines_of(node, function, tree, file):
                    known = found.setdefault(name, Line())
                    known.levels |= line.levels
                    known.fields |= line.fields
                    known.is_whole &= line.is_whole
    return found


def lines_of(
    node: ast.AST, function: ast.FunctionDef, tree: ast.Module, file: Path
) -> Iterator[tuple[str, Line]]:
    if is_log_call(node):
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Attribute)
        extra = next((word.value for word in node.keywords if word.arg == "extra"), None)
        assert extra is not None, f"{file}:{node.lineno}: a line without an event"
        if isinstance(extra, ast.Dict):
            line = Line(set(LEVELS[node.func.attr]), keys_of(extra) - {"event"})
            if node.func.attr == "exception" or any(map(is_exception, node.keywords)):
                line.fields |= OF_AN_EXCEPTION
            yield from ((name, line) for name in events_of(extra, function, tree, file))
    elif isinstance(node, ast.Dict) and "event" in keys_of(node):
        # It may be one that a log call is given by its name.
        yield from (
            (name, Line(is_whole=not is_named(node, function)))
            for name in events_of(node, function, tree, file)
        )
    elif isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Attribute) and target.attr == "event" for target in node.targets
    ):
        yield from ((n, Line(is_whole=False)) for n in values(node.value, function, tree, file))


def is_exception(word: ast.keyword) -> bool:
    """Whether a log call is always given an exception (sqs_broker/machine/textless.py)."""
    return (
        word.arg == "exc_info"
        and isinstance(word.value, ast.Call)
        and isinstance(word.value.func, ast.Name)
        and word.value.func.id == "textless"
    )


def keys_of(node: ast.Dict) -> set[str]:
    return {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}


def is_named(node: ast.Dict, function: ast.FunctionDef) -> bool:
    """Whether a dictionary is given a name, under which more may be put into it."""
    return any(
        isinstance(each, ast.Assign | ast.AnnAssign) and each.value is node
        for each in ast.walk(function)
    )


def events_of(node: ast.Dict, function: ast.FunctionDef, tree: ast.Module, file: Path) -> set[str]:
    (value,) = (
        value
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "event"
    )
    return values(value, function, tree, file)


def values(node: ast.AST, function: ast.FunctionDef, tree: ast.Module, file: Path) -> set[str]:
    """Each text that an expression can be."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.IfExp(body=first, orelse=second):
            both = (first, second)
            return {text for each in both for text in values(each, function, tree, file)}
        case ast.JoinedStr(values=[ast.Constant(value=str(start)), ast.FormattedValue(value=rest)]):
            return {start + text for text in values(rest, function, tree, file)}
        case ast.Attribute(value=ast.Name(id="outcome"), attr="name"):
            return {outcome.name for outcome in get_args(Outcome)}
        case ast.Attribute(value=ast.Name(id="self"), attr=attribute):
            return arguments_for(attribute, tree)
        case ast.Name(id=name):
            if found := assigned(name, function):
                return found
    raise AssertionError(f"{file}:{getattr(node, 'lineno', 0)}: which events are these?")


def assigned(name: str, function: ast.FunctionDef) -> set[str]:
    """The texts that a variable is given, if one of two tuples is assigned."""
    found = set()
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.IfExp() as either):
                names = [getattr(target, "id", None) for target in targets]
                if name in names:
                    sides = (either.body, either.orelse)
                    found |= {ast.literal_eval(side)[names.index(name)] for side in sides}
    return found


def arguments_for(attribute: str, tree: ast.Module) -> set[str]:
    """The texts that instances are made with for an attribute which is a parameter of theirs."""
    found = set()
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for function in functions(cls):
            for node in ast.walk(function):
                match node:
                    case ast.Assign(
                        targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)],
                        value=ast.Name(id=parameter),
                    ) if name == attribute and function.name == "__init__":
                        found |= given_for(parameter, cls.name, function)
    return found


def given_for(parameter: str, cls: str, function: ast.FunctionDef) -> set[str]:
    names = [argument.arg for argument in function.args.args]
    place = names.index(parameter)
    default = function.args.defaults[place - len(names)]
    given = [default]
    for node in (node for tree in trees().values() for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == cls:
            # Without `self`.
            given += node.args[place - 1 : place]
            given += [word.value for word in node.keywords if word.arg == parameter]
    return {str(each.value) for each in given if isinstance(each, ast.Constant)}


# Both are the same


def test_the_page_lists_each_event_of_the_code_and_no_other() -> None:
    assert set(rows()) ^ set(code()) == set()


def test_each_level_is_that_of_the_code() -> None:
    wrong = {
        name: (row.levels, code()[name].levels)
        for name, row in rows().items()
        if code()[name].levels and row.levels != code()[name].levels
    }
    assert wrong == {}


def test_each_field_is_one_of_the_code() -> None:
    wrong = {
        name: row.fields ^ code()[name].fields
        for name, row in rows().items()
        if code()[name].is_whole and row.fields != code()[name].fields
    }
    assert wrong == {}


def test_no_line_loses_a_field_on_its_way_to_the_log() -> None:
    for name, line in (code() | rows()).items():
        assert line.fields <= {*FIELDS, "stack"}, name


def test_the_line_of_a_received_message_has_the_fields_of_its_row(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    MessageLog().received(facts_of(make_delivery(), HEADERS))
    (record,) = caplog.records
    given = {name for name in FIELDS if name in vars(record)} - {"event"}
    assert given == rows()["message.received"].fields


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.name)
def test_the_line_at_the_end_of_a_message_is_as_the_page_has_it(
    outcome: Outcome, make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    delivery = make_delivery()
    for message in (facts_of(delivery, HEADERS), facts_of(delivery, HEADERS, monotonic())):
        MessageLog().ended(message, Succeeded(), outcome)
    unstarted, record = caplog.records
    row = rows()[vars(record)["event"]]
    assert row.levels == {unstarted.levelname.lower(), record.levelname.lower()}
    assert row.fields == set(FIELDS) & set(vars(record)) - {"event"}


def test_each_outcome_was_looked_at() -> None:
    assert {type(outcome) for outcome in OUTCOMES} == set(get_args(Outcome))


def test_each_field_of_an_event_is_explained() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", PAGE, re.MULTILINE))
    assert {name for row in rows().values() for name in row.fields} <= explained
