"""Files that are written where other users may write too: nobody's link is followed, and nobody's
file is written to.

A name that is known beforehand can be planted in a shared directory such as /tmp, as a symbolic
link to a file of the one who will write there.
"""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: Modes of files for this user alone, and for all to read.
PRIVATE = 0o600
PUBLIC = 0o644


def replace(path: Path, content: str | bytes, mode: int) -> None:
    """Put a new file in the place of a file or a link. Whoever reads sees the old one or the new
    one. Raises OSError where something else is there or it cannot be, and leaves what is there."""
    _refuse_what_is_no_file(path)
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
    """A new file in the place of a file or a link, to write to as time goes by. Raises OSError as
    `replace` does."""
    _refuse_what_is_no_file(path)
    path.unlink(missing_ok=True)
    # Whoever plants one in between keeps it from being written, and no more.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    return os.fdopen(descriptor, "wb")


def open_lock(path: Path) -> int:
    """The descriptor of a file to lock, which is made where there is none. Nothing is ever written
    to it. Raises OSError for a link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)


def _refuse_what_is_no_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no file")


def fault(path: Path) -> str | None:
    """Why a library may not open files of this name, which follows links and reads what it finds;
    None where it may.

    The names are `path` and those that begin with it and a dot, as of `dbm` and `shelve`.
    """
    directory = path.absolute().parent
    with contextlib.suppress(FileNotFoundError):
        if directory.stat().st_mode & stat.S_IWOTH:
            return f"every user may write in {directory}"
    for found in _of_the_name(path):
        if found.is_symlink():
            return f"{found} is a symbolic link"
        if found.stat().st_uid not in (os.geteuid(), 0):
            return f"{found} is another user's"
    return None


def _of_the_name(path: Path) -> Iterator[Path]:
    directory = path.absolute().parent
    for name in os.listdir(directory) if directory.is_dir() else ():
        if name == path.name or name.startswith(f"{path.name}."):
            yield directory / name
