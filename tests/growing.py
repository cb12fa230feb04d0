"""Reads files that another process may be writing."""

from pathlib import Path


def whole_lines(file: Path) -> list[str]:
    """The complete lines of a file, in order; none if there is no file. A reader can see half of
    a line, even if it was written with one call.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].decode(errors="replace").splitlines()
