"""Runs one command, and ends it when the process that started this guard ends.

    python guard.py --grace SECONDS COMMAND [ARGUMENT ...]

Standard input is a pipe whose other end only the starting process holds. When that process closes
the pipe or dies, the command gets SIGTERM. `grace` seconds later the command and its descendants
get SIGKILL if they still run. The exit status is that of the command, or 128 plus the signal's
number if a signal ended it.

It is run by its path with `python -I -S`, so it uses only the standard library.
"""

import argparse
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Guard:
    """The command in its own process group, and its descendants."""

    def __init__(self, command: list[str]) -> None:
        # On Linux, orphans of the command become children of the guard, even if they left the
        # process group, so that none is missed. Other systems have only the group.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(command)

    def reap(self) -> None:
        """Reap the processes that have ended. Sets `status` when the command itself has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """Send SIGTERM to the command only, which must stop its own children."""
        if self.status is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the command and all its descendants, and wait until they have ended."""
        while True:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # macOS refuses if only zombies are left.
                alive = False
            else:
                alive = True
            for pid in _children():
                os.kill(pid, signal.SIGKILL)
                alive = True
            self.reap()
            if not alive:
                return
            time.sleep(0.01)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--grace", type=float, required=True)
    arguments.add_argument("command", nargs=argparse.REMAINDER)
    options = arguments.parse_args()

    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_reader, False)
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    stopping = _Flag()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    guard = Guard(options.command)
    sources = [sys.stdin.fileno(), wake_reader]
    deadline: float | None = None
    while guard.status is None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(sources, [], [], left)
        if wake_reader in ready:
            os.read(wake_reader, 512)
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 512):
            sources.remove(sys.stdin.fileno())
            stopping.set()
        guard.reap()
        if deadline is not None and time.monotonic() >= deadline:
            break
        if stopping.is_set and deadline is None:
            deadline = time.monotonic() + options.grace
            guard.terminate()
    guard.kill()
    return guard.status if guard.status is not None else 128 + signal.SIGKILL


class _Flag:
    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True


def _become(command: list[str]) -> None:
    """In the child: execute the command. Never returns."""
    try:
        os.setpgid(0, 0)
        # If the guard itself is killed, the command still gets SIGTERM.
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.execvp(command[0], command)
    except OSError as exc:
        print(f"{command[0]}: {exc.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    """The direct children of this process; empty if the system has no /proc."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main())
