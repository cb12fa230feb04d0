"""The log: JSON lines with ids and places in the code, and never what a user typed."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import billiard.util
import pytest
from celery.signals import setup_logging
from celery.utils.log import get_task_logger

from app.errors import Conflict, PermanentError, SettingsError, TransientError
from app.logs import (
    FIELDS,
    HIDDEN,
    REPEATED,
    JsonLines,
    OthersFromInfo,
    WithoutRepeats,
    set_up,
    use_json_lines,
)
from sqs_broker.errors import ConfigurationError, MessageTooLarge

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
    line = line_of("Message done.", **facts)
    assert {name: line.get(name) for name in facts} == facts


def test_a_fact_that_is_nothing_is_left_out() -> None:
    assert "task" not in line_of("Message done.", task=None)


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


@pytest.mark.parametrize("name", ["app.test", "celery.worker", "flower", "somebody"])
def test_an_exception_in_place_of_a_sentence_is_told_by_its_class(name: str) -> None:
    # As Flower logs: `logger.error(exc)`.
    assert line_of(ValueError(MARKER), name=name)["message"] == "ValueError"  # type: ignore[arg-type]


# What others say

#: Who print requests, commands and the arguments of tasks.
TALKATIVE = [
    "celery.pool", "celery.worker.strategy", "kombu.connection", "amqp", "multiprocessing",
    "asyncio", "botocore.endpoint", "urllib3.connectionpool", "pymongo.command", "root", "somebody",
    "flower.command", "tornado.access",
]  # fmt: skip


@pytest.mark.parametrize("level", [1, logging.DEBUG, logging.INFO - 1])
@pytest.mark.parametrize("name", TALKATIVE)
def test_what_others_say_below_info_is_kept_back(name: str, level: int) -> None:
    assert not OthersFromInfo().filter(record_of(MARKER, name=name, level=level))
    assert OthersFromInfo().filter(record_of("Hello.", name=name, level=logging.INFO))


@pytest.mark.parametrize("name", ["app", "sqs_broker.sqs.settler"])
def test_what_we_say_is_written_at_any_level(name: str) -> None:
    assert OthersFromInfo().filter(record_of("Hello.", name=name, level=1))


class Body:
    """What a package may fill in: it shows all it has."""

    def __repr__(self) -> str:
        return MARKER


@pytest.mark.parametrize("value", [MARKER, Body(), [MARKER], {"a": MARKER}, MARKER.encode()])
@pytest.mark.parametrize("name", ["botocore.hooks", "urllib3", "pymongo", "tornado", "somebody"])
def test_of_a_package_that_nobody_read_only_the_sentence_and_numbers_are_told(
    name: str, value: object
) -> None:
    line = line_of("Retrying %s for %r (%d of %.1f)", "x", value, 2, 3.5, name=name)
    assert line["message"] == f"Retrying {HIDDEN} for '{HIDDEN}' (2 of 3.5)"
    assert MARKER not in str(line_of("body: %(body)s", {"body": value}, name=name))
    assert MARKER not in str(line_of("It is %d", value, name=name))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Found credentials in environment variables.",) * 2,
        (f"error on read: {MARKER}", "error on read"),
        (f"Exception in callback send({MARKER})", "Exception in callback send"),
        (f"Never retrieved\nfuture: {MARKER}", "Never retrieved"),
        (f'{{"command": "{MARKER}"}}', ""),
        (f"It is '{MARKER}'", "It is"),
    ],
)
def test_a_sentence_that_is_filled_in_already_is_cut_where_values_begin(
    text: str, told: str
) -> None:
    assert line_of(text, name="asyncio")["message"] == told


def test_an_object_in_place_of_a_sentence_is_not_told() -> None:
    # As pymongo logs: `logger.info(LogMessage(…))`.
    assert MARKER not in str(line_of(Body(), name="pymongo"))  # type: ignore[arg-type]
    assert MARKER not in str(line_of(Body(), name="celery"))  # type: ignore[arg-type]


def test_the_facts_of_a_package_that_nobody_read_are_not_told() -> None:
    assert "reason" not in line_of("Hello.", name="somebody", reason=MARKER, task=MARKER)


@pytest.mark.parametrize("name", ["celery.worker.consumer", "kombu.connection", "flower.command"])
def test_of_a_package_that_was_read_texts_and_numbers_are_told(name: str) -> None:
    line = line_of("%s has %d of %r in %s", "celery@host", 2, Body(), {"a": MARKER}, name=name)
    assert line["message"] == "celery@host has 2 of 'Body' in dict"
    said = line_of("%(name)s: %(body)r", {"name": "w1", "body": [MARKER]}, name=name)
    assert said["message"] == "w1: 'list'"


@pytest.mark.parametrize("name", ["app.test", "celery.worker", "somebody"])
def test_arguments_that_do_not_fit_are_left_out(name: str) -> None:
    assert MARKER not in str(line_of("It is %d", MARKER, name=name))
    assert MARKER not in str(line_of("It is", MARKER, name=name))
    assert MARKER not in str(line_of("It is %(a)s", {"b": MARKER}, name=name))


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


@pytest.mark.parametrize("name", ["celery.worker", "celery.apps.worker", "kombu", "sqs_broker"])
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
    for name in (
        "app",
        "celery.task",
        "botocore",
        "boto3",
        "urllib3",
        "pymongo",
        "multiprocessing",
        *REPEATED,
    ):
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


@pytest.mark.parametrize("name", TALKATIVE)
def test_below_info_nobody_else_makes_a_record_and_what_is_made_is_not_written(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    set_up(loglevel=logging.DEBUG)
    logger = logging.getLogger(name)
    assert not logger.isEnabledFor(logging.DEBUG)
    assert logging.getLogger("app.test").isEnabledFor(logging.DEBUG)
    level = logger.level
    try:
        logger.setLevel(logging.DEBUG)
        logger.debug("body: %s", MARKER)
        logging.getLogger("app.test").debug("Hello.")
    finally:
        logger.setLevel(level)
    root.handlers[0].flush()
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "Hello."


def test_a_task_logger_of_celery_is_as_talkative_as_its_module(root: logging.Logger) -> None:
    set_up(loglevel=logging.DEBUG)
    assert get_task_logger("app.a_module_of_tasks").isEnabledFor(logging.DEBUG)


def test_an_error_of_the_pool_is_a_line_without_its_text(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up()
    # As billiard does (billiard 4.3 pool.py), whose logger otherwise has no handler.
    billiard.util.get_logger().error(
        "Pool callback raised exception: %r",
        ValueError(MARKER),
        exc_info=info_of(ValueError(MARKER)),
    )
    [line] = capsys.readouterr().err.splitlines()
    assert MARKER not in line
    assert json.loads(line)["error"] == "ValueError"


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
    assert logging.getLogger("app.test").getEffectiveLevel() == level
    assert root.level == max(level, logging.INFO)
