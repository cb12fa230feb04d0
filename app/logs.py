"""JSON lines: a sentence for people (`message`), a stable `event`, and ids. Never a body, a name
or a secret, at any level.

The text of an exception can hold what a user typed (a duplicate-key error prints the key), so a
log line has the class of an exception and the places in the code, and its text only where it is
one of our own, which hold none.

What other packages say is told from INFO on: below it they print arguments, requests and commands.
Of those that were read (`READ`) the line has the texts and numbers that they fill in, of all others
the bare sentence and the numbers.
"""

import json
import logging
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from celery.signals import setup_logging
from celery.utils.log import get_multiprocessing_logger

from app.errors import AppError
from app.log_stream import GatheringHandler
from app.settings import get_settings
from sqs_broker.errors import ConfigurationError, NoThread, PublishError

#: The packages whose lines are ours, written at any level.
OURS = frozenset({"app", "sqs_broker"})

#: Packages whose lines from INFO on were read, in the versions that pyproject.toml pins: the texts
#: in them are names, ids and addresses. `multiprocessing` is billiard's, and `py.warnings` what
#: `WithoutRepeats` leaves of it.
READ = OURS | {"celery", "kombu", "multiprocessing", "flower", "py"}

#: Stands for what a line does not tell.
HIDDEN = "…"

#: What a sentence of an unread package says before the first thing that it may have filled in.
_BARE = re.compile(r"[^\n:=<>(){}\[\]'\"`]*")

#: What the `extra=` of a log call may add to a line.
FIELDS = (
    "event", "task", "message_id", "sqs_message_id", "source", "queue", "deliveries", "outcome",
    "seconds", "delay", "reason", "error", "count", "pid",
)  # fmt: skip

#: Celery's own lines about one message: ours say the same, with the outcome and without arguments.
REPEATED = ("celery.app.trace", "celery.worker.strategy", "celery.worker.request")

#: What Celery says of each revoke, because there is no result to mark.
UNMARKED = "Failed to mark task"

#: Where a warning was raised, and its category.
_WARNING = re.compile(r"^[^\n]*?:\d+: \w+")

#: Exceptions whose text is ours.
SPEAKABLE = (AppError, ConfigurationError, NoThread, PublishError)


#: Made once: a call of `json.dumps` makes one.
_ENCODER = json.JSONEncoder(default=str)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        package = record.name.partition(".")[0]
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": "log",
            "message": _sentence(record, package),
            "logger": record.name,
        }
        if package in READ:
            facts = vars(record)
            line |= {name: facts[name] for name in FIELDS if facts.get(name) is not None}
        if record.exc_info and record.exc_info[1] is not None:
            line |= _told(record.exc_info[1])
        return _ENCODER.encode(line)


class OthersFromInfo(logging.Filter):
    """Keeps back what other packages say below INFO, whatever the levels of their loggers are."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO or record.name.partition(".")[0] in OURS


class WithoutRepeats(logging.Filter):
    """Keeps Celery's own lines about a message back: they print exceptions and results."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "py.warnings":
            # The text of a warning may be that of an exception (celery 5.7 app/trace.py).
            place = _WARNING.match(record.getMessage())
            record.msg, record.args = place.group() if place else "A warning.", ()
        if record.name == "celery.worker.control" and str(record.msg).startswith(UNMARKED):
            return False
        if record.name not in REPEATED:
            return True
        if record.levelno < logging.ERROR or record.exc_info is None:
            return False
        # A failure keeps its place in the code and its class, not its text.
        data = getattr(record, "data", None) or {}
        record.msg, record.args = "A task failed.", ()
        record.event = "task.failed"
        record.task, record.message_id = data.get("name"), data.get("id")
        return True


def use_json_lines() -> None:
    """Let workers and beat log JSON lines to stderr, at LOG_LEVEL. Takes effect when they start."""
    setup_logging.connect(set_up)


def set_up(loglevel: int | None = None, **_: Any) -> None:
    """Let this process log JSON lines to stderr from now on, at LOG_LEVEL or more."""
    _leave_out_what_no_line_has()
    handler = GatheringHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(OthersFromInfo())
    handler.addFilter(WithoutRepeats())
    root = logging.getLogger()
    root.handlers = [handler]
    # Celery hands over WARNING where no `-l` was given, so the more talkative of the two counts.
    level = min(loglevel or logging.WARNING, logging.getLevelName(get_settings().log_level))
    # The second is the parent that Celery gives to loggers of tasks (`get_task_logger`).
    for name in (*OURS, "celery.task"):
        logging.getLogger(name).setLevel(level)
    # Else each would make records for the filter to drop.
    root.setLevel(max(level, logging.INFO))
    # What these say at INFO is of no use to who runs a worker.
    for name in ("botocore", "boto3", "urllib3", "pymongo"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Billiard keeps its errors from the root logger, so that Python printed them as they are.
    pool = get_multiprocessing_logger()
    pool.propagate = True
    pool.setLevel(logging.ERROR)
    # Else Celery would make lines for each message, in two processes, for the filter to drop.
    for name in REPEATED:
        logging.getLogger(name).setLevel(logging.ERROR)


def _leave_out_what_no_line_has() -> None:
    # Half of what a record costs: https://docs.python.org/3/howto/logging.html#optimization
    logging._srcfile = None
    logging.logThreads = False
    logging.logProcesses = False
    logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # new in Python 3.12


def _sentence(record: logging.LogRecord, package: str) -> str:
    text = record.msg if isinstance(record.msg, str) else _shown(record.msg, package)
    if not record.args:
        return text if package in READ else _bare(text)
    try:
        if isinstance(record.args, Mapping):
            return text % {name: _shown(value, package) for name, value in record.args.items()}
        return text % tuple(_shown(value, package) for value in record.args)
    except (TypeError, ValueError, LookupError):
        # They do not fit it, or not any more.
        return text if package in READ else _bare(text)


def _shown(value: object, package: str) -> Any:
    """What a sentence of this package may have filled in."""
    if isinstance(value, BaseException):
        return value if isinstance(value, SPEAKABLE) else type(value).__name__
    if package in OURS or value is None or isinstance(value, int | float):
        return value
    if package in READ:
        return value if isinstance(value, str) else type(value).__name__
    return HIDDEN


def _bare(text: str) -> str:
    found = _BARE.match(text)
    return found.group().rstrip() if found else ""


def _told(exc: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(exc.__traceback__)
    told: dict[str, Any] = {
        "error": type(exc).__name__,
        "stack": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]],
    }
    if isinstance(exc, SPEAKABLE):
        told["error_text"] = str(exc)
    return told
