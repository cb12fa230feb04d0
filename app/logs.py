"""The log in JSON lines: a sentence for people (`message`), a stable `event`, and ids. At no level
does a line contain a body, a person's name or a secret.

The text of an exception can hold user input (a duplicate-key error prints the key). So a line has
the exception's class and its locations in the code. It has the text only for this project's own
exceptions, which contain no user input.

Lines of other packages are written from INFO on, because below INFO they print arguments, requests
and commands. For packages whose lines were reviewed (`READ`) a line keeps the strings and numbers
that fill its sentence. For all others it keeps only the plain sentence and numbers.
"""

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from math import isfinite, modf
from time import time
from typing import Any

from celery import current_task
from celery.signals import celeryd_after_setup, setup_logging, task_postrun, worker_ready
from celery.utils.log import get_multiprocessing_logger

from app.errors import AppError
from app.log_stream import GatheringHandler, LogFile, Stream, can_take, unblock
from app.prints import Prints
from app.settings import get_settings
from sqs_broker.errors import ConfigurationError, NoThread, PublishError
from sqs_broker.machine.columns import cells, constant
from sqs_broker.rules.trace_context import REQUEST_ID, TRACEPARENT, request_id_of, trace_id_of
from sqs_broker.worker.per_job import once_a_job

logger = logging.getLogger(__name__)

#: This project's packages. Their lines are written at any level.
OURS = frozenset({"app", "sqs_broker"})

#: Packages whose lines from INFO on were reviewed, in the versions that pyproject.toml pins: their
#: strings are names, ids and addresses. `multiprocessing` is billiard's logger. Of `py.warnings`,
#: `WithoutRepeats` leaves only the location and the category.
READ = OURS | {"celery", "kombu", "multiprocessing", "flower", "py"}

#: Replaces a hidden value.
HIDDEN = "…"

#: The part of a sentence of another package before the first character that may begin a value.
_BARE = re.compile(r"[^\n:=<>(){}\[\]'\"`]*")

#: The fields that the `extra=` of a log call may add to a line.
FIELDS = (
    "event", "task", "message_id", "sqs_message_id", "source", "queue", "deliveries", "attempt",
    "outcome", "queue_seconds", "wait_seconds", "run_seconds", "seconds", "delay", "reason",
    "error", "count", "pid",
    "trace_id", "request_id", "client", "method", "route", "status",
)  # fmt: skip

#: "event" is in each line.
FIELDS_AFTER_EVENT = FIELDS[1:]

#: Loggers of Celery that write about one message. The broker logs the same events, with the outcome
#: and without arguments.
REPEATED = ("celery.app.trace", "celery.worker.strategy", "celery.worker.request")

#: Celery logs this at each revoke, because there is no result backend.
UNMARKED = "Failed to mark task"

#: Celery logs this at a hard time limit in the last attempt, with the limit, the task and its id.
HARD_LIMIT = "Hard time limit"

#: The location and the category of a warning.
_WARNING = re.compile(r"^[^\n]*?:\d+: \w+")

#: Exceptions whose text is this project's own, without user input.
SAFE_TEXT = (AppError, ConfigurationError, NoThread, PublishError)


#: Created once, because `json.dumps` creates one for each call.
_ENCODER = json.JSONEncoder(default=str)


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        package = record.name.partition(".")[0]
        is_plain = package in OURS and not record.args and record.exc_info is None
        if is_plain and (plain := _plain_line(record)) is not None:
            return plain  # Most lines: two for each message.
        line: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "event": "log",
            "message": _sentence(record, package),
            "logger": record.name,
        }
        if package in READ:
            facts = vars(record)
            line |= _of_the_run() | {n: facts[n] for n in FIELDS if facts.get(n) is not None}
        if record.exc_info and record.exc_info[1] is not None:
            line |= _facts_of(record.exc_info[1])
        return _ENCODER.encode(line)


def _plain_line(record: logging.LogRecord) -> str | None:
    """The line of one of our own records, from a template; None if it is not that simple. The same
    as the encoder's, in half of its time."""
    facts = vars(record)
    event = facts.get("event")
    if type(event) is not str or type(record.msg) is not str:
        return None
    common = _common(record.levelname, event, record.msg, record.name)
    parts = [f'{{"time": "{_time_of(record)}"', common]
    for name in FIELDS_AFTER_EVENT:
        value = facts.get(name)
        if value is None:
            continue
        kind = type(value)
        if kind is str:
            value = _ENCODER.encode(value)
        elif kind is not int and not (kind is float and isfinite(value)):
            return None
        parts.append(f'"{name}": {value!s}')
    return ", ".join(parts) + "}"


@lru_cache(maxsize=256)
def _common(level: str, event: str, sentence: str, logger: str) -> str:
    """What lines with the same sentence have in common."""
    names = ("level", "event", "message", "logger")
    fields = zip(names, (level.lower(), event, sentence, logger), strict=True)
    return _ENCODER.encode(dict(fields))[1:-1]


def _time_of(record: logging.LogRecord) -> str:
    return _time_at(record.created)


def _time_at(seconds: float) -> str:
    """The time in UTC, in milliseconds, as `datetime.isoformat` shows it."""
    fraction, second = modf(seconds)
    if (micros := round(fraction * 1_000_000)) == 1_000_000:
        micros, second = 0, second + 1
    return f"{_second(second)}.{micros // 1_000:03d}+00:00"


@lru_cache(maxsize=4)
def _second(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class OthersFromInfo(logging.Filter):
    """Drops lines of other packages below INFO, whatever the levels of their loggers are."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO or record.name.partition(".")[0] in OURS


class WithoutRepeats(logging.Filter):
    """Drops Celery's own lines about a message, because they print exceptions and results."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "py.warnings":
            # The text of a warning may contain that of an exception (celery 5.7 app/trace.py).
            place = _WARNING.match(record.getMessage())
            record.msg, record.args = place.group() if place else "A warning.", ()
        if record.name == "celery.worker.control" and str(record.msg).startswith(UNMARKED):
            return False
        if record.name not in REPEATED:
            return True
        if record.levelno < logging.ERROR:
            return False
        if str(record.msg).startswith(HARD_LIMIT):
            _, task, id_ = record.args if isinstance(record.args, tuple) else (None,) * 3
            record.data, record.error = {"name": task, "id": id_}, "TimeLimitExceeded"
        elif record.exc_info is None:
            return False
        # Of a failure only the class and the code locations remain, not the text.
        data = getattr(record, "data", None) or {}
        record.msg, record.args = "A task failed.", ()
        record.event = "task.failed"
        record.task, record.message_id = data.get("name"), data.get("id")
        return True


class LinesHandler(GatheringHandler):
    """Also takes many lines of the broker that differ only in their facts, without records
    (sqs_broker/observers/lines.py)."""

    def can_take_lines(self) -> bool:
        """Whether nobody has given it another formatter, or a filter of their own."""
        known = (OthersFromInfo, WithoutRepeats)
        return type(self.formatter) is JsonLines and all(type(f) in known for f in self.filters)

    def take_lines(
        self, logger: str, level: int, sentence: str, lines: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write a line for each of these facts. Never raises."""
        with suppress(Exception):
            # Broad on purpose, as in `emit`: who logs must not fail.
            name = logging.getLevelName(level)
            common = _common(name, lines[0]["event"], sentence, logger)
            self.add_lines(_lines(f'{{"time": "{_time_at(time())}", {common}', lines))


def _lines(beginning: str, lines: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Lines with the same beginning, and these facts, in the order of FIELDS."""
    values = zip(*[facts.values() for facts in lines], strict=True)
    columns = dict(zip(lines[0], values, strict=True))
    #: What each line is joined of, by columns. `same` is what comes next in all lines.
    pieces: list[Iterable[str]] = []
    same = beginning
    for name in _in_order(tuple(columns)):
        column = columns[name]
        kinds = {*map(type, column)}
        if _NONE in kinds:
            if len(kinds) > 1:
                pieces += [repeat(same), [_field(name, value) for value in column]]
                same = ""
        elif (text := constant(column, kinds)) is not None:
            same += f', "{name}": {text}'
        else:
            pieces += [repeat(f'{same}, "{name}": '), cells(column, kinds, _ENCODER.encode)]
            same = ""
    return map("".join, zip(*pieces, repeat(same + "}\n", len(lines)), strict=False))


_NONE = type(None)


def _field(name: str, value: Any) -> str:
    return "" if value is None else f', "{name}": {_ENCODER.encode(value)}'


@lru_cache(maxsize=64)
def _in_order(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in FIELDS_AFTER_EVENT if name in names)


def use_json_lines() -> None:
    """Make workers and beat log JSON lines, at LOG_LEVEL, from their start on: to stderr, or to
    their `--logfile`. What a worker's tasks print becomes such lines too."""
    setup_logging.connect(set_up)
    celeryd_after_setup.connect(_before_banner)
    worker_ready.connect(_after_banner)


def log_to_stdout() -> None:
    """Make this process log JSON lines to stdout, each of them at once. For a Lambda function: its
    sandbox may be frozen whenever the function has returned."""
    handler = logging.StreamHandler(sys.stdout)
    _use(handler, logging.getLevelName(get_settings().log_level))


def set_up(loglevel: int | None = None, logfile: str | None = None, **_: Any) -> None:
    """Make this process log JSON lines from now on, at LOG_LEVEL or `loglevel` if that is lower: to
    `logfile`, whose name Celery has completed, or to stderr."""
    stream, fault = _stream(logfile)
    # Without `-l` Celery passes WARNING, so the lower of the two levels is used.
    level = min(loglevel or logging.WARNING, logging.getLevelName(get_settings().log_level))
    _use(LinesHandler(stream), level)
    # Billiard's logger does not propagate, so Python would print its errors unformatted.
    pool = get_multiprocessing_logger()
    pool.propagate = True
    pool.setLevel(logging.ERROR)
    if fault is not None:
        logger.error(
            "The log file cannot be written to (%s), so the log goes to stderr. Correct --logfile, "
            "or let this user write to it.",
            type(fault).__name__,
            extra={"event": "log.no_file", "error": type(fault).__name__},
        )


def _use(handler: logging.Handler, level: int) -> None:
    """Make this the only handler of the process."""
    _switch_off_unused_fields()
    handler.setFormatter(JsonLines())
    handler.addFilter(OthersFromInfo())
    handler.addFilter(WithoutRepeats())
    root = logging.getLogger()
    for former in root.handlers:
        if isinstance(former, GatheringHandler):
            former.close()  # Of the parent of a pool process that has a file of its own.
    root.handlers = [handler]
    # "celery.task" is the parent of the loggers of tasks (Celery's `get_task_logger`).
    for name in (*OURS, "celery.task"):
        logging.getLogger(name).setLevel(level)
    # Otherwise other packages create records that the filter drops.
    root.setLevel(max(level, logging.INFO))
    # The INFO lines of these do not help the operator of a worker.
    for name in ("botocore", "boto3", "urllib3", "pymongo"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Otherwise Celery creates records for each message, in two processes, that the filter drops.
    for name in REPEATED:
        logging.getLogger(name).setLevel(logging.ERROR)


def redirect_prints(conf: Any) -> None:
    """Make what this process prints lines of the log, unless `worker_redirect_stdouts` is off."""
    if conf.worker_redirect_stdouts:
        sys.stdout, sys.stderr = Prints(), Prints()
        task_postrun.connect(_end_prints)


@once_a_job
def _end_prints(**_: Any) -> None:
    """Log what a task has printed, also if its last line has no end."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Prints):
            stream.flush()


def _stream(logfile: str | None) -> tuple[Stream, OSError | None]:
    """Where the log goes to, and why not to the file."""
    fault = None
    if logfile:
        try:
            return LogFile(logfile), None
        except OSError as exc:
            fault = exc
    stream = sys.__stderr__ if isinstance(sys.stderr, Prints) else sys.stderr
    if stream is None:
        return LogFile(os.devnull), fault  # It was closed when this process started.
    with suppress(OSError, ValueError):
        unblock(stream.fileno())
    return stream, fault


def _before_banner(instance: Any, conf: Any, **_: Any) -> None:
    redirect_prints(conf)
    # Celery prints its banner to stdout itself, and would wait for a reader that takes nothing.
    if sys.__stdout__ is not None:
        with suppress(OSError, ValueError):
            instance.quiet = instance.quiet or not can_take(sys.__stdout__.fileno())


def _after_banner(**_: Any) -> None:
    # Celery's signal handlers print to it (celery 5.7 apps/worker.py `safe_say`).
    if sys.__stdout__ is not None:
        with suppress(OSError, ValueError):
            unblock(sys.__stdout__.fileno())


def _switch_off_unused_fields() -> None:
    # This halves the cost of a record: https://docs.python.org/3/howto/logging.html#optimization
    logging._srcfile = None
    logging.logThreads = False
    logging.logProcesses = False
    logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # new in Python 3.12


def _of_the_run() -> dict[str, Any]:
    """Which trace and request the message belongs to whose task runs here."""
    request = getattr(current_task, "request", None)
    found = {
        "trace_id": trace_id_of(getattr(request, TRACEPARENT, None)),
        "request_id": request_id_of(getattr(request, REQUEST_ID, None)),
    }
    return {name: value for name, value in found.items() if value is not None}


def _sentence(record: logging.LogRecord, package: str) -> str:
    text = record.msg if isinstance(record.msg, str) else _shown(record.msg, package)
    if not record.args:
        return text if package in READ else _bare(text)
    try:
        if isinstance(record.args, Mapping):
            return text % {name: _shown(value, package) for name, value in record.args.items()}
        return text % tuple(_shown(value, package) for value in record.args)
    except (TypeError, ValueError, LookupError):
        # The arguments do not match the sentence.
        return text if package in READ else _bare(text)


def _shown(value: object, package: str) -> Any:
    """A value as it may appear in a sentence of this package."""
    if isinstance(value, BaseException):
        return value if isinstance(value, SAFE_TEXT) else type(value).__name__
    if package in OURS or value is None or isinstance(value, int | float):
        return value
    if package in READ:
        return value if isinstance(value, str) else type(value).__name__
    return HIDDEN


def _bare(text: str) -> str:
    found = _BARE.match(text)
    return found.group().rstrip() if found else ""


def _facts_of(exc: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(exc.__traceback__)
    facts: dict[str, Any] = {
        "error": type(exc).__name__,
        "stack": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]],
    }
    if isinstance(exc, SAFE_TEXT):
        facts["error_text"] = str(exc)
    return facts
