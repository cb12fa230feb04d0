"""Several processes on one port: the sockets, and who starts and ends the processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.api.serving import listen
from app.errors import SettingsError
from tests.growing import whole_lines
from tests.services import wait_until

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"

#: Starts two processes. Each writes a line, then does as the argument says.
PROGRAM = """
import os, select, socket, sys, time
from app.api.processes import Processes

share = Processes([socket.socket(), socket.socket()], pause=float(sys.argv[2])).run()
if share is not None:
    os.write(1, b'["began", %d]\\n' % os.getpid())
    if sys.argv[1] == "fails":
        sys.exit(3)
    select.select([share.stop], [], [])
    os.write(1, b'["stops", %d]\\n' % os.getpid())
    if sys.argv[1] == "hangs":
        time.sleep(600)
"""


class Run:
    """A run of PROGRAM, and its lines so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    def pids(self, what: str) -> list[int]:
        """The process ids of these lines."""
        lines = whole_lines(self._output)
        read = [json.loads(line) for line in lines if line.startswith("[")]
        return [pid for kind, pid in read if kind == what]

    def began(self, count: int) -> list[int]:
        """The ids of the processes, once so many have begun."""
        wait_until(lambda: len(self.pids("began")) >= count, 30, f"{count} processes")
        return self.pids("began")


@contextmanager
def running(directory: Path, what: str, pause: float = 0.01) -> Iterator[Run]:
    output = directory / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, what, str(pause)],
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        yield Run(process, output)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_first_process_stops_all_of_them(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running(tmp_path, "serves") as run:
        pids = run.began(2)
        run.process.send_signal(number)
        assert run.process.wait(30) == 0
        assert set(run.pids("stops")) == set(pids)


def test_they_stop_when_the_first_process_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, "serves") as run:
        run.began(2)
        run.process.kill()
        wait_until(lambda: len(run.pids("stops")) == 2, 30, "the stop of both")


def test_a_signal_to_one_of_the_others_does_nothing(tmp_path: Path) -> None:
    with running(tmp_path, "serves") as run:
        first, second = run.began(2)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(first, number)
        os.kill(second, signal.SIGKILL)
        assert len(run.began(3)) == 3
        assert run.pids("stops") == []


def test_one_that_ended_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path, "serves") as run:
        pids = run.began(2)
        for count, pid in enumerate(pids, 3):
            os.kill(pid, signal.SIGKILL)
            run.began(count)
        run.process.terminate()
        assert run.process.wait(30) == 0
        assert set(run.pids("stops")) == set(run.began(4)) - set(pids)


def test_one_that_cannot_start_is_started_again(tmp_path: Path) -> None:
    with running(tmp_path, "fails") as run:
        run.began(6)
        run.process.terminate()
        assert run.process.wait(30) == 0


def test_one_that_cannot_start_is_not_started_again_before_the_pause_is_over(
    tmp_path: Path,
) -> None:
    with running(tmp_path, "fails", pause=600) as run:
        pids = run.began(2)
        gone = [Path(f"/proc/{pid}") for pid in pids]
        wait_until(lambda: not any(each.exists() for each in gone), 30, "the end of both")
        run.process.terminate()
        assert run.process.wait(30) == 0
        assert run.pids("began") == pids


def test_a_second_sigint_kills_those_that_do_not_stop(tmp_path: Path) -> None:
    with running(tmp_path, "hangs") as run:
        run.began(2)
        run.process.send_signal(signal.SIGTERM)
        wait_until(lambda: len(run.pids("stops")) == 2, 30, "the stop of both")
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(30) == 0


def test_what_was_blocked_at_the_start_stops_nothing(tmp_path: Path) -> None:
    # As app/beside.py does it: then SIGINT comes in its place.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with running(tmp_path, "serves") as run:
            first, _ = run.began(2)
            os.killpg(run.process.pid, signal.SIGTERM)
            os.kill(first, signal.SIGKILL)
            run.began(3)
            assert run.pids("stops") == []
            run.process.send_signal(signal.SIGINT)
            assert run.process.wait(30) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


# The sockets


@contextmanager
def listening(port: int, count: int) -> Iterator[list[socket.socket]]:
    made = list(listen(HOST, port, count))
    try:
        yield made
    finally:
        for each in made:
            each.close()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_sockets_listen_on_one_port(count: int) -> None:
    with listening(0, count) as made:
        assert len(made) == count
        (port,) = {each.getsockname()[1] for each in made}
        assert port


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("second", [1, 2])
def test_a_port_that_another_program_serves_is_refused(first: int, second: int) -> None:
    with listening(0, first) as made:
        port = made[0].getsockname()[1]
        with pytest.raises(SettingsError, match="API_PORT"):
            listen(HOST, port, second)


@pytest.mark.parametrize("count", [1, 2])
def test_a_port_is_free_at_once_after_its_sockets_are_closed(count: int) -> None:
    with listening(0, count) as made:
        port = made[0].getsockname()[1]
        with socket.create_connection((HOST, port)) as client:
            accepted = {each for each in made if _takes(each)}
            assert len(accepted) == 1
            assert client.getpeername()[1] == port
    with listening(port, count):
        pass


def _takes(listener: socket.socket) -> bool:
    """Whether a connection waits here. It is taken, and closed from this side."""
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_several_processes_need_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SettingsError, match="API_PROCESSES=1"):
        listen(HOST, 0, 2)
    with listening(0, 1):
        pass
