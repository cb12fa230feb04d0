"""Takes the texts of exceptions out of Celery's own log lines about a task."""

import logging
import re
from typing import Any

from billiard.einfo import ExceptionWithTraceback

from sqs_broker.machine.textless import textless
from sqs_broker.rules.happened import class_in
from sqs_broker.worker.failures import frames_of

#: The loggers of Celery 5.7 that write about the end of a task.
LOGGERS = ("celery.app.trace", "celery.worker.request")

#: How celery 5.7 says in how many seconds a task is retried (exceptions.py, `Retry`).
_RETRY = re.compile(r"^Retry(?: in [\d.]+s| at \S+ \S+|)(?=: |$)")


class WithoutTexts(logging.Filter):
    """Leaves the classes and the code locations of exceptions in a line, and takes away their
    texts. Python's formatter, and one that writes JSON, print what is left."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            shown = textless(_unwrapped(record.exc_info[1]))
            record.exc_info, record.exc_text = (type(shown), shown, shown.__traceback__), None
        if isinstance(record.args, dict):
            record.args = _hidden(record.args, record.exc_info)
            vars(record)["data"] = record.args
        elif isinstance(record.args, tuple):
            record.args = tuple(
                textless(one) if isinstance(one, BaseException) else one for one in record.args
            )
        return True


def hide_texts() -> None:
    """Let no line of these loggers have the text of an exception, in this process and its
    children."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, WithoutTexts) for one in logger.filters):
            logger.addFilter(WithoutTexts())


def _hidden(facts: dict[str, Any], exc_info: Any) -> dict[str, Any]:
    """What Celery says of a task, with the class in place of the exception."""
    shown = dict(facts)
    if exc_info and exc_info[0] is not None:
        shown["exc"] = f"{exc_info[0].__name__}(...)"
    elif "exc" in shown:
        shown["exc"] = _without_text(str(shown["exc"]))
    if "traceback" in shown:
        shown["traceback"] = "\n".join(frames_of(shown["traceback"]))
    return shown


def _unwrapped(exc: BaseException) -> BaseException:
    """The exception itself, which is in a wrapper if it comes from the pool (billiard 4.3)."""
    if not isinstance(exc, ExceptionWithTraceback):
        return exc
    inner: BaseException = exc.exc
    return inner


def _without_text(said: str) -> str:
    retry = _RETRY.match(said)
    if retry is None:
        return f"{class_in(said)}(...)"
    cause = said[retry.end() :].removeprefix(": ")
    return f"{retry.group()}: {class_in(cause)}(...)" if cause else retry.group()
