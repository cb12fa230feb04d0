"""JSON lines: a sentence for people (`message`), a stable `event`, and ids. Never a body, a name
or a secret.

The text of an exception can hold what a user typed (a duplicate-key error prints the key), so a
log line has the class of an exception and the places in the code, and its text only where it is
one of our own, which hold none.
"""

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from celery.signals import setup_logging

from app.broker.errors import ConfigurationError, NoThread, PublishError
from app.errors import AppError
from app.log_stream import GatheringHandler
from app.settings import get_settings

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
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": "log",
            "message": _sentence(record),
            "logger": record.name,
        }
        facts = vars(record)
        line |= {name: facts[name] for name in FIELDS if facts.get(name) is not None}
        if record.exc_info and record.exc_info[1] is not None:
            line |= _told(record.exc_info[1])
        return _ENCODER.encode(line)


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
    handler.addFilter(WithoutRepeats())
    root = logging.getLogger()
    root.handlers = [handler]
    # Celery hands over WARNING where no `-l` was given, so the more talkative of the two counts.
    root.setLevel(min(loglevel or logging.WARNING, logging.getLevelName(get_settings().log_level)))
    # These print requests and commands, which hold bodies.
    for name in ("botocore", "boto3", "urllib3", "pymongo"):
        logging.getLogger(name).setLevel(logging.WARNING)
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


def _sentence(record: logging.LogRecord) -> str:
    args = record.args
    if isinstance(args, tuple):
        return str(record.msg) % tuple(_speakable(arg) for arg in args) if args else str(record.msg)
    return record.getMessage()


def _speakable(argument: object) -> object:
    if isinstance(argument, BaseException) and not isinstance(argument, SPEAKABLE):
        return type(argument).__name__
    return argument


def _told(exc: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(exc.__traceback__)
    told: dict[str, Any] = {
        "error": type(exc).__name__,
        "stack": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]],
    }
    if isinstance(exc, SPEAKABLE):
        told["error_text"] = str(exc)
    return told
