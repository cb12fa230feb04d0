"""Reads files that another process may be writing."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any


def whole_lines(file: Path) -> list[str]:
    """The complete lines of a file, in order; none if there is no file. A reader can see half of
    a line, even if it was written with one call.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].decode(errors="replace").splitlines()


def log_lines(file: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The JSON objects of a log, in order; with `event`, those of this event. Other lines are left
    out."""
    parsed = []
    for line in whole_lines(file):
        with suppress(json.JSONDecodeError):
            if isinstance(content := json.loads(line), dict):
                parsed.append(content)
    # The metric lines have no event.
    return [line for line in parsed if event in (None, line.get("event"))]
