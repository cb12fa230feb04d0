"""app.beside: under honcho a program ends after the worker; elsewhere it is the program itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.beside import LINE
from devstack.waiting import wait_until

ROOT = Path(__file__).parents[2]

#: Seconds that nothing here comes near to.
DEADLINE = 10

#: Seconds after which what has not happened does not happen.
PATIENCE = 0.7

#: Says the process id of a command, which leads a session, and then whether it has ended.
STARTER = """
import subprocess, sys
started = subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=subprocess.DEVNULL)
print(started.pid, flush=True)
print(started.wait(), flush=True)
"""

#: Starts the starter, as another honcho does.
ANOTHER = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"

BESIDE = [sys.executable, "-m", "app.beside"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


class Line:
    """A line of a Procfile. This process is honcho, or the parent of another one."""

    def __init__(self, name: str, *command: str, other_honcho: bool = False) -> None:
        starter = [sys.executable, "-c", STARTER, *command]
        self._starter = subprocess.Popen(
            [sys.executable, "-c", ANOTHER, *starter] if other_honcho else starter,
            env=os.environ | {LINE: f"{name}.1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._starter.stdout is not None
        self.pid = int(self._starter.stdout.readline())

    def stop(self) -> None:
        """Send SIGTERM to its process group, as honcho does."""
        os.killpg(self.pid, signal.SIGTERM)

    def is_ready(self) -> bool:
        """Whether it runs its program, which is `sleep`."""
        return Path(f"/proc/{self.pid}/comm").read_text() == "sleep\n"

    def status(self) -> int:
        """Its exit status, once it has ended."""
        assert self._starter.stdout is not None
        return int(self._starter.stdout.readline())

    @property
    def is_running(self) -> bool:
        return self._starter.poll() is None

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._starter.communicate(timeout=DEADLINE)


MakeLine = Callable[..., Line]


@pytest.fixture
def line() -> Iterator[MakeLine]:
    """Starts lines of a Procfile that sleep."""
    made: list[Line] = []

    def start(name: str, *, other_honcho: bool = False) -> Line:
        prefix = [] if name == "worker" else BESIDE
        made.append(Line(name, *prefix, "sleep", "60", other_honcho=other_honcho))
        wait_until(made[-1].is_ready, DEADLINE, "the program")
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_without_honcho_it_is_the_program_itself() -> None:
    said = [sys.executable, "-c", "import os; print(os.getpid())"]
    with subprocess.Popen([*BESIDE, *said], cwd=ROOT, stdout=subprocess.PIPE, text=True) as ran:
        assert ran.communicate(timeout=DEADLINE)[0] == f"{ran.pid}\n"


@pytest.mark.parametrize("program", [[], ["no-such-program"]])
def test_a_program_that_is_missing_is_one_line(program: list[str]) -> None:
    ran = subprocess.run([*BESIDE, *program], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (1, "", 1)


def test_it_ends_once_the_worker_beside_it_has_ended(line: MakeLine) -> None:
    worker, flower = line("worker"), line("flower")
    flower.stop()
    with pytest.raises(TimeoutError):
        wait_until(lambda: not flower.is_running, PATIENCE, "an end beside the worker")
    worker.stop()
    assert flower.status() == -signal.SIGINT


def test_a_second_signal_ends_it_at_once(line: MakeLine) -> None:
    _, flower = line("worker"), line("flower")
    flower.stop()
    with pytest.raises(TimeoutError):
        wait_until(lambda: not flower.is_running, PATIENCE, "an end beside the worker")
    flower.stop()
    assert flower.status() == -signal.SIGINT


@pytest.mark.parametrize("other_honcho", [True, None])
def test_a_worker_of_somebody_else_is_not_beside_it(
    line: MakeLine, other_honcho: bool | None
) -> None:
    line("worker", other_honcho=True) if other_honcho else line("api")
    flower = line("flower")
    flower.stop()
    assert flower.status() == -signal.SIGINT
