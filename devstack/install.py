"""Makes `.venv` and installs into it, and says what happens meanwhile.

Uses only the standard library, because the system's Python runs it:

    python install.py .venv --group devstack -e ./sqs_broker -e '.[api]'

The arguments after the directory are those of `pip install`. uv installs them if this machine has
it, which is several times as fast; otherwise, or if uv fails, pip does.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

CONSTRAINTS = "constraints.txt"

#: Seconds between two lines that say that it goes on. A terminal gets one line, which changes.
EVERY = 1.0 if sys.stderr.isatty() else 10.0

#: Lines of an installer's output that are shown if it fails.
SHOWN = 20


#: The exit status of a program that Ctrl+C has ended.
INTERRUPTED = 130


class Failed(Exception):
    """An installer failed. The text is the end of its output."""


def main() -> int:
    venv, wanted = Path(sys.argv[1]), sys.argv[2:]
    began, began_at = time.monotonic(), time.time()
    try:
        with alone(venv):
            if not was_installed(venv, wanted, began_at):
                create(venv)
                install(venv, wanted)
                note(venv, wanted)
    except Failed as exc:
        say(f"{exc}\nThe installation failed: see above.")
        return 1
    except KeyboardInterrupt:
        say("The installation was interrupted. Run the command again to go on.")
        return INTERRUPTED
    say(f"{venv} is ready after {time.monotonic() - began:.0f} s.")
    return 0


@contextmanager
def alone(venv: Path) -> Iterator[None]:
    """Waits until no other process installs into the directory: two installers at once break what
    they install."""
    directory = os.open(venv.absolute().parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # Some network filesystems have no such locks.
            wait_for_lock(directory)
        yield
    finally:
        os.close(directory)


def wait_for_lock(directory: int) -> None:
    """Get the lock, and say if that takes a while."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("Another process installs here; this one waits for it …")
        fcntl.flock(directory, fcntl.LOCK_EX)


def was_installed(venv: Path, wanted: Sequence[str], began_at: float) -> bool:
    """Whether another process has installed the same while this one waited. It may use it already,
    so nothing there is replaced."""
    with suppress(OSError):
        return mark_of(venv, wanted).lstat().st_mtime >= began_at
    return False


def note(venv: Path, wanted: Sequence[str]) -> None:
    """Note when this was installed: the time of a directory says it."""
    mark = mark_of(venv, wanted)
    mark.mkdir(exist_ok=True)
    os.utime(mark, follow_symlinks=False)


def mark_of(venv: Path, wanted: Sequence[str]) -> Path:
    """The directory whose time says when these were installed."""
    return venv / f"installed-{sha256(' '.join(wanted).encode()).hexdigest()[:12]}"


def create(venv: Path) -> None:
    """Make a virtual environment, unless a usable one is there: after an interrupted installation
    pip may not run."""
    python = venv / "bin" / "python"
    has_pip = [str(python), "-m", "pip", "--version"]
    if python.exists() and subprocess.run(has_pip, capture_output=True).returncode == 0:
        return
    run(f"creating {venv}", [sys.executable, "-m", "venv", "--clear", str(venv)])


def install(venv: Path, wanted: Sequence[str]) -> None:
    """Install with uv, or else with pip."""
    python = str(venv / "bin" / "python")
    uv = shutil.which("uv")
    if uv is not None:
        command = [uv, "pip", "install", "--python", python, "-c", CONSTRAINTS, "-b", CONSTRAINTS]
        try:
            run("installing packages with uv (about 10 s)", [*command, *wanted])
        except Failed as exc:
            say(f"{exc}\nuv failed; pip installs instead.")
        else:
            return
    pip = [python, "-m", "pip", "install", "-c", CONSTRAINTS]
    run("updating pip", [*pip, "--upgrade", "pip"])
    what = "installing packages with pip (half a minute to two)"
    run(what, [*pip, "--build-constraint", CONSTRAINTS, *wanted])


def run(what: str, command: Sequence[str]) -> None:
    """Run a command and say how long it has taken, and what it does last. Raises Failed."""
    last: deque[str] = deque(maxlen=SHOWN)
    with saying(what, last):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        try:
            last.extend(line.rstrip() for line in process.stdout)
            status = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if status:
        raise Failed("\n".join(last))


@contextmanager
def saying(what: str, last: deque[str]) -> Iterator[None]:
    """Says at once what is done, and from time to time that it goes on."""
    began, done = time.monotonic(), threading.Event()
    say(f"{what} …")

    def go_on() -> None:
        while not done.wait(EVERY):
            now = f"  {time.monotonic() - began:3.0f} s  {last[-1] if last else ''}"[:79]
            sys.stderr.write(f"\r{now:<79}" if sys.stderr.isatty() else f"{now}\n")
            sys.stderr.flush()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{'':<79}\r")


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
