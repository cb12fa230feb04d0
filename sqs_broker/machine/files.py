"""Writes files safely in directories where other users may write: it follows no link and writes to
no existing file.

In a shared directory such as /tmp, another user who knows the name can create it first, as a
symbolic link to a file of the user who will write there.
"""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: Modes of a file that only this user can read, and of one that all users can read.
PRIVATE = 0o600
PUBLIC = 0o644


def replace(path: Path, content: str | bytes, mode: int) -> None:
    """Replace a file or a link with a new file in one step: a reader sees the old one or the new
    one. Raises OSError, and changes nothing, if that fails or if something else has this name."""
    _require_file(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def create(path: Path, mode: int) -> IO[bytes]:
    """Replace a file or a link with a new file, and return it open for writing. Raises OSError as
    `replace` does."""
    _require_file(path)
    path.unlink(missing_ok=True)
    # If another user creates the name here, the open fails, and nothing is written.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    return os.fdopen(descriptor, "wb")


def open_lock(path: Path) -> int:
    """Open a file to lock it, and return its descriptor. Creates the file if needed, and never
    writes to it. Raises OSError if it is a link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)


def open_log(path: Path) -> int:
    """Open a file to add lines to its end, and return its descriptor. Creates the file if needed.

    Follows a link, such as /dev/stderr, unless other users may write to the directory. Raises
    OSError.
    """
    is_shared = path.parent.stat().st_mode & stat.S_IWOTH
    no_link = os.O_NOFOLLOW if is_shared else 0
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | no_link, PUBLIC)


def _require_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file")


def fault(path: Path) -> str | None:
    """Why it is unsafe to let a library open files of this name; None if it is safe. The library
    follows links and reads any file that it finds.

    Checks `path` and the names that begin with it and a dot, which `dbm` and `shelve` use.
    """
    directory = path.absolute().parent
    with contextlib.suppress(FileNotFoundError):
        if directory.stat().st_mode & stat.S_IWOTH:
            return f"every user may write to {directory}"
    for found in _files_of(path):
        if found.is_symlink():
            return f"{found} is a symbolic link"
        if found.stat().st_uid not in (os.geteuid(), 0):
            return f"{found} belongs to another user"
    return None


def _files_of(path: Path) -> Iterator[Path]:
    directory = path.absolute().parent
    for name in os.listdir(directory) if directory.is_dir() else ():
        if name == path.name or name.startswith(f"{path.name}."):
            yield directory / name
