"""Several processes that serve one port.

Each has a listening socket of its own, and Linux spreads new connections evenly over the sockets of
a port (SO_REUSEPORT: https://man7.org/linux/man-pages/man7/socket.7.html). The first process serves
nothing. It keeps all sockets, so that a connection that comes while a process is replaced waits for
the next one.

Signals stop the first process alone. The others wait for the end of a pipe of which it has the
writing end. So they stop in the same way if it is killed, and a signal to all of the group does not
stop one of them sooner than app/beside.py allows.
"""

import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

logger = logging.getLogger(__name__)

#: Seconds between two starts of a process in the same place, so that one that cannot start does
#: not take all of the CPU.
PAUSE = 1.0

STOPS = frozenset({signal.SIGTERM, signal.SIGINT})


@dataclass(frozen=True)
class Share:
    """What one of the processes has."""

    listener: socket.socket
    stop: int
    """A descriptor that can be read from when the process shall stop."""


class Processes:
    """Starts a process for each listening socket, and replaces those that end. Needs Linux, and a
    program without other threads and other child processes."""

    def __init__(self, listeners: Sequence[socket.socket], pause: float = PAUSE) -> None:
        self._listeners = listeners
        self._pause = pause
        self._pids: dict[int, int] = {}
        """By the place of the listener."""
        self._began: dict[int, float] = {}
        self._stop, self._held = os.pipe()

    def run(self) -> Share | None:
        """Returns in each of the processes what it has; in the first one None, once all have ended
        after SIGTERM or SIGINT. At a second SIGINT they are killed."""
        # One that was blocked before comes in another way (app/beside.py).
        stops = STOPS - signal.pthread_sigmask(signal.SIG_BLOCK, STOPS | {signal.SIGCHLD})
        waited = stops | {signal.SIGCHLD}
        while True:
            if (share := self._start_missing()) is not None:
                return share
            got = signal.sigtimedwait(waited, self._pause)
            if got is not None and got.si_signo in stops:
                break
            self._reap()
        self._end(waited)
        return None

    def _start_missing(self) -> Share | None:
        for place in range(len(self._listeners)):
            is_due = monotonic() >= self._began.get(place, -self._pause) + self._pause
            if place in self._pids or not is_due:
                continue
            self._began[place] = monotonic()
            pid = os.fork()
            if pid == 0:
                return self._share(place)
            self._pids[place] = pid
        return None

    def _share(self, place: int) -> Share:
        os.close(self._held)
        for other, listener in enumerate(self._listeners):
            if other != place:
                listener.close()
        return Share(self._listeners[place], self._stop)

    def _reap(self) -> None:
        """Forget the processes that have ended."""
        for place, pid in tuple(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[place]
                _log_end(pid, os.waitstatus_to_exitcode(status))

    def _end(self, waited: frozenset[signal.Signals]) -> None:
        """Stop the processes, and wait until they have ended."""
        os.close(self._held)
        for listener in self._listeners:
            listener.close()
        while self._pids:
            got = signal.sigtimedwait(waited, self._pause)
            if got is not None and got.si_signo == signal.SIGINT:
                for pid in self._pids.values():
                    os.kill(pid, signal.SIGKILL)
            self._reap()


def _log_end(pid: int, code: int) -> None:
    if code == 0:
        return
    reason = f"signal {-code}" if code < 0 else f"exit status {code}"
    logger.error(
        "A process of the API has ended: %s. Another one takes its place, unless the API stops.",
        reason,
        extra={"event": "api.process_ended", "pid": pid, "reason": reason},
    )
