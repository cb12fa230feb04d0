"""Lines that are written together are the same as if each had a record of its own."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.logs import FIELDS_AFTER_EVENT, JsonLines, LinesHandler, OthersFromInfo, WithoutRepeats
from sqs_broker.observers.lines import write
from sqs_broker.observers.log import MessageLog
from sqs_broker.observers.observer import Observers
from sqs_broker.rules.facts import facts_of
from sqs_broker.rules.outcomes import Done, Succeeded
from tests.unit.conftest import HEADERS, MakeDelivery

NAME = "sqs_broker.observers.log"

#: With what a template could take for a place of its own.
SENTENCE = "A sentence, 100 %s {}."

values = (
    st.none() | st.text(max_size=20) | st.integers() | st.floats() | st.booleans()
    | st.lists(st.text(max_size=3), max_size=2)
)  # fmt: skip
names = st.lists(st.sampled_from(FIELDS_AFTER_EVENT), max_size=8, unique=True)

#: The values of a fact in some lines: often they are the same, or of one type.
kinds = (
    values, st.text(max_size=5), st.integers(), st.floats(), st.none() | st.text(),
    st.sampled_from([1, True, 1.0, 0, False, 0.0, -0.0]),
)  # fmt: skip


def lines(names: list[str], count: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    """The facts of so many lines."""
    of_one = st.sampled_from(kinds).flatmap(
        lambda kind: (
            st.lists(kind, min_size=count, max_size=count) | kind.map(lambda value: [value] * count)
        )
    )
    return st.fixed_dictionaries(dict.fromkeys(names, of_one)).map(
        lambda columns: [
            {"event": "message.done", **{name: columns[name][place] for name in names}}
            for place in range(count)
        ]
    )


facts = st.tuples(names, st.integers(1, 4)).flatmap(lambda given: lines(*given))


#: The facts of a line.
A = {"event": "message.done", "task": "a"}


class Log:
    """A logger with our handler, which writes to memory."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.handler = LinesHandler(self.stream)
        self.handler.setFormatter(JsonLines())
        self.handler.addFilter(OthersFromInfo())
        self.handler.addFilter(WithoutRepeats())
        self.logger = logging.getLogger(NAME)

    def write(self, *lines: dict[str, object], level: int = logging.INFO, to: Any = ()) -> None:
        """Write lines together."""
        with self.alone(*to):
            write(self.logger, level, SENTENCE, lines)

    @contextmanager
    def alone(self, *others: Any) -> Iterator[None]:
        """Without pytest's own handlers, which need a record for each line."""
        before = self.logger.handlers
        self.logger.handlers = [self.handler, *others]
        try:
            yield
        finally:
            self.logger.handlers = before

    def lines(self) -> list[str]:
        """What was written since the last call. No line has its time."""
        self.handler.flush()
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return [line.partition(", ")[2] for line in text.splitlines()]


class Records(logging.Handler):
    """A handler of a project."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.got.append(record)


@pytest.fixture(scope="module")
def log() -> Iterator[Log]:
    made = Log()
    logger = made.logger
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = [made.handler], False
    logger.setLevel(logging.INFO)
    yield made
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
    made.handler.close()


@settings(derandomize=True, database=None, max_examples=400)
@given(some=facts)
def test_lines_that_are_written_together_are_those_of_records(
    log: Log, some: list[dict[str, object]]
) -> None:
    log.write(*some)
    together = log.lines()
    for each in some:
        log.logger.info(SENTENCE, extra=each)
    assert together == log.lines()


def test_a_line_says_when_it_was_written(log: Log) -> None:
    log.write({"event": "message.done"})
    log.handler.flush()
    line = json.loads(log.stream.getvalue())
    log.lines()
    assert list(line) == ["time", "level", "event", "message", "logger"]
    assert line["time"].startswith("20")
    assert line["time"].endswith("+00:00")


def test_a_handler_of_a_project_gets_a_record_for_each(log: Log) -> None:
    theirs = Records()
    log.write(A, A | {"task": "b"}, to=[theirs])
    assert [vars(record)["task"] for record in theirs.got] == ["a", "b"]
    assert len(log.lines()) == 2


def test_a_filter_of_a_project_sees_a_record_for_each(log: Log) -> None:
    def drop(record: logging.LogRecord) -> bool:
        return vars(record)["task"] != "a"

    log.handler.addFilter(drop)
    try:
        log.write(A, A | {"task": "b"})
    finally:
        log.handler.removeFilter(drop)
    assert len(log.lines()) == 1


def test_a_record_factory_makes_each_record(log: Log) -> None:
    made: list[object] = []

    def factory(*args: object, **more: object) -> logging.LogRecord:
        made.append(args)
        return logging.LogRecord(*args, **more)  # type: ignore[arg-type]  # as it was called

    logging.setLogRecordFactory(factory)
    try:
        log.write(A, A | {"task": "b"})
    finally:
        logging.setLogRecordFactory(logging.LogRecord)
    assert len(made) == 2
    assert len(log.lines()) == 2


def test_a_level_that_is_off_writes_nothing(log: Log) -> None:
    log.write({"event": "a"}, level=logging.DEBUG)
    log.handler.setLevel(logging.ERROR)
    log.write({"event": "a"})
    log.handler.setLevel(logging.NOTSET)
    assert log.lines() == []


def test_without_other_handlers_no_record_is_made(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, record: logging.LogRecord) -> None:
        raise AssertionError("a record was made")

    monkeypatch.setattr(log.handler, "emit", refuse)
    log.write(A, A | {"task": "b"})
    assert len(log.lines()) == 2


def test_a_message_by_itself_needs_no_record_either(
    log: Log, make_delivery: MakeDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, record: logging.LogRecord) -> None:
        raise AssertionError("a record was made")

    monkeypatch.setattr(log.handler, "emit", refuse)
    message, observers = facts_of(make_delivery(), HEADERS, monotonic()), Observers([MessageLog()])
    with log.alone():
        observers.received(message)
        observers.ended(message, Succeeded(), Done())
    assert len(log.lines()) == 2


def test_messages_that_end_together_have_a_line_each_whether_they_ran_or_not(
    log: Log, make_delivery: MakeDelivery
) -> None:
    ran, revoked = (facts_of(make_delivery(), HEADERS, at) for at in (monotonic(), None))
    ended = [(each, Succeeded(), Done()) for each in (ran, revoked, ran)]
    with log.alone():
        Observers([MessageLog()]).ended_all(ended)
    assert ["run_seconds" in line for line in log.lines()] == [True, False, True]


def test_of_messages_that_are_settled_together_those_with_an_error_have_a_line(
    log: Log, make_delivery: MakeDelivery
) -> None:
    errors = (None, "AccessDenied", None)
    settled = [(facts_of(make_delivery(), HEADERS), Done(), error) for error in errors]
    with log.alone():
        Observers([MessageLog()]).settled_all(settled)
    (line,) = log.lines()
    assert '"event": "settle.failed"' in line
    assert '"error": "AccessDenied"' in line
