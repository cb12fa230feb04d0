"""The log: JSON lines with ids and places in the code, and never what a user typed."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from celery.signals import setup_logging

from app.broker.errors import ConfigurationError, MessageTooLarge
from app.errors import Conflict, PermanentError, SettingsError, TransientError
from app.logs import FIELDS, REPEATED, JsonLines, WithoutRepeats, set_up, use_json_lines

#: What logging collects for a record unless it is told not to.
LEFT_OUT = (
    "_srcfile",
    "logThreads",
    "logProcesses",
    "logMultiprocessing",
    "logAsyncioTasks",
)

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


def record_of(message: str, *args: Any, name: str = "app.test", **facts: Any) -> logging.LogRecord:
    level = facts.pop("level", logging.INFO)
    exc_info = facts.pop("exc_info", None)
    record = logging.LogRecord(name, level, __file__, 1, message, args, exc_info)
    vars(record).update(facts)
    return record


def line_of(*args: Any, **facts: Any) -> dict[str, Any]:
    text = JsonLines().format(record_of(*args, **facts))
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


def info_of(exc: Exception) -> Any:
    try:
        raise exc
    except Exception:
        return sys.exc_info()


# A line


def test_a_line_is_one_json_object() -> None:
    line = line_of("%s is %d\nlong", "It", 7)
    assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert line == {
        "level": "info",
        "event": "log",
        "message": "It is 7\nlong",
        "logger": "app.test",
    }


def test_a_line_has_the_facts_of_its_event() -> None:
    ids = ("event", "task", "message_id", "sqs_message_id", "source", "queue")
    outcome = ("deliveries", "outcome", "seconds", "delay", "reason", "error", "count", "pid")
    facts = {name: f"of {name}" for name in ids + outcome}
    line = line_of("Message is done.", **facts)
    assert {name: line.get(name) for name in facts} == facts


def test_a_fact_that_is_nothing_is_left_out() -> None:
    assert "task" not in line_of("Message is done.", task=None)


def test_only_known_facts_are_told() -> None:
    assert MARKER not in str(line_of("Hello.", nickname=MARKER, body=MARKER, data=MARKER))
    assert not {"nickname", "user_info", "body", "args", "kwargs", "data"} & set(FIELDS)


@pytest.mark.parametrize("value", ["정보", "\ud800", "\x00\x1b[31m", 'quote"\\', object()])
def test_any_value_makes_a_line(value: object) -> None:
    assert line_of("%s", value, task=value)["message"] == str(value)


@pytest.mark.parametrize("args", [({"name": "it"},), ({},)])
def test_a_mapping_fills_a_message_in(args: tuple[Any, ...]) -> None:
    assert line_of("%(name)s", {"name": "it"})["message"] == "it"
    assert line_of("nothing to fill in: 100%")["message"] == "nothing to fill in: 100%"


# Exceptions


@pytest.mark.parametrize(
    "exc", [ValueError(MARKER), KeyError(MARKER), type(MARKER[:3], (Exception,), {})(MARKER)]
)
def test_a_foreign_exception_is_told_by_class_and_place_only(exc: Exception) -> None:
    line = line_of("It failed.", exc_info=info_of(exc))
    assert MARKER not in str(line)
    assert line["error"] == type(exc).__name__
    assert line["stack"][-1].startswith(__file__)
    assert line["stack"][-1].endswith(" info_of")


@pytest.mark.parametrize(
    "exc",
    [
        PermanentError("it cannot be"),
        TransientError("it is away"),
        Conflict("another came first"),
        SettingsError("AWS_REGION is not set"),
        ConfigurationError("a and b"),
        MessageTooLarge("it is 7 bytes"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_an_exception_of_ours_is_told_with_its_text(exc: Exception) -> None:
    line = line_of("It failed.", exc_info=info_of(exc))
    assert (line["error"], line["error_text"]) == (type(exc).__name__, str(exc))


def test_the_text_of_what_is_behind_an_exception_of_ours_is_not_told() -> None:
    ours = PermanentError("it cannot be")
    ours.__cause__ = ValueError(MARKER)
    line = line_of("It failed.", exc_info=info_of(ours))
    assert MARKER not in str(line)


@pytest.mark.parametrize("placeholder", ["%s", "%r"])
def test_an_exception_in_a_sentence_is_told_by_its_class(placeholder: str) -> None:
    # As Celery and kombu log: `error("Task handler raised error: %r", exc)`.
    line = line_of(f"It failed: {placeholder}", ValueError(MARKER))
    assert MARKER not in str(line)
    assert "ValueError" in line["message"]


def test_an_exception_of_ours_in_a_sentence_is_told_with_its_text() -> None:
    assert line_of("No: %s", Conflict("another came first"))["message"] == "No: another came first"


@pytest.mark.parametrize("exc_info", [None, (None, None, None)])
def test_a_line_without_an_exception_has_no_error(exc_info: Any) -> None:
    assert "error" not in line_of("It works.", exc_info=exc_info)


def test_a_long_stack_is_cut_to_its_end() -> None:
    def deeper(levels: int) -> None:
        if levels:
            deeper(levels - 1)
        raise ValueError(MARKER)

    try:
        deeper(50)
    except ValueError:
        line = line_of("It failed.", exc_info=sys.exc_info())
    assert len(line["stack"]) == 12


# What Celery says

#: Who prints bodies, exceptions and results (celery 5.7).
CELERYS = ["celery.app.trace", "celery.worker.strategy", "celery.worker.request"]


@pytest.mark.parametrize("name", CELERYS)
@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING])
def test_what_celery_says_of_each_message_is_kept_back(name: str, level: int) -> None:
    assert not WithoutRepeats().filter(record_of(f"Task {MARKER} received", name=name, level=level))


def test_that_a_revoke_finds_no_result_to_mark_is_kept_back() -> None:
    said = "Failed to mark task %s as revoked in backend: %s"
    record = logging.LogRecord("celery.worker.control", logging.WARNING, "", 1, said, (), None)
    assert not WithoutRepeats().filter(record)


def test_an_error_of_celery_without_an_exception_is_kept_back() -> None:
    record = record_of(f"Task: {MARKER}", name="celery.worker.request", level=logging.ERROR)
    assert not WithoutRepeats().filter(record)


@pytest.mark.parametrize("name", CELERYS)
def test_a_failure_keeps_its_class_its_place_and_its_task(name: str) -> None:
    record = record_of(
        "Task %(name)s raised: %(exc)s\n%(traceback)s",
        {"name": "registerUser", "exc": MARKER, "traceback": MARKER},
        name=name,
        level=logging.ERROR,
        exc_info=info_of(ValueError(MARKER)),
        data={"name": "registerUser", "id": "id-1", "args": MARKER, "kwargs": MARKER},
    )
    assert WithoutRepeats().filter(record)
    line = json.loads(JsonLines().format(record))
    assert MARKER not in str(line)
    assert line["message"] == "A task failed."
    assert (line["event"], line["error"]) == ("task.failed", "ValueError")
    assert (line["task"], line["message_id"]) == ("registerUser", "id-1")


@pytest.mark.parametrize("name", ["celery.worker", "celery.apps.worker", "kombu", "app.broker"])
@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_other_loggers_are_heard(name: str, level: int) -> None:
    record = record_of("Connected.", name=name, level=level)
    assert WithoutRepeats().filter(record)
    assert record.getMessage() == "Connected."


def test_of_a_warning_only_its_place_and_category_are_told() -> None:
    text = warnings.formatwarning(MARKER, RuntimeWarning, "/app/tasks.py", 7, MARKER)
    record = record_of("%s", text, name="py.warnings", level=logging.WARNING)
    assert WithoutRepeats().filter(record)
    assert json.loads(JsonLines().format(record))["message"] == "/app/tasks.py:7: RuntimeWarning"


def test_of_a_warning_in_another_form_nothing_is_told() -> None:
    record = record_of(MARKER, name="py.warnings", level=logging.WARNING)
    assert WithoutRepeats().filter(record)
    assert record.getMessage() == "A warning."


# Where it goes


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as pytest has it."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    wanted = {name: getattr(logging, name, None) for name in LEFT_OUT}
    yield root
    for made in root.handlers:
        if made not in handlers:
            made.close()
    for name, value in wanted.items():
        setattr(logging, name, value)
    root.handlers = handlers
    root.setLevel(level)
    for name in ("botocore", "boto3", "urllib3", "pymongo", *REPEATED):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_a_worker_that_starts_logs_json_lines_to_stderr(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging.disconnect(set_up)
    use_json_lines()
    setup_logging.send(sender=None, loglevel=logging.INFO)
    logging.getLogger("app.test").info("Hello.", extra={"event": "test"})
    logging.getLogger("celery.app.trace").info("Task %s", MARKER)
    root.handlers[0].flush()
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "test"


@pytest.mark.parametrize("name", REPEATED)
def test_celery_makes_no_line_of_its_own_for_a_message(root: logging.Logger, name: str) -> None:
    set_up(loglevel=logging.DEBUG)
    # What Celery asks before it puts a line together (celery 5.7 app/trace.py, worker/strategy.py).
    assert not logging.getLogger(name).isEnabledFor(logging.INFO)
    assert logging.getLogger(name).isEnabledFor(logging.ERROR)


def test_what_no_line_has_is_not_collected(root: logging.Logger) -> None:
    set_up()
    record = logging.getLogger("app.test").makeRecord("app.test", 20, "", 1, "Hello.", (), None)
    collected = {record.thread, record.process, record.processName}
    assert collected == {None}
    assert logging._srcfile is None  # the place of the call, which is looked for on the stack


@pytest.mark.parametrize("name", ["botocore.endpoint", "boto3", "urllib3.connection", "pymongo"])
def test_loggers_that_print_requests_are_quiet_at_any_level(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    set_up(loglevel=logging.DEBUG)
    logging.getLogger(name).debug("body: %s", MARKER)
    logging.getLogger(name).info("body: %s", MARKER)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("ours", "celerys", "level"),
    [
        ("INFO", None, logging.INFO),
        ("INFO", logging.WARNING, logging.INFO),
        ("INFO", logging.DEBUG, logging.DEBUG),
        ("ERROR", logging.INFO, logging.INFO),
        ("DEBUG", logging.WARNING, logging.DEBUG),
    ],
)
def test_the_more_talkative_of_two_levels_counts(
    root: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
    ours: str,
    celerys: int | None,
    level: int,
) -> None:
    monkeypatch.setenv("LOG_LEVEL", ours)
    set_up(loglevel=celerys)
    assert root.level == level
