"""Runs a program beside the worker of a Procfile: `python -m app.beside celery -A app flower`.

honcho sends SIGTERM to all lines of a Procfile. 5 s after the first of them has ended, it kills the
others (honcho 2.0 manager.py, `KILL_WAIT`). So a program that ends at once would take their time
from the tasks that run in the worker. Under honcho on Linux, the program gets SIGTERM only once the
worker beside it has ended: as SIGINT, which stops it in the same way. A second SIGTERM ends it at
once. Everywhere else, this is the program itself, and nothing more.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from os import _exit as leave_at_once
from pathlib import Path

#: The variable in which honcho names the line of the Procfile (honcho 2.0 environ.py).
LINE = "HONCHO_PROCESS_NAME"

#: Seconds between two looks at the worker.
PAUSE = 0.2


def main() -> None:
    """Become the program in the arguments. Without it, exit with one line."""
    program = sys.argv[1:]
    if not program or shutil.which(program[0]) is None:
        sys.exit("app.beside: the arguments must be a program and its arguments. It was not found.")
    if LINE in os.environ and sys.platform == "linux":
        _hold_back()
    os.execvp(program[0], program)


def workers(session: int) -> list[int]:
    """The processes of the workers beside a line of the Procfile, by the session of that line."""
    honcho = _honcho_of(session)
    if honcho is None:
        return []
    named = (pid for pid in _processes() if _line_of(pid) == "worker")
    return [pid for pid in named if _honcho_of(_session_of(pid)) == honcho]


def _hold_back() -> None:
    # A signal that is blocked stays so in the program that replaces this one.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    program = os.getpid()
    if os.fork() == 0:
        try:
            _watch(program)
        finally:
            leave_at_once(0)


def _watch(program: int) -> None:
    """Pass the signal on. Ends with the program."""
    # honcho waits until no process can write to the pipe of the line.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    signals = 0
    while os.getppid() == program:
        signals += signal.sigtimedwait({signal.SIGTERM}, PAUSE) is not None
        if signals > 1 or (signals and not workers(os.getsid(0))):
            os.kill(program, signal.SIGINT)
            return


def _processes() -> Iterator[int]:
    return (int(directory.name) for directory in Path("/proc").glob("[0-9]*"))


def _honcho_of(session: int | None) -> int | None:
    """The process id of the honcho that has started a line. None if the line has ended.

    honcho starts each line in a session of its own, from a process of its own (honcho 2.0
    process.py, manager.py). If the shell that leads the session dies of the signal, it stays as a
    zombie until the line has ended.
    """
    return _parent_of(_parent_of(session))


def _parent_of(pid: int | None) -> int | None:
    return _field(pid, 1)


def _session_of(pid: int | None) -> int | None:
    return _field(pid, 3)


def _field(pid: int | None, place: int) -> int | None:
    """One of the fields after the name of a process: its state, its parent, its group, its session.

    https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    """
    try:
        # The name is in brackets, and may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[place])
    except OSError:
        return None


def _line_of(pid: int) -> str | None:
    """The name of the line of the Procfile; None if it is none, or belongs to somebody else."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    for variable in variables:
        name, _, value = variable.decode(errors="replace").partition("=")
        if name == LINE:
            return value.partition(".")[0]
    return None


if __name__ == "__main__":
    main()
