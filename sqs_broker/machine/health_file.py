"""Reads the file in which a worker reports whether it is healthy (sqs_broker/worker/health.py).

A health check runs every few seconds, so this imports next to nothing.
"""

import json
import os
from time import monotonic
from typing import Any, NamedTuple

#: Seconds after which a file without a new write is not valid any more.
STALE = 30.0


class Report(NamedTuple):
    """Whether a worker is healthy, and the reason in one line."""

    healthy: bool
    text: str


def read(path: str | os.PathLike[str]) -> Report:
    """The report in the file; not healthy if its worker no longer writes it."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        age, pid, report = monotonic() - content["monotonic"], content["pid"], _report(content)
    except FileNotFoundError:
        return Report(False, f"no worker writes {path}")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        return Report(False, f"{path} cannot be read ({type(exc).__name__})")
    if not _is_alive(pid):
        return Report(False, f"the worker (process {pid}) is gone; last report: {report.text}")
    if not 0 <= age <= STALE:
        since = f"the worker has reported nothing since {content['at']}"
        return Report(False, f"{since}; last report: {report.text}")
    return report


def _report(content: Any) -> Report:
    return Report(content["healthy"] is True, str(content["text"]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # The process exists and belongs to another user.
    return True
