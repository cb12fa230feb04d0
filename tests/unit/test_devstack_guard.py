"""The guard that no process of the stack outlives its parent."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from devstack import guard
from devstack.errors import StackError
from devstack.process import Process
from tests.services import wait_until

ROOT = Path(guard.__file__).parents[1]
SECONDS = 10
#: Tells its pid, then does what it is asked until it is stopped.
CHILD = """
import os, pathlib, signal, subprocess, sys, time
role, here = sys.argv[1], pathlib.Path(sys.argv[2])
if role == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if role == "parent":
    subprocess.Popen([sys.executable, __file__, "deaf", str(here / "child")])
if role == "runaway":
    subprocess.Popen(
        [sys.executable, __file__, "deaf", str(here / "child")], start_new_session=True
    )
if role == "polite":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit((here / "asked").touch() or 0))
here.mkdir(exist_ok=True)
(here / "half").write_text(str(os.getpid()))
(here / "half").rename(here / "pid")
while True:
    time.sleep(60)
"""
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel offers it on Linux only"
)


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def pid_of(here: Path) -> int:
    file = here / "pid"
    started = wait_until(
        lambda: file.exists() and file.read_text(), SECONDS, f"a start in {here.name}"
    )
    return int(started)


def wait_until_gone(*pids: int) -> None:
    wait_until(lambda: not any(map(is_alive, pids)), SECONDS, "the end of all")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    return script


@contextmanager
def guarded(script: Path, role: str, grace: float = SECONDS) -> Iterator[Process]:
    here = script.parent
    with Process(
        role,
        [sys.executable, script, role, here / role],
        log=here / f"{role}.log",
        grace=grace,
    ) as process:
        yield process


def test_a_command_is_asked_to_stop_first(script: Path) -> None:
    with guarded(script, "polite") as process:
        pid = pid_of(script.parent / "polite")
    assert (script.parent / "polite" / "asked").exists()
    assert process.exit_status == 0
    assert not is_alive(pid)


def test_a_command_that_does_not_stop_in_time_is_killed(script: Path) -> None:
    with guarded(script, "deaf", grace=0.1) as process:
        pid = pid_of(script.parent / "deaf")
    assert process.exit_status == 128 + signal.SIGKILL
    assert not is_alive(pid)


@pytest.mark.parametrize("role", ["parent", pytest.param("runaway", marks=linux_only)])
def test_descendants_end_with_the_command(script: Path, role: str) -> None:
    with guarded(script, role):
        pid = pid_of(script.parent / role)
        child = pid_of(script.parent / role / "child")
        assert is_alive(child)
    assert not is_alive(pid)
    assert not is_alive(child)


def test_descendants_end_when_the_command_ends_by_itself(script: Path) -> None:
    with guarded(script, "parent") as process:
        pid = pid_of(script.parent / "parent")
        child = pid_of(script.parent / "parent" / "child")
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid, child)
        with pytest.raises(StackError, match="parent ended with status 137: something killed it"):
            wait_until(process.check, SECONDS, "an error")


def test_the_command_ends_when_the_process_that_asked_for_it_is_killed(
    script: Path, tmp_path: Path
) -> None:
    asking = f"""
from pathlib import Path
from devstack.process import Process
import sys, time
here = Path({str(tmp_path)!r})
Process("it", [sys.executable, here / "child.py", "deaf", here / "it"], log=here / "log", grace=0.1)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", asking], cwd=ROOT) as process:
        pid = pid_of(tmp_path / "it")
        process.kill()
    wait_until_gone(pid)


@linux_only
def test_the_command_ends_when_its_guard_is_killed(script: Path) -> None:
    with guarded(script, "polite") as process:
        pid = pid_of(script.parent / "polite")
        os.kill(process.guard_pid, signal.SIGKILL)
        wait_until_gone(pid)


def test_the_exit_status_is_the_command_s(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('why it stopped'); raise SystemExit(3)"]
    with Process("it", command, log=tmp_path / "log", grace=1) as process:
        assert process.wait(SECONDS) == 3
        with pytest.raises(StackError, match="it ended with status 3: why it stopped"):
            process.check()


def test_a_command_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with Process("it", [tmp_path / "nothing"], log=tmp_path / "log", grace=1) as process:
        assert process.wait(SECONDS) == 127
        assert "nothing: No such file or directory" in process.last_words()


def test_the_guard_runs_on_the_standard_library_alone() -> None:
    completed = subprocess.run(
        [sys.executable, "-I", "-S", guard.__file__, "--help"], capture_output=True, timeout=SECONDS
    )
    assert completed.returncode == 0
