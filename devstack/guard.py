"""Runs one command that must not outlive the process that asked for it.

    python guard.py --grace SECONDS COMMAND [ARGUMENT ...]

Standard input is a pipe whose other end only the asking process holds. When that process closes
it, or dies in whatever way, the command gets SIGTERM; what is left of it and its descendants
`grace` seconds later gets SIGKILL. The exit status is the command's, 128 and the signal's number
if a signal ended it.

Run by its path under `python -I -S`, so it uses nothing but the standard library.
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
    """The command in its own process group, and everything it leaves behind."""

    def __init__(self, command: list[str]) -> None:
        # On Linux orphans of the command become children of the guard, those included that
        # left the process group, so that none escapes. Elsewhere the group has to do.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(command)

    def reap(self) -> None:
        """Collect who ended; sets `status` once the command itself has."""
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
        """Ask the command to stop. Only the command: its children are its own business."""
        if self.status is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the command and all its descendants now, and wait until they are gone."""
        while True:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # macOS refuses where only zombies are
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
    """In the child: turn into the command. Never returns."""
    try:
        os.setpgid(0, 0)
        # Should the guard itself be killed, the command still gets its SIGTERM.
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
    """Direct children of this process; empty where the system has no /proc."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main())
