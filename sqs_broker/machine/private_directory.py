"""A directory that only this user can read, for as long as a process works in it."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

#: Seconds after which a directory that no process holds was left behind. A new one may not be held
#: yet.
LEFT_AFTER = 60


@contextlib.contextmanager
def private_directory(prefix: str) -> Iterator[Path]:
    """A new directory, which is removed at the end of the block.

    A process that is killed leaves it behind. So this also removes those of this user whose names
    begin with `prefix`, that no process holds, and that are older than a minute.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove_if_left(old)
    path = Path(tempfile.mkdtemp(prefix=prefix))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        descriptor = _opened(path)
        stack.callback(os.close, descriptor)
        # The system ends it with the process, however that ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path


def _remove_if_left(path: Path) -> None:
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        descriptor = _opened(path)
        stack.callback(os.close, descriptor)
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid() and time.time() - found.st_mtime > LEFT_AFTER:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
