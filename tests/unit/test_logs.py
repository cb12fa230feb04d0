"""The log: JSON lines with ids and places in the code, and never what a user typed."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from math import inf
from typing import Any

import billiard.util
import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.signals import setup_logging
from celery.utils.log import get_task_logger
from hypothesis import example, given, settings
from hypothesis import strategies as st

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


class Level(StrEnum):
    A = "a"


#: What logging collects for a record unless it is told not to.
LEFT_OUT = ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks")

#: Loggers that get a level of their own.
QUIETED = ("app", "celery.task", "botocore", "boto3", "urllib3", "pymongo", "multiprocessing")

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


values = (
    st.none()
    | st.text(max_size=8)
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.lists(st.integers(), max_size=2)
    | st.sampled_from([ValueError("x"), Level.A])
)


@settings(derandomize=True, database=None, max_examples=200)
@given(
    created=st.floats(0, 4e9),
    sentence=st.text(max_size=8).filter(lambda text: "%" not in text),
    event=st.none() | st.text(max_size=8),
    facts=st.dictionaries(st.sampled_from(FIELDS[1:]), values),
    level=st.sampled_from([logging.INFO, logging.ERROR]),
)
@example(created=1_999_999_999.9999998, sentence="", event="e", facts={}, level=logging.INFO)
@example(created=1.0005, sentence="a", event="e", facts={"seconds": -0.0}, level=logging.INFO)
@example(created=1.0, sentence="a", event="e", facts={"seconds": inf}, level=logging.INFO)
@example(created=1.0, sentence="a", event="e", facts={"reason": Level.A}, level=logging.INFO)
@example(created=1.0, sentence="a", event="e", facts={"count": True}, level=logging.INFO)
def test_a_line_of_ours_is_the_json_of_its_fields(
    created: float, sentence: str, event: str | None, facts: dict[str, Any], level: int
) -> None:
    record = record_of(sentence, level=level, event=event, **facts)
    record.created = created

    fields = {
        "time": datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds"),
        "level": {logging.INFO: "info", logging.ERROR: "error"}[level],
        "event": "log" if event is None else event,
        "message": sentence,
        "logger": "app.test",
    }
    fields |= {name: facts[name] for name in FIELDS if facts.get(name) is not None}
    assert JsonLines().format(record) == json.dumps(fields, default=str)


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
    outcome = ("deliveries", "outcome", "delay", "reason", "error", "count", "pid")
    times = ("queue_seconds", "wait_seconds", "run_seconds", "seconds")
    facts = {name: f"of {name}" for name in ids + outcome + times}
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


BODY = Body()

UNREAD = ["botocore.hooks", "urllib3", "pymongo", "tornado", "somebody"]
READ = ["celery.worker.consumer", "kombu.connection", "flower.command"]
OURS = ["app.test", "sqs_broker.sqs.settler"]
HELLO = "nothing to fill in: 100%"
TRIES, TRIES_TOLD = "%s for %r (%d of %.1f)", f"{HIDDEN} for '{HIDDEN}' (2 of 3.5)"


@pytest.mark.parametrize(
    ("names", "text", "args", "told"),
    [
        (OURS + READ, HELLO, (), HELLO),
        (OURS, "%(name)s", ({"name": "it"},), "it"),
        (READ, "%(n)s: %(body)r", ({"n": "w1", "body": [MARKER]},), "w1: 'list'"),
        # As Celery and kombu log: `error("Task handler raised error: %r", exc)`; and Flower an
        # exception in place of a sentence: `logger.error(exc)`.
        (OURS + READ, "No: %s", (ValueError(MARKER),), "No: ValueError"),
        (OURS + READ, "No: %r", (ValueError(MARKER),), "No: 'ValueError'"),
        (OURS + READ + UNREAD, ValueError(MARKER), (), "ValueError"),
        (OURS, "No: %s", (Conflict("another came first"),), "No: another came first"),
        # Of a package that was read, texts and numbers.
        (READ, "%s: %d of %r in %s", ("w1", 2, BODY, {"a": 1}), "w1: 2 of 'Body' in dict"),
        # Of one that nobody read, the sentence and numbers: up to where a value may begin.
        (UNREAD, TRIES, ("x", MARKER, 2, 3.5), TRIES_TOLD),
        (UNREAD, TRIES, ("x", BODY, 2, 3.5), TRIES_TOLD),
        (UNREAD, TRIES, ("x", [MARKER], 2, 3.5), TRIES_TOLD),
        (UNREAD, TRIES, ("x", {"a": MARKER}, 2, 3.5), TRIES_TOLD),
        (UNREAD, TRIES, ("x", MARKER.encode(), 2, 3.5), TRIES_TOLD),
        (UNREAD, "body: %(body)s", ({"body": BODY},), f"body: {HIDDEN}"),
        (UNREAD, "Found credentials in variables.", (), "Found credentials in variables."),
        (UNREAD, f"error on read: {MARKER}", (), "error on read"),
        (UNREAD, f"Exception in callback send({MARKER})", (), "Exception in callback send"),
        (UNREAD, f"Never retrieved\nfuture: {MARKER}", (), "Never retrieved"),
        (UNREAD, f'{{"command": "{MARKER}"}}', (), ""),
        (UNREAD, f"It is '{MARKER}'", (), "It is"),
        # An object in place of a sentence, as pymongo logs: `logger.info(LogMessage(…))`.
        (UNREAD, BODY, (), HIDDEN),
        (READ, BODY, (), "Body"),
    ],
)
def test_a_sentence_tells_of_its_values_what_is_known_to_be_no_personal_data(
    names: list[str], text: Any, args: Any, told: str
) -> None:
    lines = {name: line_of(text, *args, name=name)["message"] for name in names}
    assert lines == dict.fromkeys(names, told)


def test_the_facts_of_a_package_that_nobody_read_are_not_told() -> None:
    assert "reason" not in line_of("Hello.", name="somebody", reason=MARKER, task=MARKER)


@pytest.mark.parametrize("name", ["app.test", "celery.worker", "somebody"])
def test_arguments_that_do_not_fit_are_left_out(name: str) -> None:
    assert MARKER not in str(line_of("It is %d", MARKER, name=name))
    assert MARKER not in str(line_of("It is", MARKER, name=name))
    assert MARKER not in str(line_of("It is %(a)s", {"b": MARKER}, name=name))


# What Celery says

#: Who prints bodies, exceptions and results (celery 5.7).
CELERYS = ["celery.app.trace", "celery.worker.strategy", "celery.worker.request"]


UNMARKED = "Failed to mark task %s as revoked in backend: %s"


@pytest.mark.parametrize(
    ("names", "level", "text", "is_heard"),
    [
        (CELERYS, logging.DEBUG, f"Task {MARKER} received", False),
        (CELERYS, logging.INFO, f"Task {MARKER} received", False),
        (CELERYS, logging.WARNING, f"Task {MARKER} received", False),
        # Without an exception there is nothing to tell of it.
        (CELERYS, logging.ERROR, f"Task: {MARKER}", False),
        # A revoke finds no result to mark.
        (["celery.worker.control"], logging.WARNING, UNMARKED, False),
        (["celery.worker.control"], logging.WARNING, "Connected.", True),
        (["celery.worker", "celery.apps.worker", "kombu", "sqs_broker"], 20, "Connected.", True),
        (["celery.worker", "celery.apps.worker", "kombu", "sqs_broker"], 40, "Connected.", True),
    ],
)
def test_what_celery_repeats_of_each_message_is_kept_back_and_all_else_is_heard(
    names: list[str], level: int, text: str, is_heard: bool
) -> None:
    records = [record_of(text, name=name, level=level) for name in names]
    assert {bool(WithoutRepeats().filter(record)) for record in records} == {is_heard}
    assert {record.getMessage() for record in records} == {text}


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


def test_a_hard_time_limit_in_the_last_attempt_is_a_failure_of_its_task() -> None:
    record = record_of(
        "Hard time limit (%ss) exceeded for %s[%s]",
        30,
        "registerUser",
        "id-1",
        name="celery.worker.request",
        level=logging.ERROR,
    )
    assert WithoutRepeats().filter(record)
    line = json.loads(JsonLines().format(record))
    assert (line["event"], line["error"]) == ("task.failed", "TimeLimitExceeded")
    assert (line["task"], line["message_id"]) == ("registerUser", "id-1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            warnings.formatwarning(MARKER, RuntimeWarning, "/app/tasks.py", 7, MARKER),
            "/app/tasks.py:7: RuntimeWarning",
        ),
        (MARKER, "A warning."),
    ],
)
def test_of_a_warning_only_its_place_and_category_are_told(text: str, told: str) -> None:
    record = record_of("%s", text, name="py.warnings", level=logging.WARNING)
    assert WithoutRepeats().filter(record)
    assert json.loads(JsonLines().format(record))["message"] == told


# Where it goes


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger. All that `set_up` changes is put back as pytest has it."""
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
    for name in (*QUIETED, *REPEATED):
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
    records: list[logging.LogRecord] = []
    root.handlers[0].addFilter(lambda record: records.append(record) or True)
    logging.getLogger("app.test").info("Hello.")
    (record,) = records
    assert {record.thread, record.process, record.processName} == {None}
    # The place of the call would be looked for on the stack.
    assert (record.pathname, record.lineno) == ("(unknown file)", 0)


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


# The trace and the request


def test_a_line_that_a_task_writes_has_the_trace_and_the_request_of_its_message() -> None:
    celery_app = Celery("logs", set_as_current=False)

    @celery_app.task(bind=True, shared=False)
    def job(self: Any) -> dict[str, Any]:
        return line_of("Half done.", request_id=None)

    traced = build_tracer("job", job, app=celery_app, eager=True)
    context = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "request_id": "r-1"}
    line = traced("1", (), {}, context).retval
    assert (line["trace_id"], line["request_id"]) == ("a" * 32, "r-1")
    assert not {"trace_id", "request_id"} & set(line_of("Outside."))


def test_a_line_has_no_request_id_that_may_be_personal_data() -> None:
    celery_app = Celery("logs", set_as_current=False)

    @celery_app.task(shared=False)
    def job() -> dict[str, Any]:
        return line_of("Half done.")

    traced = build_tracer("job", job, app=celery_app, eager=True)
    assert "request_id" not in traced("1", (), {}, {"request_id": "kim@example.org"}).retval
